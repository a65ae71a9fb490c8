"""Counts the readers' notes on rows by their kind, for those who will not read them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def rows_were(n_rows: int) -> str:
    """The subject of a sentence on rows, with its verb: `1 row was`, `3 rows were`."""
    return "1 row was" if n_rows == 1 else f"{n_rows} rows were"


def commonest_notes(notes: Iterable[Sequence[str]], most: int = 3) -> list[str]:
    """The commonest kinds of note, each in a line with the number of rows that have it.

    Args:
        notes: those of each row. What stands before a colon is the kind, and what follows is the row's own.
        most: how many lines; a last one counts the kinds that are left.
    """
    counts = Counter(kind for row_notes in notes for kind in {note.split(": ", 1)[0] for note in row_notes})
    lines = [f"{count:,} x {kind}" for kind, count in counts.most_common(most)]
    return lines + ([f"and {len(counts) - most} other kinds"] if len(counts) > most else [])
