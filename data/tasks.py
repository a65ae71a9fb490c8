"""Opens a task: a name or path becomes a `Task` and its rows; every run begins here."""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from data.families import DEFAULT, FAMILIES, data_family, task_names
from data.stores.places import expanded
from data.task import Task, TaskError, TaskRows, refuse_unknown


def open_task(
    spec: str,
    *,
    family: str = DEFAULT,
    target: str | None = None,
    quantity: str | None = None,
    ids_file: Path | None = None,
    download_dir: Path,
) -> tuple[Task, TaskRows]:
    """Open a task by its name or path.

    Args:
        spec: the name of an embedded or official task; or the path of a file or folder in one of the layouts that the
            family reads. A name beats a path that is called the same: `./demo` is the path.
        family: that reads a path; a name is of the family that has it.
        target: column of the targets, needed where a file of one's own has several.
        quantity: what the target of one's own data is, see `Task`; "other" unless given.
        ids_file: keeps only the ids in this text file, one a line, `#` begins a comment.
        download_dir: where official files are kept.

    Raises:
        TaskError: the task, its file, its target or an id is not as expected.
        DownloadError: an official file could not be fetched.
    """
    path = expanded(spec)
    owner = next((name for name in FAMILIES if spec in data_family(name).task_names()), None)
    if owner is not None:
        task, rows = data_family(owner).open_named(spec, download_dir)
        task = _beside(path, task)
    elif path.exists():
        task, rows = data_family(family).open_path(path, target)
    else:
        raise no_such_task(spec, family)
    if target not in (None, task.target):
        raise TaskError(f"target {target!r}: that of {task.name} is {task.target!r}; leave the option out")
    if quantity is not None:
        task = data_family(task.family).with_quantity(task, quantity)
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
    ids = {name for line in lines if (name := line.split("#", 1)[0].strip())}
    if not ids:
        raise TaskError(f"ids file {file} names no id; expected one a line")
    return ids


def no_such_task(spec: str, family: str) -> TaskError:
    """The error for a name that is neither a task nor a path, with the names there are."""
    names = task_names()
    close = difflib.get_close_matches(spec, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return TaskError(
        f"there is no task, file or folder {spec!r}: {hint}Expected one of {', '.join(names)}; or a path. "
        f"{data_family(family).layouts()}"
    )


def _beside(path: Path, task: Task) -> Task:
    """A named task, with a note where something in the working directory has its name."""
    if not path.exists():
        return task
    note = f"{task.name} is the task of that name; what lies here under that name is .{os.sep}{task.name}."
    return replace(task, notes=f"{task.notes} {note}".strip())


def _restrict(rows: TaskRows, ids_file: Path, task: Task) -> TaskRows:
    listed_ids = read_ids(ids_file)
    source, complaint = f"ids file {ids_file} names", f"that {task.name} does not have"
    refuse_unknown(sorted(listed_ids), set(rows.ids), source, complaint)
    key = "\n".join([rows.sha256, *sorted(listed_ids)])
    positions = [k for k, name in enumerate(rows.ids) if name in listed_ids]
    return rows.select(positions, hashlib.sha256(key.encode()).hexdigest())
