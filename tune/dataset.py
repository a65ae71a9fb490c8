"""A task made ready for trials: graphs and features in Ray's object store, folds, validation splits.

The labels of the test parts leave this module in one way only, `Dataset.labels`, which `tune/evaluate.py`
alone reads. What trials get are `TrialFold`s, whose targets are NaN outside training and validation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import ray

from data.build_cache import graphs_of, say
from data.folds import Fold, Split, make_folds, split_fold
from data.graphs import Graphs, element_fractions
from data.quality import bad_target_reasons
from data.rows import Rows
from data.tasks import Task
from models.chgnet import cutoffs
from models.config import TrainConfig
from models.metrics import Kind
from models.train import TrainingRows
from tune.features import pretrained_outputs
from tune.trial import TrialFold, start_training

VALIDATION_FRACTION = 0.1  # of a fold's training part


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task as a sweep sees it; row k means the same everywhere.

    Attributes:
        task: its facts.
        ids: one a row.
        formulas: reduced formula, None where there is no graph.
        labels: all targets, the test parts' included; float64, NaN where there is none.
        quarantine: reason by row, for rows that take part in nothing.
        unscored: quarantined rows that have no usable label either (no target, or a repeated id).
        n_raised_cutoff: graphs whose cutoff was raised because an atom had no neighbour.
        data_sha256: of the rows.
        cache_key: of the graphs.
        folds: the five folds.
        splits: by fold.
        rows_ref: `TrainingRows` in the object store.
        trial_folds: by fold, a `TrialFold` in the object store.
    """

    task: Task
    ids: list[str]
    formulas: list[str | None]
    labels: np.ndarray
    quarantine: dict[int, str]
    unscored: set[int]
    n_raised_cutoff: int
    data_sha256: str
    cache_key: str
    folds: list[Fold]
    splits: dict[int, Split]
    rows_ref: ray.ObjectRef
    trial_folds: dict[int, ray.ObjectRef]


def load_dataset(
    task: Task,
    rows: Rows,
    weights: str,
    cache_folder: str,
    *,
    used_folds: set[int],
    seed: int,
    gpus_per_task: float,
    collapse: bool = True,
) -> Dataset:
    """Build or read everything trials share, and put it where they can read it without a copy.

    Args:
        task: of the rows.
        rows: all rows of the task.
        weights: CHGNet weights all trials start from.
        cache_folder: path or URI that holds the caches.
        used_folds: folds to split; the others may be too small for it.
        seed: of the validation splits.
        gpus_per_task: share of a GPU for computing features; 0 for the CPU.
        collapse: whether equivalent atoms of a crystal are computed once.

    Raises:
        SplitError: too few rows to split.
        TargetScaleError: an energy target that is not on the declared scale.
    """
    stored, key = graphs_of(rows, cutoffs(weights), cache_folder)
    # Read from now on where the trials will read it: the driver keeps no copy of its own.
    stored = replace(stored, graphs=ray.get(ray.put(stored.graphs)))
    bad_labels = bad_target_reasons(rows.ids, rows.targets)
    quarantine = {k: reason for k, reason in enumerate(stored.reasons) if reason} | bad_labels
    if quarantine:
        say(f"{len(quarantine)} of {len(rows)} rows quarantined; see quarantine.csv", style="yellow")
    if stored.n_raised_cutoff:
        say(f"{stored.n_raised_cutoff} crystals have isolated atoms; their cutoff was raised")
    usable = np.ones(len(rows), dtype=bool)
    usable[list(quarantine)] = False

    folds = make_folds(task, rows.ids, rows.groups)
    compositions = [formula or "" for formula in stored.formulas]
    splits = {
        fold.index: split_fold(
            fold,
            rows.ids,
            usable,
            compositions,
            groups=rows.groups,
            val_fraction=VALIDATION_FRACTION,
            seed=seed,
        )
        for fold in folds
        if fold.index in used_folds
    }
    cache = f"{cache_folder.rstrip('/')}/{key}"
    rows_ref = _training_rows(stored.graphs, weights, cache, gpus_per_task, collapse)
    training_rows: TrainingRows = ray.get(rows_ref)
    trial_folds = {k: _without_test_labels(split, rows.targets) for k, split in splits.items()}
    for trial_fold in trial_folds.values():  # a wrong declaration of the target ends here, not in every trial
        start_training(untrained(weights, task.kind), training_rows, trial_fold, task.kind, task.quantity)
    return Dataset(
        task=task,
        ids=rows.ids,
        formulas=stored.formulas,
        labels=rows.targets,
        quarantine=quarantine,
        unscored=set(bad_labels),
        n_raised_cutoff=stored.n_raised_cutoff,
        data_sha256=rows.sha256,
        cache_key=key,
        folds=folds,
        splits=splits,
        rows_ref=rows_ref,
        trial_folds={k: ray.put(trial_fold) for k, trial_fold in trial_folds.items()},
    )


def _training_rows(
    graphs: Graphs, weights: str, cache_folder: str, gpus_per_task: float, collapse: bool
) -> ray.ObjectRef:
    """`TrainingRows` in the object store; what this process held of them is let go."""
    features = outputs = None
    if weights != "random":
        features, outputs = pretrained_outputs(graphs, weights, cache_folder, gpus_per_task, collapse)
    return ray.put(TrainingRows(graphs, element_fractions(graphs), features, outputs, collapse))


def untrained(weights: str, kind: Kind) -> TrainConfig:
    """The config that fits the reference and trains nothing."""
    loss = "cross_entropy" if kind == "classification" else "mae"
    return TrainConfig.model_validate({"weights": weights, "freeze_depth": "none", "epochs": 0, "loss": loss})


def _without_test_labels(split: Split, targets: np.ndarray) -> TrialFold:
    visible = np.full(len(targets), np.nan)
    for part in (split.train, split.val):
        visible[part] = targets[part]
    return TrialFold(visible, split.train, split.val, split.test)
