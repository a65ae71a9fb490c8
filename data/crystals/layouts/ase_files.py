"""Reads files of many structures as ASE writes them: extended XYZ, and ASE's databases (SQLite or JSON)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data.crystals.crystal import BadCrystalError, fractional, not_periodic
from data.crystals.formats.atoms_records import atoms_record, unusable_record
from data.crystals.formats.extended_xyz import frame_facts
from data.crystals.formats.text_files import count
from data.crystals.layouts.source import Source, content_of, joined, with_progress
from data.crystals.layouts.tables import id_column
from data.crystals.rows import Format
from data.row_numbers import RowNumbers
from data.task import TaskError

_Cell = bool | int | float | str | None
_GEOMETRY = ("Lattice", "pbc", "Properties")  # of a frame; what else its second line says are labels


def read_frames(path: Path, content: bytes | None = None) -> Source:
    """Read an extended XYZ file of many frames; labels are what the second line of each says (ASE's `info`).

    Args:
        path: the file, for its content and for messages.
        content: its text, where the file is packed.

    Raises:
        TaskError: the file is cut, is no XYZ file, or no frame has a cell.
    """
    content = content_of(path) if content is None else content
    spans, lines = _frame_spans(path, content)
    labels: list[dict[str, _Cell]] = []
    n_crystals = 0
    for start, stop in with_progress(spans.tolist(), f"reading {path.name}", len(spans)):
        try:
            facts = frame_facts(content[start:stop].decode().splitlines()[1])
        except BadCrystalError:  # the quarantine says why
            facts = {}
        n_crystals += "Lattice" in facts and bool(np.all(facts.get("pbc", True)))
        labels.append(_plain({name: fact for name, fact in facts.items() if name not in _GEOMETRY}))
    if not n_crystals:
        raise _no_crystals(path, "frame")
    return _source(content, labels, "structure_file", content, spans, RowNumbers("line", lines), "frame")


def read_ase_database(path: Path) -> Source:
    """Read an ASE database; labels are each row's key-value pairs, the numbers in its data, and its energy (eV).

    Raises:
        TaskError: the file is no ASE database, or has no rows.
    """
    import ase.db

    content = content_of(path)
    labels: list[dict[str, _Cell]] = []
    payloads: list[bytes] = []
    numbers: list[int] = []
    try:
        database = ase.db.connect(path, type="json" if path.suffix == ".json" else "db", use_lock_file=False)
        total = database.count()
        for row in with_progress(database.select(), f"reading {path.name}", total):
            numbers.append(row.id)
            pairs = {**_plain(row.key_value_pairs), **_plain(row.data)}
            for name in ("energy", "free_energy"):
                if name not in pairs and isinstance(row.get(name), (int, float)):
                    pairs[name] = float(row.get(name))
            labels.append(pairs)
            try:
                payloads.append(_record(row.toatoms()))
            except Exception as error:  # noqa: BLE001 - whatever a damaged row makes ASE raise
                payloads.append(unusable_record(f"not readable by ASE: {type(error).__name__}: {error}"))
    except Exception as error:  # SQLite's, JSON's and ASE's own
        raise TaskError(f"{path} is not an ASE database that can be read: {type(error).__name__}: {error}") from error
    if not labels:
        raise TaskError(f"{path} has no rows")
    if all(payload.startswith(b'{"unusable":"no crystal') for payload in payloads):
        raise _no_crystals(path, "row")
    return _source(content, labels, "atoms_json", *joined(payloads), RowNumbers("row", numbers), "row")


def _frame_spans(path: Path, content: bytes) -> tuple[np.ndarray, list[int]]:
    """Byte range and first line of each frame: a number of atoms, a line of labels, and a line for each atom."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not text in UTF-8: {error}") from None
    lines = content.splitlines(keepends=True)
    while lines and not lines[-1].strip():
        lines.pop()
    starts = [0]
    while starts[-1] < len(lines):
        start = starts[-1]
        text = lines[start].decode("utf-8-sig").strip()
        n_atoms = count(text)
        if n_atoms is None:
            raise TaskError(
                f"{path}: line {start + 1} is {text[:60]!r}; expected the number of atoms of frame {len(starts) - 1}, "
                "as extended XYZ has it"
            )
        starts.append(start + n_atoms + 2)
        if starts[-1] > len(lines):
            raise TaskError(f"{path} ends within frame {len(starts) - 2}, which begins at line {start + 1}: it is cut")
    if len(starts) == 1:
        raise TaskError(f"{path} has no frames")
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)[starts]
    return np.stack([offsets[:-1], offsets[1:]], axis=1), [start + 1 for start in starts[:-1]]


def _plain(values: Any) -> dict[str, _Cell]:
    plain: dict[str, _Cell] = {}
    for name, value in dict(values).items():
        item = value.item() if isinstance(value, np.generic) or getattr(value, "shape", None) == () else value
        if item is None or isinstance(item, (bool, int, float, str)):
            plain[str(name)] = item
    return plain


def _record(atoms: Any) -> bytes:
    """The crystal as JSON, or the reason why it is none."""
    if (occupancy := atoms.info.get("occupancy")) and any(
        len(kinds) > 1 or abs(sum(kinds.values()) - 1) > 1e-8 for kinds in dict(occupancy).values()
    ):
        return unusable_record(f"disordered structure: occupancies {occupancy}")
    lattice = np.array(atoms.cell.array)
    if not abs(np.linalg.det(lattice)) > 0:
        return unusable_record(f"no crystal: its cell is {lattice.tolist()}; expected three vectors")
    if not all(atoms.pbc):
        return unusable_record(f"{not_periodic(atoms.pbc)} (where it is one, set pbc=True)")
    return atoms_record(atoms.get_chemical_symbols(), fractional(atoms.positions, lattice), lattice)


def _no_crystals(path: Path, what: str) -> TaskError:
    return TaskError(f"{path}: no {what} is a crystal, with a cell of three vectors and periodic along each (pbc)")


def _source(
    content: bytes,
    labels: list[dict[str, _Cell]],
    kind: Format,
    buffer: bytes,
    spans: np.ndarray,
    row_numbers: RowNumbers,
    what: str,
) -> Source:
    """The source of rows under the ids in their labels, a database's own numbers, or numbered from 0."""
    names = list(dict.fromkeys(name for row in labels for name in row))
    columns: dict[str, list[object]] = {name: [row.get(name) for row in labels] for name in names}
    column = id_column(names)
    if column is not None and all(cell is not None for cell in columns[column]):
        index, origin = columns.pop(column), f"ids from {column!r} of each {what}"
    elif kind == "atoms_json":
        index, origin = list(row_numbers.values), f"ids from the database's own numbers of {what}s"
    else:
        index, origin = list(range(len(labels))), f"{what}s numbered from 0"
    return Source(
        index=index,
        columns=columns,
        names=[f"{row_id}.xyz" for row_id in index],
        format=kind,
        buffer=buffer,
        spans=spans,
        sha256=hashlib.sha256(content).hexdigest(),
        row_numbers=row_numbers,
        taken=f"{origin}, structures from each {what}",
    )
