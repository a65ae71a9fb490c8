"""Reads a JSON file in Matbench's layout, pandas' `orient="split"`; structures are located, not parsed.

The official files are up to a gigabyte; a row's structure is parsed where it is wanted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from data.crystals.layouts.source import Source, content_of
from data.crystals.layouts.tables import (
    Table,
    composition_source,
    formula_column,
    kind_of_structure,
    refuse_repeated,
    source_of,
)
from data.crystals.rows import Format, GzippedText
from data.json_spans import child_spans, decompressed, object_members, parse_json, table_spans
from data.row_numbers import counted
from data.task import TaskError

MEMBERS = frozenset(("index", "columns", "data"))
GZIP = b"\x1f\x8b"


def read_matbench_file(path: Path) -> Source:
    """Read a JSON file, gzipped or not, in Matbench's layout: `index`, `columns` and `data`.

    Structures are dictionaries of pymatgen (or JARVIS), in a column `structure` or the only column of dictionaries. A
    file without structures has formulas in a column such as `composition` or `formula`.

    Raises:
        TaskError: the file is unreadable, cut, or laid out otherwise.
    """
    content = content_of(path)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        text = decompressed(content) if content.startswith(GZIP) else content
        buffer = content if text is content else GzippedText(path)
        del content
        return read_matbench_text(path, sha256, buffer, text, object_members(text, text.find(b"{")))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(f"{path} is not a complete gzip file ({error}); download it again") from None
    except TaskError:
        raise
    except ValueError as error:
        raise _incomplete(path, error) from None


def read_matbench_text(
    path: Path,
    sha256: str,
    buffer: bytes | GzippedText,
    text: bytes | bytearray,
    members: dict[str, tuple[int, int]],
) -> Source:
    """Reads the unpacked text of a file in Matbench's layout.

    Args:
        path: for messages.
        sha256: of the file as it is.
        buffer: that structures are read from when they are wanted.
        text: of the file, unpacked.
        members: byte range of each value at its top level.

    Raises:
        TaskError: it is laid out otherwise.
    """
    if missing := MEMBERS - members.keys():
        raise TaskError(
            f"{path} has no {' and no '.join(map(repr, sorted(missing)))} at its top level but "
            f"{sorted(members)}; expected Matbench's layout: "
            '{"index": [...], "columns": ["structure", "<target>"], "data": [[{...}, 1.23], ...]}, or '
            "formulas as text in a column 'composition'"
        )
    try:
        index, names = (parse_json(text[slice(*members[key])]) for key in ("index", "columns"))
        spans = child_spans(text, members["data"][0])
        if not isinstance(index, list) or not isinstance(names, list) or not names or not len(spans):
            raise ValueError("'index' and 'columns' must be lists, and 'data' must have rows")
        if len(index) != len(spans):
            raise ValueError(f"'index' has {len(index)} entries, 'data' has {len(spans)} rows")
        names = [str(name) for name in names]
        refuse_repeated(path, names)
        cells = table_spans(text, spans, len(names))
        structure = _structure_column(path, names, text, cells)
        columns = {
            name: [parse_json(text[a:b]) for a, b in cells[:, k].tolist()]
            for k, name in enumerate(names)
            if k != structure
        }
    except TaskError:
        raise
    except ValueError as error:
        raise _incomplete(path, error) from None
    ids_from = "ids from 'index'"
    if structure is None:
        if any(kind_of_structure(next(iter(some), None)) for some in columns.values()):
            return source_of(path, Table(columns, sha256, ("index", index)))  # structures as text
        return composition_source(path, index, columns, sha256, counted(len(index)), ids_from)
    ids = [str(label) for label in index]
    origin = f"{ids_from}, structures from column {names[structure]!r}"
    kind = _format(text, cells[:, structure])
    return Source(index, columns, ids, kind, buffer, cells[:, structure], sha256, counted(len(ids)), origin)


def _incomplete(path: Path, error: ValueError) -> TaskError:
    return TaskError(
        f"{path} is not a complete JSON file in Matbench's layout ({error}); "
        "delete it and download it again, or mend it if it is your own"
    )


def _format(text: bytes | bytearray, spans: np.ndarray) -> Format:
    """Tells the format of the structures by the first of them."""
    first = next((bytes(text[a:b]) for a, b in spans.tolist() if text[a : a + 1] == b"{"), b"")
    return "atoms_json" if kind_of_structure(first) == "jarvis" else "matbench_json"


def _structure_column(path: Path, names: list[str], text: bytes | bytearray, cells: np.ndarray) -> int | None:
    """Finds the column of structures as dictionaries by its position; None where there are texts or formulas."""
    is_text = {k for k, start in enumerate(cells[0, :, 0].tolist()) if text[start : start + 1] == b'"'}
    if "structure" in names and names.index("structure") not in is_text:
        return names.index("structure")
    objects = [k for k, start in enumerate(cells[0, :, 0].tolist()) if text[start : start + 1] == b"{"]
    if len(objects) == 1:
        return objects[0]
    if formula_column(names) or is_text:
        return None
    raise TaskError(
        f"{path} has neither a column 'structure' nor 'composition' among {names}; expected pymatgen "
        "Structures as JSON objects, or formulas as text"
    )
