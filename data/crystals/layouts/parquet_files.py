"""Reads a Parquet file as a table of cells, with the index that pandas keeps in it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data.crystals.layouts.source import content_of
from data.crystals.layouts.tables import Table, refuse_repeated
from data.task import TaskError


def read_parquet_table(path: Path) -> Table:
    """Reads columns of text, numbers, booleans or structures; leaves out others, such as dates and lists.

    Raises:
        TaskError: the file is damaged, has a column name twice, or no rows.
    """
    content = content_of(path)
    try:
        table = pq.read_table(io.BytesIO(content))
        names = _index_names(table)
        refuse_repeated(path, table.column_names)
        columns = {name: _cells(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{path} is not a Parquet file, or not a whole one: {error}") from None
    if not len(table):
        raise TaskError(f"{path} has no rows")
    plain = {name: cells for name, cells in columns.items() if cells is not None}
    index = None
    if len(names) == 1 and names[0] in plain:
        name = "" if names[0].startswith("__index_level_") else names[0]
        index = (name, plain.pop(names[0]))
    return Table(plain, hashlib.sha256(content).hexdigest(), index)


def _index_names(table: pa.Table) -> list[str]:
    """Columns that were a data frame's index; one that counts rows is no column."""
    metadata = (table.schema.metadata or {}).get(b"pandas")
    try:
        names = json.loads(metadata)["index_columns"] if metadata else []
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)]


def _cells(column: pa.ChunkedArray) -> list[object] | None:
    """Cells as Python's own; None where they are nothing that a task could use."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return [None if cell is None else float(cell) for cell in column.to_pylist()]
    if pa.types.is_struct(kind):
        return [None if cell is None else orjson.dumps(cell) for cell in column.to_pylist()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            return column.cast(pa.string()).to_pylist()  # text that was written without saying so
        except pa.ArrowException:
            return None
    is_plain = (
        pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )  # fmt: skip
    return column.to_pylist() if is_plain else None
