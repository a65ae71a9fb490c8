"""A task made ready for trials: graphs and features in Ray's object store, folds, validation splits.

The labels of the test parts leave this module in one way only, `Dataset.labels`, which `tune/sweep/evaluate.py`
alone reads. What trials get are `TrialFold`s, whose targets are NaN outside training and validation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from data.fold import DEFAULT_SPLIT, Fold
from data.folds import Split, make_folds, split_fold
from data.machine.console import say
from data.notes import commonest_notes, rows_were
from data.row_numbers import RowNumbers
from data.targets import bad_target_reasons
from data.task import Kind, Task, TaskRows
from models.family import FamilyRows
from models.registry import open_family, open_model
from tune.dataset.parts import cached_fields
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.spaces.space import SearchSpace

VALIDATION_FRACTION = 0.1  # of a fold's training part


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task as a sweep sees it; row k means the same everywhere.

    Attributes:
        task: its facts.
        ids: one a row.
        row_numbers: where the rows stand in the user's file.
        group_names: name of what a row has in common with others, such as its reduced formula; None of a rejected row.
        labels: all targets, the test parts' included; float64, shape (n_rows, *target_shape), NaN where there is none.
        quarantine: reason by row, for rows that take part in nothing.
        notes: what the reader of a row noted, by row; such rows take part.
        unscored: quarantined rows that have no usable label either (no target, or a repeated id).
        facts: on the rows as a whole, by name, for the results.
        data_sha256: of the rows.
        cache_key: of the graphs.
        folds: the five folds.
        split_rule: how they were made; those of the task unless the user asked for others.
        split_note: what a reader must know of others; "" of the task's.
        splits: by fold.
        rows_ref: `TrainingRows` in the object store.
        trial_folds: by fold, a `TrialFold` in the object store.
    """

    task: Task
    ids: list[str]
    row_numbers: RowNumbers
    group_names: list[str | None]
    labels: np.ndarray
    quarantine: dict[int, str]
    notes: dict[int, tuple[str, ...]]
    unscored: set[int]
    facts: dict[str, int]
    data_sha256: str
    cache_key: str
    folds: list[Fold]
    split_rule: str
    split_note: str
    splits: dict[int, Split]
    rows_ref: ray.ObjectRef
    trial_folds: dict[int, ray.ObjectRef]


def load_dataset(
    task: Task,
    rows: TaskRows,
    space: SearchSpace,
    cache_folder: str,
    *,
    used_folds: set[int],
    seed: int,
    gpus_per_task: float,
    collapse: bool = True,
    split_rule: str = DEFAULT_SPLIT,
    at_once: int | None = None,
) -> Dataset:
    """Build or read everything trials share, and put it where they can read it without a copy.

    Args:
        task: of the rows.
        rows: all rows of the task.
        space: whose trials are to run.
        cache_folder: path or URI that holds the caches.
        used_folds: folds to split; the others may be too small for it.
        seed: of the validation splits.
        gpus_per_task: share of a GPU for computing features; 0 for the CPU.
        collapse: whether what is equivalent by symmetry is computed once.
        split_rule: how the folds are made.
        at_once: processes that compute; None: as many as fit.

    Raises:
        SweepError: a model or a split that does not go with the task; or targets that are all the same.
        SplitError: too few rows to split.
        UnsuitedError: targets that do not go with the model.
    """
    inputs, rows_ref = _read(task, rows, space, cache_folder, gpus_per_task, collapse, split_rule, at_once)
    bad_labels = bad_target_reasons(rows.ids, rows.targets, rows.row_numbers)
    quarantine = _quarantine(inputs, bad_labels)
    notes = {k: row_notes for k, row_notes in enumerate(inputs.notes) if row_notes and k not in quarantine}
    _say_what_was_read(len(rows), quarantine, notes, inputs.remarks)
    usable = np.ones(len(rows), dtype=bool)
    usable[list(quarantine)] = False
    _refuse_equal_targets(task, rows.targets[usable])

    folds = make_folds(task, rows.ids, rows.groups) if inputs.folds is None else inputs.folds
    group_names = [name or "" for name in inputs.group_names]
    splits = {
        fold.index: split_fold(
            fold,
            rows.ids,
            usable,
            group_names,
            groups=rows.groups,
            val_fraction=VALIDATION_FRACTION,
            seed=seed,
        )
        for fold in folds
        if fold.index in used_folds
    }
    if any(split.by_row for split in splits.values()):
        say(one_group_note(task), style="yellow")
    trial_folds = {k: _without_test_labels(split, rows.targets) for k, split in splits.items()}
    for trial_fold in trial_folds.values():
        _start_baseline(task, space, inputs, trial_fold)
    return Dataset(
        task=task,
        ids=rows.ids,
        row_numbers=rows.row_numbers,
        group_names=inputs.group_names,
        labels=rows.targets,
        quarantine=quarantine,
        notes=notes,
        unscored=set(bad_labels),
        facts=inputs.facts,
        data_sha256=rows.sha256,
        cache_key=inputs.cache_key,
        folds=folds,
        split_rule=split_rule,
        split_note=inputs.split_note,
        splits=splits,
        rows_ref=rows_ref,
        trial_folds={k: ray.put(trial_fold) for k, trial_fold in trial_folds.items()},
    )


def _read(
    task: Task,
    rows: TaskRows,
    space: SearchSpace,
    cache_folder: str,
    gpus_per_task: float,
    collapse: bool,
    split_rule: str,
    at_once: int | None,
) -> tuple[FamilyRows, ray.ObjectRef]:
    """The rows as the family reads them, and what trials get of them, in the object store."""
    model, family = open_model(space.model), open_family(task.family)
    if problem := family.refusal(model, task, split_rule, "none"):
        raise SweepError(problem)
    need = family.needs(model, space.parameters)
    inputs = family.read(task, rows, need, cache_folder, split_rule, collapse=collapse, at_once=at_once)
    # Read from now on where the trials will read it: the driver keeps no copy of its own.
    rows_ref = ray.put(inputs.rows)
    inputs = replace(inputs, rows=ray.get(rows_ref))
    fields: dict[str, Any] = {}
    for arrays in family.arrays(need, collapse=collapse):
        cache = f"{cache_folder.rstrip('/')}/{inputs.cache_key}"
        fields |= cached_fields(arrays, rows_ref, len(rows), cache, gpus_per_task, at_once)
    if fields:
        rows_ref = ray.put(replace(inputs.rows, **fields))
        inputs = replace(inputs, rows=ray.get(rows_ref))
    return inputs, rows_ref


def _quarantine(inputs: FamilyRows, bad_labels: dict[int, str]) -> dict[int, str]:
    """Why rows take part in nothing, by row: the family cannot read them, their label is of no use, or both."""
    unreadable = {k: reason for k, reason in enumerate(inputs.reasons) if reason}
    both = {k: f"{bad_labels[k]}; {unreadable[k]}" for k in bad_labels.keys() & unreadable.keys()}
    return unreadable | bad_labels | both


def _say_what_was_read(
    n_rows: int, quarantine: dict[int, str], notes: dict[int, tuple[str, ...]], remarks: list[str]
) -> None:
    """Say on the terminal how many rows are quarantined, how many were read with notes, and what the family remarks."""
    if quarantine:
        say(f"{len(quarantine)} of {n_rows} rows quarantined; see quarantine.csv", style="yellow")
    if notes:
        say(f"{rows_were(len(notes))} read with notes, of {n_rows}; see notes.csv")
        for line in commonest_notes(notes.values()):
            say(f"  {line}")
    for remark in remarks:
        say(remark)


def _refuse_equal_targets(task: Task, targets: np.ndarray) -> None:
    """Raise SweepError if the usable targets are all the same."""
    if len(targets) and not np.ptp(targets, axis=0).any():
        value = f" are {targets[0]:g}" if targets.ndim == 1 else " are the same"
        raise SweepError(
            f"all {len(targets)} usable targets of {task.name} ({task.target}){value}: "
            "there is nothing to learn. Choose another target (--target)"
        )


def _start_baseline(task: Task, space: SearchSpace, inputs: FamilyRows, trial_fold: TrialFold) -> None:
    """Start the baseline on a fold: a wrong declaration of the target ends here, not in every trial.

    Raises:
        UnsuitedError: targets that do not go with the model.
    """
    reference = untrained(space, task.kind)
    fields = {key: value for key, value in reference.items() if key != "model"}
    model = open_model(reference["model"])
    model.start(model.config(**fields), inputs.rows, trial_fold.part(task), "cpu")


def one_group_note(task: Task) -> str:
    """A sentence for readers of results where validation is drawn row by row."""
    return (
        f"All training rows of a fold have one {task.groups}: validation is drawn row by row, so that near-duplicates "
        "of training rows can be in it and flatter what is chosen by it. Name groups of rows that belong together."
    )


def untrained(space: SearchSpace, kind: Kind) -> dict[str, Any]:
    """The baseline that every result is compared with: `model` and its config."""
    model = open_model(space.model)
    return open_family(model.family).baseline(model, space.parameters, kind)


def _without_test_labels(split: Split, targets: np.ndarray) -> TrialFold:
    """A fold as trials see it: targets of other rows than those of training and validation are NaN."""
    visible = np.full(targets.shape, np.nan)
    for part in (split.train, split.val):
        visible[part] = targets[part]
    return TrialFold(visible, split.train, split.val, split.test)
