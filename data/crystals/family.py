"""The family of crystals, of tasks whose rows are structures or formulas. What each function is for: `DataFamily`."""

from __future__ import annotations

from pathlib import Path

from data.crystals.left_out_rules import LEAVE_ELEMENTS_OUT, LEAVE_MOLECULES_OUT
from data.crystals.task_table import LAYOUTS, official_ids, official_task
from data.crystals.task_table import task_names as task_names
from data.fold import Fold
from data.task import Task, TaskRows

SPLIT_RULES = (LEAVE_ELEMENTS_OUT, LEAVE_MOLECULES_OUT)


def open_named(name: str, download_dir: Path) -> tuple[Task, TaskRows]:
    """See `DataFamily`."""
    from data.crystals import tasks  # brings pyarrow and more, which `--help` can do without

    return tasks.open_named(name, download_dir)


def open_path(path: Path, target: str | None) -> tuple[Task, TaskRows]:
    """See `DataFamily`."""
    from data.crystals import tasks

    return tasks.open_path(path, target)


def with_quantity(task: Task, quantity: str) -> Task:
    """See `DataFamily`."""
    from data.crystals import tasks

    return tasks.with_quantity(task, quantity)


def official_folds(task: Task, ids: list[str]) -> list[Fold]:
    """See `DataFamily`."""
    from data.crystals import matbench_folds

    return matbench_folds.official_folds(task, ids)


def official(name: str) -> tuple[Task, list[str]]:
    """See `DataFamily`."""
    task = official_task(name)
    return task, official_ids(task)


def layouts() -> str:
    """See `DataFamily`."""
    return LAYOUTS
