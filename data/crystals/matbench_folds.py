"""Matbench's official folds, as its package publishes them."""

from __future__ import annotations

import orjson

from data.crystals.task_table import package_folder
from data.fold import N_FOLDS, Fold, SplitError
from data.json_spans import object_members
from data.task import Task


def official_folds(task: Task, ids: list[str]) -> list[Fold]:
    """The folds of an official task, restricted to some ids.

    Raises:
        SplitError: an id is in none of them.
    """
    assert task.official is not None
    text = (package_folder("matbench") / "matbench_v0.1_validation.json").read_bytes()
    start = 0
    for key in ("splits", task.official):
        start, end = object_members(text, start)[key]
    stored = orjson.loads(text[start:end])
    present = set(ids)
    folds = [
        Fold(k, *([name for name in stored[f"fold_{k}"][part] if name in present] for part in ("train", "test")))
        for k in range(N_FOLDS)
    ]
    if unknown := sorted(present - set(folds[0].train_ids) - set(folds[0].test_ids)):
        raise SplitError(
            f"{len(unknown)} ids are not in the official folds of {task.official}: {', '.join(unknown[:5])}; "
            "expected Matbench's ids"
        )
    return folds
