"""Opens a task of crystals: a named one, or a file or folder of a user's own, which may hold an official one's rows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.layouts.readers import read_demo, read_path, task_name
from data.crystals.layouts.source import GROUP_COLUMN, Source
from data.crystals.rows import Rows
from data.crystals.task_table import (
    DEMO,
    OFFICIAL_NAMES,
    id_prefix,
    official_ids,
    official_task,
    published_file,
    task_names,
)
from data.stores.download import download
from data.task import USUAL_METRIC, Kind, Quantity, Task, TaskError, refuse_unknown

_QUANTITIES = ("energy_per_atom", "energy_per_cell", "other")
_DEMO_FILE = Path(__file__).parents[1] / "demo" / "demo.parquet"


def open_named(name: str, download_dir: Path) -> tuple[Task, Rows]:
    """See `DataFamily`."""
    if name == DEMO.name:
        source = read_demo(_DEMO_FILE)
        return DEMO, source.rows([str(row_id) for row_id in source.index], DEMO.target)
    task, source = official_task(name), read_matbench_file(_official_file(name, download_dir))
    if len(source.index) != task.n_official:
        raise TaskError(f"the file of {name} has {len(source.index)} rows; expected {task.n_official}")
    return task, source.rows(official_ids(task), _column(task, source))


def open_path(path: Path, target: str | None) -> tuple[Task, Rows]:
    """See `DataFamily`."""
    source = read_path(path)
    task, ids = _recognise(path, source, target)
    return task, source.rows(ids, _column(task, source))


def _recognise(path: Path, source: Source, target: str | None) -> tuple[Task, list[str]]:
    """The task and ids of a user's file: an official one's where its ids or its name and size say so."""
    ids = [str(row_id) for row_id in source.index]
    stem = task_name(path)
    prefixes = {match[1] if (match := re.fullmatch(r"(mb-.+)-\d+", row_id)) else "" for row_id in ids}
    by_prefix = {id_prefix(name): name for name in OFFICIAL_NAMES}
    notes = source.notes
    if len(prefixes) == 1 and (name := by_prefix.get(next(iter(prefixes)))):
        task = official_task(name)
        if target in (None, task.target):
            refuse_unknown(ids, set(official_ids(task)), f"{path} names", f"that {name} does not have")
            return _with_inputs(task, source), ids
    elif stem in OFFICIAL_NAMES and source.index == list(range(len(ids))):
        task = official_task(stem)
        if len(ids) == task.n_official and target in (None, task.target):
            return _with_inputs(task, source), official_ids(task)
        notes = f"Named like {stem}, without its {task.n_official} rows and target: no official folds."
    column, kind = _choose_target(path, source, target)
    chosen = "" if target else f", the target from column {column!r}"
    origin = f"Taken: {source.taken}{chosen}." if source.taken else ""
    if text := _first_text(source, column):
        n_texts = sum(isinstance(cell, str) and cell != "" for cell in source.columns[column])
        notes = f"Of the targets {n_texts} {'is' if n_texts == 1 else 'are'} no number: {text}. {notes}".strip()
    notes = " ".join(note for note in (origin, notes) if note)
    task = Task(
        name=f"own_{stem}" if stem in task_names() else stem,
        target=column,
        unit="",
        kind=kind,
        family="crystals",
        metric=USUAL_METRIC[kind],
        example="crystal",
        groups="composition",
        labels=f"Labels are the user's own, column {column!r} of {path.name}.",
        inputs="structures",
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


def _choose_target(path: Path, source: Source, target: str | None) -> tuple[str, Kind]:
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
        request = "no target is given" if target is None else f"target {target!r} cannot be used"
        raise TaskError(
            f"{path}: {request}; expected --target with one of its columns of numbers or booleans, {numeric} "
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


def with_quantity(task: Task, quantity: str) -> Task:
    """See `DataFamily`."""
    if quantity not in _QUANTITIES:
        raise TaskError(f"quantity {quantity!r}: expected one of {', '.join(_QUANTITIES)}")
    if (task.official or task.name == DEMO.name) and quantity != task.quantity:
        raise TaskError(f"quantity {quantity!r}: that of {task.name} is {task.quantity!r}; leave the option out")
    return replace(task, quantity=cast(Quantity, quantity))


def _official_file(name: str, download_dir: Path) -> Path:
    url, sha256 = published_file(name)
    return download(url, download_dir / f"{name}.json.gz", sha256)
