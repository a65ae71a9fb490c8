"""Reads a JSON file of records, as JARVIS, pandas and web interfaces write them, as a table of cells.

Records are parsed one by one, so that a file of a gigabyte never becomes as many Python objects at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import orjson

from data.crystals.layouts.source import some_of, with_progress
from data.crystals.layouts.tables import FORMULA_COLUMNS, Table, kind_of_structure
from data.json_spans import child_spans, object_members, parse_json
from data.task import TaskError

_LAYOUTS = (
    'Matbench\'s {"index": [...], "columns": [...], "data": [[...], ...]}; a list of records [{"id": ..., "structure": '
    "{...}, ...}, ...], also one a line; or what pandas writes with any orient but 'values'"
)
_STRUCTURES = ("structure", "atoms", "cif", "final_structure", "initial_structure")


def read_json_table(path: Path, text: bytes | bytearray) -> Table:
    """Read a list of records, records one a line, or a data frame that pandas wrote by columns or by rows.

    Args:
        path: for messages.
        text: of the file, unpacked.

    Raises:
        TaskError: it is cut, or is none of these.
    """
    sha256 = hashlib.sha256(text).hexdigest()
    try:
        if has_records_in_lines(text):
            return _records(path, sha256, "line", _lines(text), text.count(b"\n") + 1)
        start = len(text) - len(text.lstrip())
        if text[start : start + 1] == b"[":
            return _records(path, sha256, "row", *_list(text, start))
        members = object_members(text, start)
        if {"schema", "data"} <= members.keys():  # pandas, orient="table"
            return _records(path, sha256, "row", *_list(text, members["data"][0]))
        return _frame(path, sha256, text, members)
    except TaskError:
        raise
    except ValueError as error:
        raise TaskError(f"{path} is not a complete JSON file ({error}); make or download it again") from None


def has_records_in_lines(text: bytes | bytearray) -> bool:
    """Says whether the first line is a JSON object and another begins after it (pandas, `lines=True`)."""
    start = re.match(rb"\s*", text).end()  # type: ignore[union-attr]
    end = text.find(b"\n", start)
    if end < 0 or text[start : start + 1] != b"{" or text[end : end + 100].lstrip()[:1] != b"{":
        return False
    try:
        return isinstance(parse_json(text[start:end]), dict)
    except ValueError:
        return False


def _lines(text: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(bytes(text).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _list(text: bytes | bytearray, start: int) -> tuple[Iterator[tuple[int, bytes]], int]:
    spans = child_spans(text, start).tolist()
    return ((number, bytes(text[a:b])) for number, (a, b) in enumerate(spans, start=1)), len(spans)


def _records(
    path: Path, sha256: str, unit: Literal["line", "row"], records: Iterator[tuple[int, bytes]], total: int
) -> Table:
    """Makes a table of numbered dictionaries; the columns are all their keys."""
    columns: dict[str, list[object]] = {}
    numbers: list[int] = []
    for number, content in with_progress(records, f"reading {path.name}", total):
        try:
            record = parse_json(content)
        except ValueError as error:
            raise TaskError(f"{path}: {unit} {number} is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise TaskError(f"{path}: {unit} {number} is {str(record)[:60]!r}, no dictionary; expected {_LAYOUTS}")
        for name, value in record.items():
            if name not in columns:
                columns[name] = [None] * len(numbers)
            columns[name].append(_cell(value))
        numbers.append(number)
        for cells in columns.values():
            if len(cells) < len(numbers):
                cells.append(None)
    if not numbers:
        raise TaskError(f"{path} has no rows")
    return Table(_with_values(columns), sha256, lines=numbers if unit == "line" else None)


def _frame(path: Path, sha256: str, text: bytes | bytearray, members: dict[str, tuple[int, int]]) -> Table:
    """Reads a table of pandas' orient 'columns', {column: {row: cell}}, or 'index', {row: {column: cell}}."""
    if {"lattice", "sites"} <= members.keys() or {"lattice_mat", "elements"} <= members.keys():
        raise TaskError(f"{path} is one structure; expected a file of many, or a folder with a CSV of targets")
    inner: dict[str, dict[str, tuple[int, int]]] = {}
    for name, (start, _) in members.items():
        if text[start : start + 1] != b"{":
            raise TaskError(
                f"{path} has no 'columns' and no 'data' and no 'index' at its top level but "
                f"{some_of(sorted(members))}; expected {_LAYOUTS}"
            )
        inner[name] = object_members(text, start)
    keys = list(next(iter(inner.values()), {}))
    input_columns = {*FORMULA_COLUMNS, *_STRUCTURES}
    if input_columns & {name.lower() for name in inner} and all(
        list(cells_of_key) == keys for cells_of_key in inner.values()
    ):
        columns = {name: [_cell(parse_json(text[a:b])) for a, b in cells.values()] for name, cells in inner.items()}
        return Table(_with_values(columns), sha256, _index(keys))
    if input_columns & {name.lower() for name in keys}:
        names = list(dict.fromkeys(name for cells_of_key in inner.values() for name in cells_of_key))
        columns = {
            name: [_cell(parse_json(text[slice(*row[name])])) if name in row else None for row in inner.values()]
            for name in names
        }
        return Table(_with_values(columns), sha256, _index(list(inner)))
    raise TaskError(
        f"{path} has {some_of(list(inner))} at its top level, with {some_of(keys)} in the first; expected a column "
        f"'structure' or 'composition' there, in {_LAYOUTS}"
    )


def _index(labels: list[str]) -> tuple[str, list[object]] | None:
    """Takes the index of a data frame; None where it counts rows."""
    return None if labels == [str(k) for k in range(len(labels))] else ("", list(labels))


def _cell(value: object) -> object:
    """Makes a value a cell of a table: None for a list, and for a dictionary that is no structure."""
    if isinstance(value, dict):
        content = orjson.dumps(value)
        return content if kind_of_structure(content) else None
    return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _with_values(columns: dict[str, list[object]]) -> dict[str, list[object]]:
    """Leaves out columns that hold nothing that a task could use, such as lists."""
    return {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
