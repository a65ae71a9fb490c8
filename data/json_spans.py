"""Finds where values lie inside a large JSON text without building them.

The official files are up to a gigabyte of JSON; their structures are parsed one by one, by the
workers that need them, from the byte ranges found here (`data/crystals/layouts/readers.py`, `data/folds.py`).
"""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import orjson

from data.machine.compiled import compiled, longer

_QUOTE, _BACKSLASH, _COMMA, _COLON = ord('"'), ord("\\"), ord(","), ord(":")
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = ord("["), ord("]"), ord("{"), ord("}")
_SPACE = ord(" ")  # every other JSON white space is a smaller byte


def decompressed(content: bytes) -> bytearray:
    """The content of a gzip file, grown in place so that it is never in memory twice.

    Raises:
        EOFError, zlib.error, gzip.BadGzipFile: `content` is cut or damaged.
    """
    text = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while block := file.read(1 << 20):
            text += block
    return text


def parse_json(text: bytes | bytearray) -> object:
    """Parse one JSON value, also with the NaN and Infinity that Python writes.

    Raises:
        ValueError: `text` is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def child_spans(text: bytes | bytearray, start: int) -> np.ndarray:
    """Byte ranges of the direct children of the list or object that begins at `start`.

    Args:
        text: JSON text.
        start: position of the opening bracket.

    Returns:
        int64, shape (n_children, 2): first byte and the byte after the last. An object's children
        are its keys and values in turn.

    Raises:
        ValueError: the text ends before the list or object does, or `start` holds neither.
    """
    if text[start : start + 1] not in (b"[", b"{"):
        raise ValueError(f"no JSON list or object at byte {start} but {text[start : start + 20]!r}")
    spans = _child_spans(np.frombuffer(text, dtype=np.uint8), start)
    if len(spans) and spans[0, 0] < 0:
        raise ValueError("the text ends in the middle of a value")
    return spans


def object_members(text: bytes | bytearray, start: int) -> dict[str, tuple[int, int]]:
    """Byte range of each value of the object that begins at `start`, by key.

    Raises:
        ValueError: the text is cut, or there is no JSON object at `start`.
    """
    spans = child_spans(text, start)
    if text[start : start + 1] != b"{" or len(spans) % 2:
        raise ValueError(f"no JSON object at byte {start} but {text[start : start + 20]!r}")
    keys = [parse_json(text[a:b]) for a, b in spans[0::2].tolist()]
    return {str(key): (a, b) for key, (a, b) in zip(keys, spans[1::2].tolist(), strict=True)}


def table_spans(text: bytes | bytearray, rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Byte ranges of the cells of a table stored as a list of rows.

    Args:
        text: JSON text.
        rows: int64, shape (n_rows, 2), each the range of one row, a JSON list.
        n_columns: number of cells of every row.

    Returns:
        int64, shape (n_rows, n_columns, 2).

    Raises:
        ValueError: a row is not a list of `n_columns` cells.
    """
    cells = _table_spans(np.frombuffer(text, dtype=np.uint8), rows, n_columns)
    if len(cells) and cells[-1, 0, 0] < 0:
        row = int(np.flatnonzero(cells[:, 0, 0] < 0)[0])
        raise ValueError(f"row {row + 1} is not a list of {n_columns} cells")
    return cells


@compiled
def _value_end(text: np.ndarray, start: int) -> int:
    """Position after the value that begins at `start`; -1 when the text ends first."""
    depth = 0
    in_string = False
    k = start
    while k < text.size:
        c = text[k]
        if in_string:
            if c == _BACKSLASH:
                k += 1  # whatever is escaped, it closes nothing
            elif c == _QUOTE:
                in_string = False
                if depth == 0:
                    return k + 1
        elif c == _QUOTE:
            in_string = True
        elif c in (_OPEN_LIST, _OPEN_OBJECT):
            depth += 1
        elif c in (_CLOSE_LIST, _CLOSE_OBJECT):
            if depth == 0:
                return k  # a number or word, ended by its container's bracket
            depth -= 1
            if depth == 0:
                return k + 1
        elif depth == 0 and (c in (_COMMA, _COLON) or c <= _SPACE):
            return k
        k += 1
    return -1


@compiled
def _child_spans(text: np.ndarray, start: int) -> np.ndarray:
    spans = np.empty((16, 2), dtype=np.int64)
    count = 0
    k = start + 1
    while True:
        while k < text.size and (text[k] <= _SPACE or text[k] in (_COMMA, _COLON)):
            k += 1
        end = -1
        if k < text.size:
            if text[k] in (_CLOSE_LIST, _CLOSE_OBJECT):
                return spans[:count].copy()
            end = _value_end(text, k)
        if end < 0:
            return np.full((1, 2), -1, dtype=np.int64)
        if count == len(spans):
            spans = longer(spans, 2 * count)
        spans[count, 0] = k
        spans[count, 1] = end
        count += 1
        k = end


@compiled
def _table_spans(text: np.ndarray, rows: np.ndarray, n_columns: int) -> np.ndarray:
    cells = np.empty((len(rows), n_columns, 2), dtype=np.int64)
    for row in range(len(rows)):
        first = rows[row, 0]
        if text[first] == _OPEN_LIST:
            spans = _child_spans(text, first)
            if len(spans) == n_columns:
                for column in range(n_columns):
                    cells[row, column, 0], cells[row, column, 1] = spans[column, 0], spans[column, 1]
                continue
        for rest in range(row, len(rows)):
            cells[rest, 0, 0] = -1
        return cells
    return cells
