"""Reads a CSV file as people's programs write it; what could be two numbers is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.crystals.layouts.source import content_of
from data.crystals.layouts.tables import TEXT_COLUMNS, Table, refuse_repeated
from data.task import TaskError

MISSING = frozenset(("", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat"))
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MINUS = "\u2212"  # as typesetters and some spreadsheets have it
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:inf|infinity)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+(?:[eE][-+]?[0-9]+)?")
_MAYBE_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2},[0-9]{3}")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:(?:,[0-9]{3})+\.[0-9]+|(?:\.[0-9]{3})+,[0-9]+|(?:,[0-9]{3}){2,})")
_MOST_BYTES_OF_A_CELL = 1 << 27  # a CIF may stand in one


@dataclass(frozen=True, eq=False)
class Cells:
    """The text of a CSV file.

    Attributes:
        lines: those that are not blank, each as many cells as the first; cells without surrounding space.
        numbers: of each in the file, from 1; where a cell holds line ends, of the first line.
        sha256: of the file.
        notes: on encoding and delimiter, where they are not UTF-8 and commas.
    """

    lines: list[list[str]]
    numbers: list[int]
    sha256: str
    notes: list[str]

    def columns(self, path: Path) -> dict[str, list[str]]:
        """Cells by the names in the first line.

        Raises:
            TaskError: there are no rows, or a name is missing or stands twice.
        """
        if len(self.lines) < 2:
            raise TaskError(f"{path} has no rows; expected a line of column names and one line a row")
        header = self.lines[0]
        for k, name in enumerate(header):
            if not name and k:
                raise TaskError(f"{path}: column {k + 1} has no name in the first line: {header}; give it one")
        refuse_repeated(path, header)
        return {name: [line[k] for line in self.lines[1:]] for k, name in enumerate(header)}


def read_csv_table(path: Path, content: bytes | None = None) -> Table:
    """Read a CSV file with a line of column names; ids, formulas and groups stay text.

    Args:
        path: the file, for its content and for messages.
        content: its text, where the file is packed.

    Raises:
        TaskError: it is no table, or a number in it could be two.
    """
    cells = read_cells(path, content)
    columns = cells.columns(path)
    index = columns.pop("", None)
    typed, note = typed_columns(path, columns, cells.numbers[1:])
    notes = " ".join([*cells.notes, *([note] if note else [])])
    return Table(typed, cells.sha256, None if index is None else ("", list(index)), notes, cells.numbers[1:])


def read_cells(path: Path, content: bytes | None = None) -> Cells:
    """Read the text of a CSV file whatever its encoding and delimiter.

    Raises:
        TaskError: it is no text, or its lines differ in their number of cells.
    """
    content = content_of(path) if content is None else content
    text, note = _decoded(path, content)
    notes = [note] if note else []
    csv.field_size_limit(_MOST_BYTES_OF_A_CELL)
    lines, numbers, delimiter = _lines(path, text)
    if delimiter != ",":
        notes.append(f"The cells of {path.name} are separated by {_DELIMITERS[delimiter]}.")
    return Cells(lines, numbers, hashlib.sha256(content).hexdigest(), notes)


def typed_columns(path: Path, columns: dict[str, list[str]], lines: list[int]) -> tuple[dict[str, list[object]], str]:
    """Reads text as numbers, booleans and None, but in columns that are text by their name; gives a note or "" too.

    Args:
        path: of the file, for messages.
        columns: cells by name.
        lines: of the file, one a row, for messages.

    Raises:
        TaskError: a number could be two.
    """
    free = {
        name: [f"-{cell[1:]}" if cell.startswith(_MINUS) else cell for cell in cells]
        for name, cells in columns.items()
        if name.lower() not in TEXT_COLUMNS
    }
    number, note = _reader_of_numbers(path, free, lines)
    typed: dict[str, list[object]] = {}
    for name, cells in columns.items():
        typed[name] = [_cell(text, number) for text in free[name]] if name in free else list(cells)
    return typed, note


def _cell(text: str, number: Callable[[str], float]) -> object:
    lower = text.lower()
    if lower in MISSING:
        return None
    if lower in ("true", "false"):
        return lower == "true"
    try:
        return number(text)
    except ValueError:
        return text


def _point_number(text: str) -> float:
    if not _NUMBER.fullmatch(text):  # Python would read 1_000 too
        raise ValueError(text)
    return float(text)


def _comma_number(text: str) -> float:
    return _point_number(text.replace(",", "."))


def _reader_of_numbers(
    path: Path, columns: dict[str, list[str]], lines: list[int]
) -> tuple[Callable[[str], float], str]:
    """Finds out how this file writes numbers, and notes decimal commas.

    Raises:
        TaskError: a comma in a column of numbers may be a decimal one or part thousands.
    """
    with_comma: list[tuple[int, str, str]] = []  # row, column, cell
    with_point: list[tuple[int, str, str]] = []
    for name, cells in columns.items():
        if not any("," in cell for cell in cells):
            with_point += [(k, name, cell) for k, cell in enumerate(cells) if "." in cell and _NUMBER.fullmatch(cell)][
                :1
            ]
            continue
        forms = (_NUMBER, _DECIMAL_COMMA, _THOUSANDS)
        if not all(cell.lower() in MISSING or any(form.fullmatch(cell) for form in forms) for cell in cells):
            continue  # text
        for k, cell in enumerate(cells):
            if _THOUSANDS.fullmatch(cell):
                raise TaskError(
                    f"{path}: line {lines[k]} has {cell!r} in column {name!r}; write numbers without separators of "
                    "thousands"
                )
            if "," in cell:
                with_comma.append((k, name, cell))
            elif "." in cell:
                with_point.append((k, name, cell))
    if not with_comma:
        return _point_number, ""
    row, name, cell = with_comma[0]
    where = f"{path}: line {lines[row]} has {cell!r} in column {name!r}"
    if with_point:
        other_row, other, point = with_point[0]
        raise TaskError(
            f"{where} and line {lines[other_row]} has {point!r} in column {other!r}: a comma is a decimal one only "
            "where the whole file has them; write decimal points, and no separators of thousands"
        )
    if all(_MAYBE_THOUSANDS.fullmatch(cell) for _, _, cell in with_comma):
        raise TaskError(
            f"{where}, which may be {cell.replace(',', '')} or {cell.replace(',', '.')}; write a decimal point"
        )
    return _comma_number, f"Commas in numbers of {path.name} are decimal ones."


def _decoded(path: Path, content: bytes) -> tuple[str, str]:
    """Decodes the text, and notes an encoding other than UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\x00" in content:
        raise TaskError(f"{path} is not a CSV file: it has bytes that are zero; save it as text in UTF-8")
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise TaskError(f"{path} is not a whole text in UTF-16: {error}") from None
        text = content.decode("cp1252", errors="replace")
        if "\ufffd" in text:
            text = content.decode("latin-1")
        encoding = "Latin-1, for it is no UTF-8"
    if encoding == "utf-8-sig":
        return text, ""
    return text, f"{path.name} is read as {encoding.replace('utf', 'UTF')}."


def _lines(path: Path, text: str) -> tuple[list[list[str]], list[int], str]:
    """Cuts the text into lines of equally many cells, by the delimiter that makes them so; numbers them."""
    readings: dict[str, list[list[str]]] = {}
    numbers: dict[str, list[int]] = {}
    problems: dict[str, csv.Error] = {}
    for delimiter in _DELIMITERS:
        if delimiter != "," and delimiter not in text:
            continue
        try:
            raw = _numbered(text, delimiter)
        except csv.Error as error:
            problems[delimiter] = error
            continue
        readings[delimiter] = _without_empty_ends([line for _, line in raw])
        numbers[delimiter] = [number for number, _ in raw]
    even = [
        delimiter
        for delimiter, lines in readings.items()
        if lines and len(lines[0]) > 1 and all(len(line) == len(lines[0]) for line in lines)
    ]
    # Of several, the one that makes column names that are known; else the one that comes first in the text.
    even = [candidate for candidate in even if TEXT_COLUMNS & {name.lower() for name in readings[candidate][0]}] or even
    if even:
        delimiter = min(even, key=text.index)
        return readings[delimiter], numbers[delimiter], delimiter
    if "," in problems:
        raise TaskError(f"{path} is not a CSV file: {problems[',']}")
    # None fits: say which line does not, of the one that the first line has most of.
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(readings, key=lambda candidate: (first.count(candidate), candidate == ","))
    lines = readings[delimiter]
    for number, line in zip(numbers[delimiter], lines, strict=True):
        if len(line) != len(lines[0]):
            raise TaskError(f"{path}: line {number} has {len(line)} cells, its header {len(lines[0])}: {line}")
    return lines, numbers[delimiter], delimiter


def _numbered(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Cells of each line that is not blank, with its number in the text: of a line of several the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    numbered = []
    first = 1
    for line in reader:
        cells = [cell.strip() for cell in line]
        if any(cells):
            numbered.append((first, cells))
        first = reader.line_num + 1
    return numbered


def _without_empty_ends(lines: list[list[str]]) -> list[list[str]]:
    """Leaves out last columns that are empty in every line, their name included."""
    width = max((max(k for k, cell in enumerate(line) if cell) + 1 for line in lines), default=0)
    return [line[:width] for line in lines]
