"""Reads a folder of structure files and the CSV that names them, as CGCNN, ALIGNN and people lay it out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from data.crystals.formats.atoms_records import unusable_record
from data.crystals.formats.structure_files import structure_file_format
from data.crystals.layouts.csv_files import MISSING, read_cells, typed_columns
from data.crystals.layouts.source import GROUP_COLUMN, Source, content_of, joined, some_of
from data.crystals.layouts.tables import id_column
from data.crystals.layouts.vasp_runs import read_vasp_runs, vasp_runs
from data.row_numbers import RowNumbers
from data.task import TaskError

CGCNN_TABLE = "id_prop.csv"
_ENDING = re.compile(
    r"(?:\.(?:cif|mcif|vasp|poscar|contcar|res|json|xyz|extxyz|xsf|cssr))?(?:\.(?:gz|bz2|xz))?$", re.IGNORECASE
)
_OF_VASP = ("CONTCAR", "vasprun.xml", "POSCAR")  # of one run, the last structure first
_EXPECTED = (
    "Expected names such as abc.cif, abc.vasp, abc/POSCAR or POSCAR_abc, the name without .cif/.vasp, or the name of "
    "the folder that a structure file is in"
)


def read_folder(folder: Path, table: Path | None = None) -> Source:
    """Read a folder of structure files and the one CSV that names them, or a folder of VASP runs.

    A column `file`, `id` or another name for ids names the structures: as files, as files without their endings, or
    as the folders that hold them. `id_prop.csv`, and a CSV whose first line names a structure, have no header: the
    names are in the first column and targets in the others, `target` or `target_1`, `target_2`, ...

    Args:
        folder: to look in, with the folders within it.
        table: the CSV; None for the only one that lies in the folder itself, or `id_prop.csv` among several.

    Raises:
        TaskError: there is no such CSV and no run, the CSV is malformed, most of the files that it names are missing
            (the row of one that is missing among others is a bad one), or a file it names is one of several that the
            name fits, or is a link that leads out of the folder.
    """
    if table is None:
        tables = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_table(path)]
        if not tables and (runs := vasp_runs(folder)):
            _refuse_links_out_of(folder, runs)
            return read_vasp_runs(folder, runs)
        cgcnn = [path for path in tables if path.name == CGCNN_TABLE]
        if len(cgcnn or tables) != 1:
            names = some_of([path.name for path in tables]) or "none"
            raise TaskError(
                f"{folder} must hold exactly one CSV file, the table of targets, or runs of VASP (vasprun.xml); found "
                f"{names}" + (". Give the path of one of them" if tables else f" among {_contents(folder)}")
            )
        table = (cgcnn or tables)[0]
    return _read_table(folder, table)


def _read_table(folder: Path, table: Path) -> Source:
    cells = read_cells(table)
    files = _structure_files(folder)
    files_by_key = _known_by(files)
    header = cells.lines[0] if cells.lines else []
    notes = list(cells.notes)
    if header and _is_a_row(header, files_by_key):
        targets = [f"target_{k}" for k in range(1, len(header))] if len(header) > 2 else ["target"]
        cells.lines.insert(0, ["id", *targets[: len(header) - 1]])
        cells.numbers.insert(0, 0)
        notes.append(f"{table.name} has no line of column names: they are taken as {', '.join(cells.lines[0])}.")
    columns, lines = cells.columns(table), cells.numbers[1:]
    by_lower = {name.lower(): name for name in reversed(columns)}
    ids = id_column(list(columns))
    column = by_lower.get("file") or ids
    if column is None:
        column = next(iter(columns))
        if not any(key in files_by_key for key in columns[column]):
            raise TaskError(
                f"{table} has the columns {list(columns)}; expected 'file' or 'id', or a first column, naming the "
                f"structures. {_EXPECTED}"
            )
    keys = columns[column]
    choice, named_files, note = _chosen_files(table, keys, files_by_key)
    if note:
        notes.append(note)
    _refuse_links_out_of(folder, [table, *(files[name] for name in choice if name is not None)])
    parts = [
        unusable_record(_no_file(table, line, column, key)) if name is None else content_of(files[name])
        for name, line, key in zip(choice, lines, keys, strict=True)
    ]
    names = [key if name is None else name for name, key in zip(choice, keys, strict=True)]
    digest = _digest(cells.sha256, names, parts)
    if n_unused := len(files.keys() - named_files - {"atom_init.json"}):
        notes.append(f"{n_unused} structure files in the folder have no row in {table.name}.")
    index = ids or column
    labels = {name: texts for name, texts in columns.items() if name not in (index, column)}
    typed_values, note = typed_columns(table, labels, lines)
    if note:
        notes.append(note)
    if GROUP_COLUMN in labels:
        typed_values[GROUP_COLUMN] = list(labels[GROUP_COLUMN])
    buffer, spans = joined(parts)
    return Source(
        index=list(columns[index]),
        columns=typed_values,
        names=names,
        format="structure_file",
        buffer=buffer,
        spans=spans,
        sha256=digest,
        row_numbers=RowNumbers("line", lines),
        taken=f"ids from column {index!r}, structures from the files that column {column!r} names",
        notes=" ".join(notes),
    )


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv") and not path.name.startswith(".")


def _contents(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return f"its {len(names)} files and folders ({some_of(names)})" if names else "no files at all"


def _structure_files(folder: Path) -> dict[str, Path]:
    """Structure files in a folder and those within it by their relative names, without hidden ones."""
    return {
        name: path
        for path in sorted(folder.rglob("*"))
        if structure_file_format(path.name)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        for name in [path.relative_to(folder).as_posix()]
    }


def _known_by(files: dict[str, Path]) -> dict[str, list[str]]:
    """Lists the files that each key means.

    A key is a relative name; that without its ending; the same two without the folders; or a folder with a structure
    file, by its relative name and its own. Whatever comes first in this order counts.
    """
    files_by_key: dict[str, list[str]] = {}
    for keys in (
        lambda path: [path.as_posix()],
        lambda path: [_without_ending(path.as_posix())],
        lambda path: [path.name],
        lambda path: [_without_ending(path.name)],
        lambda path: [path.parent.as_posix()] if path.parent.name else [],
        lambda path: [path.parent.name] if path.parent.name else [],
    ):
        names_by_key: dict[str, list[str]] = {}
        for name in files:
            for key in keys(PurePosixPath(name)):
                names_by_key.setdefault(key, []).append(name)
        for key, names in names_by_key.items():
            files_by_key.setdefault(key, names)
    return files_by_key


def _without_ending(name: str) -> str:
    return _ENDING.sub("", name)


def _is_a_row(first_line: list[str], files_by_key: dict[str, list[str]]) -> bool:
    """Says whether a first line is a row: an id and targets, or the name of a structure and nothing."""
    targets = [cell.lower() for cell in first_line[1:]]
    plain = all(
        cell in (*MISSING, "true", "false") or re.fullmatch(r"[-+]?[0-9.,]+(?:e[-+]?[0-9]+)?", cell) for cell in targets
    )
    return plain and (first_line[0] in files_by_key or any(cell not in MISSING for cell in targets))


def _no_file(table: Path, line: int, column: str, key: str) -> str:
    place = f"line {line} of {table.name}"
    if not key:
        return f"no structure file: {place} has nothing in column {column!r}"
    return f"no structure file {key!r} is in the folder; {place} names it in column {column!r}"


def _chosen_files(
    table: Path, keys: list[str], files_by_key: dict[str, list[str]]
) -> tuple[list[str | None], set[str], str]:
    """Chooses the structure file that each key means, and all that they fit, and a note where VASP left a choice."""
    matches = [files_by_key.get(key, []) for key in keys]
    considered = {name for match in matches for name in match}
    chosen: Counter[str] = Counter()
    for k, match in enumerate(matches):
        names = [_bare_name(name) for name in match]
        if len(names) > 1 and set(names) <= set(_OF_VASP) and len(set(names)) == len(names):
            best = min(names, key=_OF_VASP.index)
            matches[k] = [match[names.index(best)]]
            chosen[best] += 1
    missing = [key for key, match in zip(keys, matches, strict=True) if not match]
    if len(missing) > len(keys) / 2:  # then it is the column or the folder that is wrong, not a row
        raise TaskError(
            f"{table}: {len(missing)} of {len(keys)} rows name no structure file of {table.parent}: "
            f"{some_of(missing, 3)}. {_EXPECTED}"
        )
    if several := {key: match for key, match in zip(keys, matches, strict=True) if len(match) > 1}:
        key, match = next(iter(several.items()))
        raise TaskError(
            f"{table}: {len(several)} of {len(keys)} rows fit several structure files: {key} may be {some_of(match)}; "
            "write the file's own name in a column 'file'"
        )
    if repeated := [name for name, n in Counter(match[0] for match in matches if match).items() if n > 1]:
        repeated_keys = {key for key, match in zip(keys, matches, strict=True) if match[:1] == repeated[:1]}
        if len(repeated_keys) > 1:
            raise TaskError(
                f"{table}: {some_of(sorted(repeated_keys))} mean the same file {repeated[0]}; name each once"
            )
    note = " ".join(
        f"In {n} folders with several structures of a VASP run its last one is read, {name}."
        for name, n in chosen.items()
    )
    return [next(iter(match), None) for match in matches], considered, note


def _bare_name(name: str) -> str:
    name = _without_ending(PurePosixPath(name).name)
    return name.lower() if name.lower().startswith("vasprun") else name.upper()


def _refuse_links_out_of(folder: Path, files: list[Path]) -> None:
    """Refuses links out of the folder: one from elsewhere may link to a file of whoever reads it."""
    inside = folder.resolve()
    if wrong := [file for file in files if not file.resolve().is_relative_to(inside)]:
        names = [f"{file.relative_to(folder)} -> {file.resolve()}" for file in wrong]
        raise TaskError(
            f"{len(wrong)} of the files of {folder} lead out of it by a link: {some_of(names)}. "
            "Put the files themselves there"
        )


def _digest(table_sha256: str, names: list[str], parts: list[bytes]) -> str:
    digest = hashlib.sha256(table_sha256.encode())
    for name, part in zip(names, parts, strict=True):
        digest.update(f"{name}\n{len(part)}\n".encode() + part)
    return digest.hexdigest()
