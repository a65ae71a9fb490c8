"""Opens a task: a name or path becomes a `Task` and its `Rows`; every run begins here."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.layouts.readers import read_demo, read_path, task_name
from data.crystals.layouts.source import GROUP_COLUMN, Source
from data.crystals.rows import Rows
from data.stores.download import download
from data.stores.places import expanded
from data.task_table import (
    DEMO,
    OFFICIAL_NAMES,
    Quantity,
    Task,
    TaskError,
    id_prefix,
    no_such_task,
    official_ids,
    official_task,
    published_file,
    task_names,
)

__all__ = [
    "DEMO", "Task", "TaskError", "official_ids", "official_task", "open_task", "read_ids",
    "task_names",
]  # fmt: skip

_QUANTITIES = ("energy_per_atom", "energy_per_cell", "other")
_DEMO_FILE = Path(__file__).parent / "demo" / "demo.parquet"


def open_task(
    spec: str,
    *,
    target: str | None = None,
    quantity: str | None = None,
    ids_file: Path | None = None,
    download_dir: Path,
) -> tuple[Task, Rows]:
    """Open a task by its name or path.

    Args:
        spec: "demo"; an official name, downloaded on first use; or the path of a file or folder in one of the
            layouts that `read_path` reads. A name beats a path that is called the same: `./demo` is the path.
        target: column of the targets, needed where a file of one's own has several.
        quantity: what the target of one's own data is, see `Task`; "other" unless given.
        ids_file: keeps only the ids in this text file, one a line, `#` begins a comment.
        download_dir: where official files are kept.

    Raises:
        TaskError: the task, its file, its target or an id is not as expected.
        DownloadError: an official file could not be fetched.
    """
    path = expanded(spec)
    if spec == DEMO.name:
        task, source = _beside(path, DEMO), read_demo(_DEMO_FILE)
        rows = source.rows([str(one) for one in source.index], DEMO.target)
    elif spec in OFFICIAL_NAMES:
        task = _beside(path, official_task(spec))
        source = read_matbench_file(_official_file(spec, download_dir))
        if len(source.index) != task.n_official:
            raise TaskError(f"the file of {spec} has {len(source.index)} rows; expected {task.n_official}")
        rows = source.rows(official_ids(task), _column(task, source))
    elif path.exists():
        source = read_path(path)
        task, ids = _recognise(path, source, target)
        rows = source.rows(ids, _column(task, source))
    else:
        raise no_such_task(spec)
    if target not in (None, task.target):
        raise TaskError(f"target {target!r}: that of {task.name} is {task.target!r}; leave the option out")
    if quantity is not None:
        task = _with_quantity(task, quantity)
    return task, rows if ids_file is None else _restrict(rows, ids_file, task)


def read_ids(file: Path) -> set[str]:
    """Ids of a text file, one a line; `#` begins a comment.

    Raises:
        TaskError: the file cannot be read, or names none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"ids file {file} cannot be read: {error}") from None
    ids = {one for line in lines if (one := line.split("#", 1)[0].strip())}
    if not ids:
        raise TaskError(f"ids file {file} names no id; expected one a line")
    return ids


def _beside(path: Path, task: Task) -> Task:
    """A known task, with a note where something in the working directory has its name."""
    if not path.exists():
        return task
    note = f"{task.name} is the task of that name; what lies here under that name is .{os.sep}{task.name}."
    return replace(task, notes=f"{task.notes} {note}".strip())


def _recognise(path: Path, source: Source, target: str | None) -> tuple[Task, list[str]]:
    """The task and ids of a user's file: an official one's where its ids or its name and size say so."""
    ids = [str(one) for one in source.index]
    stem = task_name(path)
    found = {match[1] if (match := re.fullmatch(r"(mb-.+)-\d+", one)) else "" for one in ids}
    by_prefix = {id_prefix(name): name for name in OFFICIAL_NAMES}
    notes = source.notes
    if len(found) == 1 and (name := by_prefix.get(next(iter(found)))):
        task = official_task(name)
        if target in (None, task.target):
            _refuse_unknown(ids, set(official_ids(task)), f"{path} names", f"that {name} does not have")
            return _with_inputs(task, source), ids
    elif stem in OFFICIAL_NAMES and source.index == list(range(len(ids))):
        task = official_task(stem)
        if len(ids) == task.n_official and target in (None, task.target):
            return _with_inputs(task, source), official_ids(task)
        notes = f"Named like {stem}, without its {task.n_official} rows and target: no official folds."
    column, kind = _choose_target(path, source, target)
    chosen = "" if target else f", the target from column {column!r}"
    taken = f"Taken: {source.taken}{chosen}." if source.taken else ""
    if text := _first_text(source, column):
        n_texts = sum(isinstance(cell, str) and cell != "" for cell in source.columns[column])
        notes = f"Of the targets {n_texts} {'is' if n_texts == 1 else 'are'} no number: {text}. {notes}".strip()
    notes = " ".join(note for note in (taken, notes) if note)
    task = Task(
        name=f"own_{stem}" if stem in task_names() else stem,
        target=column,
        unit="",
        kind=kind,
        quantity="other",
        labels=f"Labels are the user's own, column {column!r} of {path.name}.",
        pretraining_overlap=False,
        official=None,
        n_official=None,
        notes=notes,
    )
    return _with_inputs(task, source), ids


def _with_inputs(task: Task, source: Source) -> Task:
    """The task with what its rows at hand are, which need not be what Matbench gives that task."""
    if source.inputs == task.inputs:
        return task
    if source.inputs == "structures":
        note = f"Structures are the user's own: Matbench gives {task.name} compositions only."
    elif task.official:
        note = (
            f"Compositions only: the structures of {task.name} were not read, so polymorphs are the same to a "
            "model, and one may be trained on where another is tested."
        )
    else:
        note = "Compositions only."
    return replace(
        task,
        notes=f"{task.notes} {note}".strip(),
        inputs=source.inputs,
        pretraining_overlap=task.pretraining_overlap and source.inputs == "structures",
    )


def _choose_target(
    path: Path, source: Source, target: str | None
) -> tuple[str, Literal["regression", "classification"]]:
    numbers = {
        name: [cell for cell in cells if isinstance(cell, (bool, int, float))]
        for name, cells in source.columns.items()
        if name != GROUP_COLUMN
    }
    numeric = [name for name, cells in numbers.items() if cells]
    if not numeric and (texts := [(name, text) for name in source.columns if (text := _first_text(source, name))]):
        examples = ", ".join(f"{name!r} has {text}" for name, text in texts[:5])
        raise TaskError(
            f"{path}: no column holds numbers or booleans to learn, written as 1.5, true or false: {examples}"
        )
    if target is None and len(numeric) == 1:
        target = numeric[0]
    if target not in numeric:
        asked = "no target is given" if target is None else f"target {target!r} cannot be used"
        raise TaskError(
            f"{path}: {asked}; expected --target with one of its columns of numbers or booleans, {numeric} "
            f"(all columns: {list(source.columns)})"
        )
    booleans = {isinstance(cell, bool) for cell in numbers[target]}
    if len(booleans) == 2:
        raise TaskError(f"{path}: column {target!r} mixes booleans and numbers; expected one or the other")
    return target, "classification" if booleans == {True} else "regression"


def _first_text(source: Source, column: str) -> str:
    """The first cell of a column that is no number, and where it stands; "" where there is none."""
    texts = (
        f"{cell!r} in {source.row_numbers.of(k)}"
        for k, cell in enumerate(source.columns[column])
        if isinstance(cell, str) and cell
    )
    return next(texts, "")


def _column(task: Task, source: Source) -> str:
    if task.target not in source.columns:
        raise TaskError(f"the file of {task.name} has no column {task.target!r} but {list(source.columns)}")
    return task.target


def _with_quantity(task: Task, quantity: str) -> Task:
    if quantity not in _QUANTITIES:
        raise TaskError(f"quantity {quantity!r}: expected one of {', '.join(_QUANTITIES)}")
    if (task.official or task.name == DEMO.name) and quantity != task.quantity:
        raise TaskError(f"quantity {quantity!r}: that of {task.name} is {task.quantity!r}; leave the option out")
    return replace(task, quantity=cast(Quantity, quantity))


def _restrict(rows: Rows, ids_file: Path, task: Task) -> Rows:
    wanted = read_ids(ids_file)
    who, complaint = f"ids file {ids_file} names", f"that {task.name} does not have"
    _refuse_unknown(sorted(wanted), set(rows.ids), who, complaint)
    kept = "\n".join([rows.sha256, *sorted(wanted)])
    positions = [k for k, one in enumerate(rows.ids) if one in wanted]
    return rows.select(positions, hashlib.sha256(kept.encode()).hexdigest())


def _refuse_unknown(ids: list[str], known: set[str], who: str, complaint: str) -> None:
    if unknown := [one for one in ids if one not in known]:
        first = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise TaskError(f"{who} {len(unknown)} ids {complaint}: {first}")


def _official_file(name: str, download_dir: Path) -> Path:
    url, sha256 = published_file(name)
    return download(url, download_dir / f"{name}.json.gz", sha256)
