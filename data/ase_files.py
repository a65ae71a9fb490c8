"""Files of many structures that ASE reads: extended XYZ, and ASE's databases (SQLite or JSON)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.atoms_records import atoms_record, unusable_record
from data.crystal import not_periodic
from data.source import Source, content_of, joined, with_progress
from data.tables import id_column
from data.task_table import TaskError

_Cell = bool | int | float | str | None


def read_extended_xyz(path: Path, content: bytes | None = None) -> Source:
    """Read the frames of one extended XYZ file; labels are what stands in the second line of each (ASE's `info`).

    A frame that ASE cannot read is one bad row.

    Args:
        path: the file, for its content and for messages.
        content: its text, where the file is packed.

    Raises:
        TaskError: the file is cut, is no XYZ file, or no frame has a cell.
    """
    from ase.io.extxyz import read_xyz

    content = content_of(path) if content is None else content
    frames = list(_frames(path, content))
    labels: list[dict[str, _Cell]] = []
    payloads: list[bytes] = []
    for frame in with_progress(frames, f"reading {path.name}", len(frames)):
        try:
            (atoms,) = read_xyz(io.StringIO(frame), index=slice(None))
            labels.append(_labels(atoms))
            payloads.append(_record(atoms))
        except Exception as error:  # noqa: BLE001 - ASE's parser raises of every kind
            labels.append({})
            payloads.append(unusable_record(f"not readable as extended XYZ: {type(error).__name__}: {error}"))
    return _source(path, content, labels, payloads, None, "frame")


def read_ase_database(path: Path) -> Source:
    """Read an ASE database; labels are each row's key-value pairs, the numbers in its data, and its energy (eV).

    Raises:
        TaskError: the file is no ASE database, or has no rows.
    """
    import ase.db

    content = content_of(path)
    labels: list[dict[str, _Cell]] = []
    payloads: list[bytes] = []
    numbers: list[object] = []
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
    return _source(path, content, labels, payloads, numbers, "row")


def _frames(path: Path, content: bytes) -> Iterator[str]:
    """The text of each frame: a number of atoms, a line of labels, and a line for each atom."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not text in UTF-8: {error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    starts = [0]
    while starts[-1] < len(lines):
        start = starts[-1]
        try:
            n_atoms = int(lines[start])
        except ValueError:
            raise TaskError(
                f"{path}: line {start + 1} is {lines[start][:60]!r}; expected the number of atoms of frame "
                f"{len(starts) - 1}, as extended XYZ has it"
            ) from None
        starts.append(start + n_atoms + 2)
        if n_atoms < 0 or starts[-1] > len(lines):
            raise TaskError(f"{path} ends within frame {len(starts) - 2}, which begins at line {start + 1}: it is cut")
    if len(starts) == 1:
        raise TaskError(f"{path} has no frames")
    for start, stop in pairwise(starts):
        yield "\n".join([*lines[start:stop], ""])


def _labels(atoms: Any) -> dict[str, _Cell]:
    """Scalars of a frame: its info, and what ASE takes for results of a calculator, such as the energy."""
    results = atoms.calc.results if atoms.calc is not None else {}
    return {**_plain(results), **_plain(atoms.info)}


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
    frac_coords = np.linalg.solve(lattice.T, atoms.positions.T).T  # as they are, not wrapped into the cell
    return atoms_record(atoms.get_chemical_symbols(), frac_coords, lattice)


def _source(
    path: Path,
    content: bytes,
    labels: list[dict[str, _Cell]],
    payloads: list[bytes],
    numbers: list[object] | None,
    what: str,
) -> Source:
    """The source of rows that are parsed, under the ids in their labels, `numbers`, or numbered from 0."""
    names = list(dict.fromkeys(name for row in labels for name in row))
    columns: dict[str, list[object]] = {name: [row.get(name) for row in labels] for name in names}
    column = id_column(names)
    if column is not None and any(cell is None for cell in columns[column]):
        column = None
    index = columns.pop(column) if column is not None else numbers or list(range(len(labels)))
    taken = f"ids from {column!r} of each {what}" if column else f"ids from the database's own numbers of {what}s"
    if column is None and numbers is None:
        taken = f"{what}s numbered from 0"
    if all(payload.startswith(b'{"unusable":"no crystal') for payload in payloads):
        raise TaskError(f"{path}: no {what} is a crystal, with a cell of three vectors and periodic along each (pbc)")
    buffer, spans = joined(payloads)
    sha256 = hashlib.sha256(content).hexdigest()
    ids = [str(one) for one in index]
    return Source(index, columns, ids, "atoms_json", buffer, spans, sha256, f"{taken}, structures from each {what}")
