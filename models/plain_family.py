"""What a family says that has no such thing: no copies to average over, no marks of trust, no other splits.

A family's `family.py` takes from here what it has not: `from models.plain_family import fit_trust as fit_trust`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.fold import DEFAULT_SPLIT
from data.task import Task
from models.family import CachedArrays
from models.model import Model


def refusal(_model: Model, task: Task, split_rule: str, tta: str) -> str | None:
    """See `Family`: there is nothing to average over at test time, and no split but the task's own."""
    if tta != "none":
        return f"--tta {tta}: examples of {task.family} are not moved"
    if split_rule != DEFAULT_SPLIT:
        return f"--split {split_rule}: {task.family} have no such groups; leave the option out"
    return None


def arrays(_need: Any, *, collapse: bool) -> list[CachedArrays]:  # noqa: ARG001 - as `Family` has it
    """See `Family`: nothing is computed beforehand."""
    return []


def caches(_task: Task) -> bool:
    """See `Family`: what is read is read anew by each sweep."""
    return False


def pretraining_note(_model: Model, _parameters: Mapping[str, Any]) -> str:
    """See `Family`: nothing was pretrained."""
    return ""


def target_note(_model: Model, _task: Task) -> str:
    """See `Family`: there is one way to take a target."""
    return ""


def small_task(*_: Any) -> None:
    """See `Family`: there is no embedded task for levers."""


def fit_trust(*_: Any) -> None:
    """See `Family`: nothing marks predictions."""


def about(_config: Any) -> dict[str, str]:
    """See `Family`: nothing of a config is kept with a model."""
    return {}
