"""Reads what a user points at (a Matbench file, a table of compositions, a folder of structures, the demo).

Each becomes a `Source`. First step of the flow, called by `data/tasks.py`, which picks the target column.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.crystal import Crystal
from data.json_spans import child_spans, decompressed, object_members, parse_json, table_spans
from data.rows import Format, GzippedText, Rows, pack_crystal, structure_file_format
from data.task_table import Inputs, TaskError

GROUP_COLUMN = "group"
_FORMULA_COLUMNS = ("composition", "formula")
_ID_COLUMNS = ("mbid", "mb_id", "id")
_PANDAS_INDEX = ("", "__index_level_0__")  # what pandas calls an index without a name in CSV and in Parquet


@dataclass(frozen=True, eq=False)
class Source:
    """A table of labels and unparsed structures or formulas, before anything is chosen from it.

    Attributes:
        index: one a row, as stored: strings or ints.
        columns: cells of every other column by its name; a cell is a bool, a number, a string or None.
        names: what messages call each row.
        format: what the bytes of a structure or formula are, see `data.rows.RawChunk`.
        buffer: bytes that hold every structure or formula, see `data.rows.Rows`.
        spans: int64, shape (n_rows, 2), byte range of each row's structure or formula.
        sha256: of everything that was read.
        notes: what the user should know about the reading, or "".
    """

    index: list[object]
    columns: dict[str, list[object]]
    names: list[str]
    format: Format
    buffer: bytes | GzippedText
    spans: np.ndarray
    sha256: str
    notes: str = ""

    @property
    def inputs(self) -> Inputs:
        """What a row is."""
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
        )


def read_matbench_file(path: Path) -> Source:
    """Read a JSON file, gzipped or not, in Matbench's layout: `index`, `columns` and `data`.

    Structures are not parsed, only located. A file without structures has formulas in a column
    `composition` or `formula`.

    Raises:
        TaskError: the file is unreadable, cut, or laid out otherwise.
    """
    content = _content(path)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        buffer = GzippedText(path) if content.startswith(b"\x1f\x8b") else content
        text = content if buffer is content else decompressed(content)
        del content
        members = object_members(text, text.find(b"{"))
        if missing := {"index", "columns", "data"} - members.keys():
            raise TaskError(
                f"{path} has no {' and no '.join(map(repr, sorted(missing)))} at its top level but "
                f"{sorted(members)}; expected Matbench's layout: "
                '{"index": [...], "columns": ["structure", "<target>"], "data": [[{...}, 1.23], ...]}, or '
                "formulas as text in a column 'composition'"
            )
        index, names = (parse_json(text[slice(*members[key])]) for key in ("index", "columns"))
        spans = child_spans(text, members["data"][0])
        if not isinstance(index, list) or not isinstance(names, list) or not names or not len(spans):
            raise ValueError("'index' and 'columns' must be lists, and 'data' must have rows")
        if len(index) != len(spans):
            raise ValueError(f"'index' has {len(index)} entries, 'data' has {len(spans)} rows")
        cells = table_spans(text, spans, len(names))
        structure = _structure_column(path, [str(name) for name in names], text, cells)
        columns = {
            str(name): [parse_json(text[a:b]) for a, b in cells[:, k].tolist()]
            for k, name in enumerate(names)
            if k != structure
        }
        if structure is None:
            return _composition_source(path, index, columns, sha256)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(f"{path} is not a complete gzip file ({error}); download it again") from None
    except TaskError:
        raise
    except ValueError as error:
        raise TaskError(
            f"{path} is not a complete JSON file in Matbench's layout ({error}); "
            "delete it and download it again, or mend it if it is your own"
        ) from None
    ids = [str(one) for one in index]
    return Source(index, columns, ids, "matbench_json", buffer, cells[:, structure], sha256)


def read_composition_table(path: Path) -> Source:
    """Read a Parquet or CSV file with formulas in a column `composition` or `formula`.

    Ids are in a column `mbid`, `mb_id` or `id`; without one, rows are numbered from 0.

    Raises:
        TaskError: the file is unreadable, malformed, or lacks a column of formulas, rows or an id.
    """
    if path.suffix.lower() == ".csv":
        cells, digest = _read_csv(path)
        columns: dict[str, list[object]] = {
            name: list(some) if name in (*_FORMULA_COLUMNS, *_ID_COLUMNS, GROUP_COLUMN) else [*map(_csv_cell, some)]
            for name, some in cells.items()
        }
        sha256 = digest.hexdigest()
    else:
        columns, sha256 = _read_parquet(path)
    index = next((columns[name] for name in _ID_COLUMNS if name in columns), None)
    if index is None:
        index = list(range(len(next(iter(columns.values()), []))))
    elif empty := sum(one in (None, "") for one in index):
        raise TaskError(f"{path} has no id in {empty} of its {len(index)} rows; give every row one")
    others = {name: cells for name, cells in columns.items() if name not in (*_ID_COLUMNS, *_PANDAS_INDEX)}
    return _composition_source(path, index, others, sha256)


def read_folder(folder: Path) -> Source:
    """Read a folder of CIF and POSCAR files and the one CSV that names them in a column `file` or `id`.

    Raises:
        TaskError: there is not exactly one CSV, it is malformed, or a file it names is missing or a link that leads
            out of the folder.
    """
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise TaskError(f"{folder} must hold exactly one CSV file, the table of targets; found {found}")
    columns, digest = _read_csv(tables[0])
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and structure_file_format(path.name)
    }
    keys = columns.get("file") or columns.get("id")
    if keys is None:
        raise TaskError(f"{tables[0]} has the columns {list(columns)}; expected 'file' or 'id', naming the structures")
    names = _file_names(tables[0], [str(key) for key in keys], files)
    _refuse_links_out_of(folder, [tables[0], *(files[name] for name in names)])
    parts = [_content(files[name]) for name in names]
    for name, part in zip(names, parts, strict=True):
        digest.update(f"{name}\n{len(part)}\n".encode() + part)
    index = list(columns.get("id") or columns["file"])
    unused = len(files.keys() - set(names))
    notes = f"{unused} structure files in the folder have no row in {tables[0].name}." if unused else ""
    labels: dict[str, list[object]] = {
        name: list(cells) if name == GROUP_COLUMN else [_csv_cell(cell) for cell in cells]
        for name, cells in columns.items()
        if name not in ("id", "file")
    }
    buffer, spans = _joined(parts)
    return Source(list(index), labels, names, "structure_file", buffer, spans, digest.hexdigest(), notes)


def read_demo(path: Path) -> Source:
    """Read the data set that comes with the package, a Parquet file of flat arrays.

    Raises:
        TaskError: the file is missing or damaged.
    """
    content = _content(path)
    try:
        table = pq.read_table(io.BytesIO(content)).to_pydict()
        payloads = [
            pack_crystal(Crystal(np.array(numbers), np.array(frac_coords), np.array(lattice)))
            for numbers, frac_coords, lattice in zip(
                table["numbers"], table["frac_coords"], table["lattice"], strict=True
            )
        ]
        columns = {"e_form": table["e_form"], GROUP_COLUMN: table["prototype"]}
        ids = table["id"]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise TaskError(f"the demo data {path} is damaged ({error}); install the package again") from None
    buffer, spans = _joined(payloads)
    return Source(ids, columns, ids, "packed", buffer, spans, hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; expected a readable file") from None


def _joined(parts: list[bytes]) -> tuple[bytes, np.ndarray]:
    """One buffer of all parts, and the byte range of each in it."""
    stops = np.cumsum([len(part) for part in parts])
    starts = np.concatenate([[0], stops[:-1]])
    return b"".join(parts), np.stack([starts, stops], axis=1).astype(np.int64)


def _composition_source(path: Path, index: list[object], columns: dict[str, list[object]], sha256: str) -> Source:
    """A source of compositions, the formulas being one of the columns."""
    column = next((name for name in _FORMULA_COLUMNS if name in columns), None)
    if column is None:
        raise TaskError(
            f"{path} has no column of formulas among {list(columns)}; expected one named 'composition' or "
            "'formula' (a table of targets for structure files belongs in a folder with them: give the folder)"
        )
    formulas = ["" if cell is None else str(cell).strip() for cell in columns[column]]
    labels = {name: cells for name, cells in columns.items() if name != column}
    buffer, spans = _joined([formula.encode() for formula in formulas])
    return Source(index, labels, [str(one) for one in index], "composition", buffer, spans, sha256)


def _structure_column(path: Path, names: list[str], text: bytes | bytearray, cells: np.ndarray) -> int | None:
    """Position of the column of structures; None where there is one of formulas in its stead."""
    _refuse_repeated(path, names)
    if "structure" in names:
        return names.index("structure")
    objects = [k for k, start in enumerate(cells[0, :, 0].tolist()) if text[start : start + 1] == b"{"]
    if len(objects) == 1:
        return objects[0]
    if set(_FORMULA_COLUMNS) & set(names):
        return None
    raise TaskError(
        f"{path} has neither a column 'structure' nor 'composition' among {names}; expected pymatgen "
        "Structures as JSON objects, or formulas as text"
    )


def _refuse_repeated(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise TaskError(f"{path} has a column name twice: {names}; give every column its own")


def _read_parquet(path: Path) -> tuple[dict[str, list[object]], str]:
    """Columns of text, numbers or booleans by name, and the SHA-256 of the file."""
    content = _content(path)
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"{path} is not a Parquet file, or not a whole one: {error}") from None
    _refuse_repeated(path, table.column_names)
    if not len(table):
        raise TaskError(f"{path} has no rows")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    plain = {
        name: cells
        for name, cells in columns.items()
        if all(cell is None or isinstance(cell, (bool, int, float, str)) for cell in cells)
    }
    return plain, hashlib.sha256(content).hexdigest()


def _read_csv(path: Path) -> tuple[dict[str, list[str]], hashlib._Hash]:
    """Columns by name, and a digest that has seen the file."""
    content = _content(path)
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is not a CSV file in UTF-8: {error}") from None
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if len(lines) < 2:
        raise TaskError(f"{path} has no rows; expected a line of column names and one line a row")
    header = [name.strip() for name in lines[0]]
    _refuse_repeated(path, header)
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise TaskError(f"{path}: row {number} has {len(line)} cells, its header {len(header)}: {line}")
    columns = {name: [line[k].strip() for line in lines[1:]] for k, name in enumerate(header)}
    return columns, hashlib.sha256(content)


def _file_names(table: Path, keys: list[str], files: dict[str, Path]) -> list[str]:
    """The structure file each key means: its relative name, or that name without its ending."""
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(name.rsplit(".", 1)[0], []).append(name)
    matches = [[key] if key in files else by_stem.get(key, []) for key in keys]
    if wrong := [key for key, match in zip(keys, matches, strict=True) if len(match) != 1]:
        raise TaskError(
            f"{table}: {len(wrong)} of {len(keys)} rows name no CIF or POSCAR file of {table.parent}, or fit "
            f"several: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}. "
            "Expected names such as abc.cif, abc.vasp or POSCAR_abc, or the name without .cif/.vasp"
        )
    return [match[0] for match in matches]


def _refuse_links_out_of(folder: Path, files: list[Path]) -> None:
    """A folder from elsewhere may hold a link to a file of whoever reads it."""
    inside = folder.resolve()
    if wrong := [file for file in files if not file.resolve().is_relative_to(inside)]:
        raise TaskError(
            f"{len(wrong)} of the files of {folder} lead out of it by a link: "
            f"{', '.join(f'{file.relative_to(folder)} -> {file.resolve()}' for file in wrong[:5])}"
            f"{', ...' if len(wrong) > 5 else ''}. Put the files themselves there"
        )


def _csv_cell(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text or None


def _number(cell: object) -> float:
    return float(cell) if isinstance(cell, (bool, int, float)) else float("nan")
