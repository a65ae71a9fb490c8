"""Holds what a reader has read of a user's file or folder: labels by column, inputs still unparsed.

Each layout has a reader (`data/crystals/layouts/readers.py` lists them); `data/tasks.py` picks the target column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.crystals.rows import Format, GzippedText, Rows
from data.crystals.task_table import Inputs
from data.row_numbers import RowNumbers
from data.task import TaskError

GROUP_COLUMN = "group"
_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Source:
    """A table of labels and unparsed structures or formulas, before anything is chosen from it.

    Attributes:
        index: one a row, as stored: strings or ints.
        columns: cells of every other column by its name; a cell is a bool, a number, a string or None.
        names: what messages call each row.
        format: what the bytes of a structure or formula are, see `data.crystals.rows.RawChunk`.
        buffer: bytes that hold every structure or formula, see `data.crystals.rows.Rows`.
        spans: int64, shape (n_rows, 2), byte range of each row's structure or formula.
        sha256: of everything that was read.
        row_numbers: where the rows stand in the user's file.
        taken: where ids and structures or formulas come from, where the user did not say it: "ids from ..., ...".
        notes: what else the user should know about the reading, or "".
    """

    index: list[object]
    columns: dict[str, list[object]]
    names: list[str]
    format: Format
    buffer: bytes | GzippedText
    spans: np.ndarray
    sha256: str
    row_numbers: RowNumbers
    taken: str = ""
    notes: str = ""

    @property
    def inputs(self) -> Inputs:
        """Says whether rows are structures or compositions."""
        return "compositions" if self.format == "composition" else "structures"

    def rows(self, ids: list[str], target: str) -> Rows:
        """The rows under these ids with the column `target` as their targets."""
        groups = self.columns.get(GROUP_COLUMN)
        if groups is not None and (empty := sum(group in (None, "") for group in groups)):
            raise TaskError(f"column {GROUP_COLUMN!r} is empty in {empty} rows; give every row a group")
        return Rows(
            ids=ids,
            targets=np.array([_number(cell) for cell in self.columns[target]], dtype=np.float64),
            groups=None if groups is None else [str(group) for group in groups],
            sha256=hashlib.sha256(f"{self.sha256}\n{target}".encode()).hexdigest(),
            names=ids if self.format != "structure_file" else self.names,
            format=self.format,
            buffer=self.buffer,
            spans=self.spans,
            row_numbers=self.row_numbers,
        )


def content_of(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        TaskError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; expected a readable file") from None


def joined(parts: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    """One buffer of all parts, and the byte range of each in it: int64, shape (n_parts, 2)."""
    stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]])
    return b"".join(parts), np.stack([starts, stops], axis=1).astype(np.int64)


def with_progress(items: Iterable[_Item], what: str, total: int) -> Iterator[_Item]:
    """The items one by one, with a bar on a terminal for as long as it takes."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total, console=console, transient=True, disable=not console.is_terminal)


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _number(cell: object) -> float:
    if not isinstance(cell, (bool, int, float)):
        return float("nan")
    try:
        return float(cell)
    except OverflowError:
        return float("inf")
