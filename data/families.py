"""The families of tasks: what an example is, by name, and what the family's folder in `data/` offers.

A family is a folder here and one in `models/` (`models/registry.py` has the other line). Its module `family.py` has
the functions that `DataFamily` lists, and imports what is heavy only where it is needed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from data.errors import UserError
from data.fold import Fold
from data.task import Task, TaskRows

FAMILIES = {"crystals": "data.crystals.family"}
DEFAULT = "crystals"  # reads a path where neither a model nor a user says what is there


class FamilyError(UserError, ValueError):
    """There is no such family."""


class DataFamily(Protocol):
    """The functions of a family's module in `data/`."""

    @property
    def SPLIT_RULES(self) -> tuple[str, ...]:  # noqa: N802 - a constant of a module
        """Ways to make folds beside the task's own, as values of `--split`."""
        ...

    def task_names(self) -> list[str]:
        """Names of the tasks that need no path: embedded ones, and official ones."""
        ...

    def open_named(self, name: str, download_dir: Path) -> tuple[Task, TaskRows]:
        """Opens one of `task_names`; what is not embedded is downloaded on first use.

        Raises:
            TaskError: the file is not as expected.
            DownloadError: it could not be fetched.
        """
        ...

    def open_path(self, path: Path, target: str | None) -> tuple[Task, TaskRows]:
        """Opens a file or folder of a user's own.

        Args:
            path: that exists.
            target: column of the targets; None where the user names none.

        Raises:
            TaskError: it is in no layout of the family, or has no such target.
        """
        ...

    def with_quantity(self, task: Task, quantity: str) -> Task:
        """The task with what the user says that its target is; TaskError where it cannot be that."""
        ...

    def official_folds(self, task: Task, ids: list[str]) -> list[Fold]:
        """The published folds of a task whose `official` is set, restricted to some ids.

        Raises:
            SplitError: an id is in none of them.
        """
        ...

    def official(self, name: str) -> tuple[Task, list[str]]:
        """A published task and the ids of all its rows, in their order; TaskError where there is none of that name."""
        ...

    def layouts(self) -> str:
        """The files and folders that are read, in a sentence or two for people."""
        ...


def data_family(name: str) -> DataFamily:
    """A family by its name.

    Raises:
        FamilyError: no such family.
    """
    if name not in FAMILIES:
        raise FamilyError(f"no family {name!r}: choose one of {', '.join(FAMILIES)}")
    module: Any = importlib.import_module(FAMILIES[name])
    return module


def task_names() -> list[str]:
    """Names that `open_task` accepts besides paths."""
    return [name for family in FAMILIES for name in data_family(family).task_names()]
