"""Finds the columns of ids, structures or formulas in a table from CSV, Parquet or JSON: makes it a `Source`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.crystals.layouts.source import GROUP_COLUMN, Source, joined, some_of
from data.crystals.rows import Format
from data.row_numbers import RowNumbers, counted
from data.task import TaskError

# Names as people write them; capitals do not count, and of several the first here is taken.
ID_COLUMNS = (
    "mbid", "mb_id", "id", "jid", "material_id", "mp_id", "mpid", "task_id", "structure_id", "entry_id", "identifier",
)  # fmt: skip
FORMULA_COLUMNS = (
    "composition", "formula", "reduced_formula", "formula_reduced", "pretty_formula", "formula_pretty",
    "chemical_formula",
)  # fmt: skip
_OFFICIAL_ID_COLUMNS = ("mbid", "mb_id")
_TEXT_OF_STRUCTURES = {"cif": "cif", "cif_text": "cif", "poscar": "poscar", "vasp": "poscar"}
# Columns of a text table that are text whatever they look like: 00123 is an id.
TEXT_COLUMNS = frozenset((*ID_COLUMNS, *FORMULA_COLUMNS, *_TEXT_OF_STRUCTURES, "file", "structure", GROUP_COLUMN))

StructureKind = Literal["pymatgen", "jarvis", "cif", "poscar"]
_FORMATS: dict[StructureKind, Format] = {
    "pymatgen": "matbench_json",
    "jarvis": "atoms_json",
    "cif": "structure_file",
    "poscar": "structure_file",
}


@dataclass(frozen=True, eq=False)
class Table:
    """Cells by column.

    Attributes:
        columns: a cell is a bool, a number, a string, None, or bytes: the JSON of a structure. All of one length.
        sha256: of the file.
        index: name ("" without one) and cells of what pandas keeps as the index; None where it counts rows only.
        notes: what the user should know about the reading, or "".
        lines: of the file, one a row, where it is a text; None where rows are counted.
    """

    columns: dict[str, list[object]]
    sha256: str
    index: tuple[str, list[object]] | None = None
    notes: str = ""
    lines: list[int] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    @property
    def row_numbers(self) -> RowNumbers:
        """Where the rows stand in the file."""
        return counted(len(self)) if self.lines is None else RowNumbers("line", self.lines)


def source_of(path: Path, table: Table) -> Source:
    """Chooses the columns of ids and of structures or formulas.

    Ids are, whichever comes first, in a column `mbid` or `mb_id`; the named index of pandas; a column of another of
    `ID_COLUMNS`; an index without a name. Else rows are numbered from 0.

    Raises:
        TaskError: there are no rows, no structures or formulas, several columns of structures, or a row without an id.
    """
    if not len(table):
        raise TaskError(f"{path} has no rows")
    ids_from, index = _ids(table)
    if empty := sum(row_id in (None, "") or row_id != row_id for row_id in index):
        raise TaskError(f"{path} has no id in {empty} of its {len(index)} rows; give every row one ({ids_from})")
    structures = _structure_column(path, table)
    labels = {
        name: cells
        for name, cells in table.columns.items()
        if name.lower() not in ID_COLUMNS and not any(isinstance(cell, bytes) for cell in cells)
    }
    if structures is None:
        return composition_source(path, index, labels, table.sha256, table.row_numbers, ids_from, table.notes)
    column, kind = structures
    labels.pop(column, None)
    buffer, spans = joined([_payload(cell) for cell in table.columns[column]])
    ending = {"cif": ".cif", "poscar": ".vasp"}.get(kind, "")
    return Source(
        index=index,
        columns=labels,
        names=[f"{row_id}{ending}" for row_id in index],
        format=_FORMATS[kind],
        buffer=buffer,
        spans=spans,
        sha256=table.sha256,
        row_numbers=table.row_numbers,
        taken=f"{ids_from}, structures from column {column!r}",
        notes=table.notes,
    )


def composition_source(
    path: Path,
    index: list[object],
    columns: dict[str, list[object]],
    sha256: str,
    row_numbers: RowNumbers,
    ids_from: str,
    notes: str = "",
) -> Source:
    """Makes a source of compositions, the formulas being one of the columns.

    Raises:
        TaskError: none of them has a name of `FORMULA_COLUMNS`.
    """
    column = formula_column(list(columns))
    if column is None:
        raise TaskError(
            f"{path} has no column of formulas among {list(columns)}; expected one named 'composition' or "
            "'formula', or structures: a column 'structure' of pymatgen's dictionaries or JSON, or 'cif' of CIF texts "
            "(a table of targets for structure files belongs in a folder with them: give the folder)"
        )
    formulas = ["" if cell is None else str(cell).strip() for cell in columns[column]]
    labels = {name: cells for name, cells in columns.items() if name != column}
    buffer, spans = joined([formula.encode() for formula in formulas])
    names = [str(row_id) for row_id in index]
    origin = f"{ids_from}, formulas from column {column!r}"
    return Source(index, labels, names, "composition", buffer, spans, sha256, row_numbers, origin, notes)


def formula_column(names: list[str]) -> str | None:
    """The column of formulas, by its name."""
    return _first_named(FORMULA_COLUMNS, names)


def id_column(names: list[str]) -> str | None:
    """The column of ids, by its name."""
    return _first_named(ID_COLUMNS, names)


def kind_of_structure(cell: object) -> StructureKind | None:
    """Tells the notation of the structure in a cell, JSON (text or bytes) or the text of a CIF; None if none."""
    if isinstance(cell, bytes):
        if b'"lattice_mat"' in cell:
            return "jarvis"
        return "pymatgen" if b'"lattice"' in cell and b'"sites"' in cell else None
    if isinstance(cell, str):
        if cell.lstrip()[:1] == "{":
            return kind_of_structure(cell.encode())
        return "cif" if "_cell_length_a" in cell else None
    return None


def refuse_repeated(path: Path, names: list[str]) -> None:
    """Raise TaskError where two columns have one name."""
    if len(set(names)) < len(names):
        raise TaskError(f"{path} has a column name twice: {names}; give every column its own")


def _first_named(candidates: tuple[str, ...], names: list[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in candidates if name in by_lower), None)


def _ids(table: Table) -> tuple[str, list[object]]:
    """Chooses the ids, and says in words where they come from."""
    column = id_column(list(table.columns))
    if table.index is not None:
        name, cells = table.index
        if name and (column is None or column.lower() not in _OFFICIAL_ID_COLUMNS):
            return f"ids from the index {name!r}", cells
        if column is None and len(set(map(str, cells))) == len(cells):
            return "ids from the index, which has no name", cells
    if column is None:
        return "rows numbered from 0", list(range(len(table)))
    return f"ids from column {column!r}", table.columns[column]


def _structure_column(path: Path, table: Table) -> tuple[str, StructureKind] | None:
    """Column of structures and their notation; None where there is none."""
    kinds: dict[str, StructureKind] = {}
    for name, cells in table.columns.items():
        first = next((cell for cell in cells if cell not in (None, "")), None)
        kind = kind_of_structure(first)
        if kind is None and isinstance(first, str) and "\n" in first:
            kind = _TEXT_OF_STRUCTURES.get(name.lower())  # type: ignore[assignment]
        if kind is not None:
            kinds[name] = kind
        elif name.lower() == "structure" and formula_column(list(table.columns)) is None:
            raise TaskError(
                f"{path}: column {name!r} holds {str(first)[:60]!r}; expected pymatgen Structures as dictionaries or "
                "JSON (`structure.as_dict()`, `structure.to_json()`), or CIF texts"
            )
    named = [name for name in kinds if name.lower() == "structure"] or list(kinds)
    if len(named) > 1:
        raise TaskError(
            f"{path} has structures in {len(named)} columns, {some_of(named)}: name one of them 'structure'"
        )
    return (named[0], kinds[named[0]]) if named else None


def _payload(cell: object) -> bytes:
    if isinstance(cell, bytes):
        return cell
    return cell.encode() if isinstance(cell, str) else b""
