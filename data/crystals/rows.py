"""Rows of a task before parsing: targets at hand, structures or formulas still bytes until wanted.

Between the readers (`layouts/readers.py`) and `Crystal`: the driver holds one buffer, or what a gzip file has in its
stead, and hands `RawChunk`s, small and picklable, to the workers, which turn them into crystals. Formulas
never become crystals; `data/crystals/compositions.py` reads them.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal
from data.crystals.formats.atoms_records import is_unusable, read_atoms_record
from data.crystals.formats.structure_files import read_structure_file
from data.crystals.formats.structure_json import read_structure_json
from data.row_numbers import RowNumbers
from data.task import TaskError

Format = Literal["matbench_json", "atoms_json", "structure_file", "packed", "composition"]


@dataclass(frozen=True, eq=False)
class RawChunk:
    """Consecutive rows, unparsed; small enough to send to another process.

    Attributes:
        start: position of the first row in its `Rows`.
        ids: one id a row.
        names: one a row, what messages call it: its id, or its file (whose ending tells the format).
        payloads: one a row, the bytes of its structure or formula.
        format: what the bytes are: a structure as pymatgen's JSON (of a Matbench file) or JARVIS's
            (`formats/atoms_records.py`), a structure file, `pack_crystal`'s layout, or a formula as UTF-8 text.
    """

    start: int
    ids: list[str]
    names: list[str]
    payloads: list[bytes]
    format: Format

    def crystals(self) -> Iterator[Crystal | BadCrystalError]:
        """As `read`, without the notes."""
        for row in self.read():
            yield row if isinstance(row, BadCrystalError) else row.crystal

    def read(self) -> Iterator[ReadCrystal | BadCrystalError]:
        """Parse row by row; a row that cannot be read yields its error and the next one follows.

        Raises:
            TaskError: the rows have no structures.
        """
        if self.format == "composition":
            first = f" (row {self.names[0]} is {self.payloads[0].decode()!r})" if self.names else ""
            raise TaskError(f"the task has compositions only{first}: there are no structures to make graphs of")
        for name, payload in zip(self.names, self.payloads, strict=True):
            try:
                if self.format == "matbench_json":
                    yield read_structure_json(payload)
                elif self.format == "atoms_json" or is_unusable(payload):
                    yield read_atoms_record(payload)
                elif self.format == "packed":
                    yield ReadCrystal(_unpack_crystal(payload))
                else:
                    yield read_structure_file(name, payload)
            except BadCrystalError as error:
                yield error


class GzippedText:
    """A slice of it is a slice of what a gzip file holds, unpacked again each time.

    The text of the largest tasks is a gigabyte, and wanted only where graphs are built. Slices that follow one
    another are read in one pass.
    """

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self.path, self.file = path, gzip.GzipFile(path)
        self.modified = os.fstat(self.file.fileno()).st_mtime_ns

    def __getitem__(self, span: slice) -> bytes:
        """The bytes of a span; TaskError where the file is no longer what was opened."""
        if os.fstat(self.file.fileno()).st_mtime_ns != self.modified:
            raise TaskError(f"{self.path} was changed while its structures were read: run the command again")
        self.file.seek(span.start)
        return self.file.read(span.stop - span.start)


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a task in order, structures or formulas unparsed.

    Attributes:
        ids: one a row; not necessarily unique (`data.targets.bad_target_reasons` finds repeats).
        targets: float64, shape (n_rows,), in the task's unit; NaN where missing or not a number,
            booleans as 0 and 1.
        groups: one a row (rows of a group share a fold), or None.
        sha256: identity of the content: what was read, the target column, a restriction to ids.
        names: what messages call each row.
        format: see `RawChunk`.
        buffer: bytes that hold every structure or formula; any slice of them is bytes.
        spans: int64, shape (n_rows, 2), byte range of each row's structure or formula in `buffer`.
        row_numbers: where the rows stand in the user's file.
    """

    ids: list[str]
    targets: np.ndarray
    groups: list[str] | None
    sha256: str
    names: list[str]
    format: Format
    buffer: bytes | GzippedText
    spans: np.ndarray
    row_numbers: RowNumbers

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def chunk(self, start: int, stop: int) -> RawChunk:
        """Rows `start` up to, not including, `stop`, cut at the last row."""
        return RawChunk(
            start=start,
            ids=self.ids[start:stop],
            names=self.names[start:stop],
            payloads=[self.buffer[a:b] for a, b in self.spans[start:stop].tolist()],
            format=self.format,
        )

    def held(self) -> Rows:
        """The same rows with a buffer of their own; their bytes are read in the order of the file."""
        order = np.argsort(self.spans[:, 0], kind="stable")
        payloads = [self.buffer[a:b] for a, b in self.spans[order].tolist()]
        ends = np.cumsum([len(payload) for payload in payloads], dtype=np.int64)
        spans = np.empty_like(self.spans)
        spans[order] = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        return replace(self, buffer=b"".join(payloads), spans=spans)

    def select(self, positions: list[int], sha256: str) -> Rows:
        """The rows at `positions`, in that order, under a new content identity."""
        return Rows(
            ids=[self.ids[k] for k in positions],
            targets=self.targets[positions],
            groups=None if self.groups is None else [self.groups[k] for k in positions],
            sha256=sha256,
            names=[self.names[k] for k in positions],
            format=self.format,
            buffer=self.buffer,
            spans=self.spans[positions],
            row_numbers=RowNumbers(self.row_numbers.unit, [self.row_numbers.values[k] for k in positions]),
        )


def pack_crystal(crystal: Crystal) -> bytes:
    """Lattice, coordinates and atomic numbers as little-endian bytes, 72 + 25 n_atoms in all."""
    return (
        crystal.lattice.astype("<f8").tobytes()
        + crystal.frac_coords.astype("<f8").tobytes()
        + crystal.numbers.astype(np.uint8).tobytes()
    )


def _unpack_crystal(payload: bytes) -> Crystal:
    n_atoms, rest = divmod(len(payload) - 72, 25)
    if n_atoms < 0 or rest:
        raise BadCrystalError(f"packed structure of {len(payload)} bytes; expected 72 + 25 per atom")
    # Copies: arrays over the bytes would be read-only, which torch warns about.
    return Crystal(
        numbers=np.frombuffer(payload, np.uint8, n_atoms, 72 + 24 * n_atoms).copy(),
        frac_coords=np.frombuffer(payload, "<f8", 3 * n_atoms, 72).reshape(-1, 3).copy(),
        lattice=np.frombuffer(payload, "<f8", 9).reshape(3, 3).copy(),
    )
