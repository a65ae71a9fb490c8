"""Test predictions joined with test labels, once: the only module that reads labels of a test part."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np

from data.errors import UserError
from data.metrics import Metric, all_scores, metric_of
from data.stores.storage import read_whole
from data.task import Task
from tune.dataset.dataset import Dataset
from tune.records.labelled import Labelled
from tune.trials.search import Outcome
from tune.trials.trial import MODEL_FILE, PREDICTIONS_FILE


class PredictionError(UserError, RuntimeError):
    """Predictions that do not cover the test part exactly once."""


@dataclass(frozen=True, eq=False)
class FoldScore:
    """One config on the test part of one fold.

    Attributes:
        fold: its index.
        test: predictions of the test part; those that `n_fallback` counts come last.
        validation: of the fold's validation part.
        metric: that they are judged by.
        scores: the metric and those beside it, of the test part.
        n_fallback: test examples that were not read, scored by the training mean.
    """

    fold: int
    test: Labelled
    validation: Labelled
    metric: Metric
    scores: dict[str, float]
    n_fallback: int


def score_fold(dataset: Dataset, outcome: Outcome) -> FoldScore:
    """Join one outcome's predictions with the labels of its test part.

    A quarantined example of the test part was not read and is predicted by the mean of the training labels.

    Raises:
        PredictionError: a test id has no prediction, or more than one.
    """
    split, shape = dataset.splits[outcome.fold], dataset.task.prediction_shape
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    arrays = dict(np.load(io.BytesIO(read_whole(filesystem, f"{path}/{PREDICTIONS_FILE}"))))
    for part, which in (("test", split.test), ("val", split.val)):
        values = arrays[part]
        if values.shape != (len(which), *shape) or not np.isfinite(values).all():
            raise PredictionError(
                f"fold {outcome.fold}: {len(values)} predictions, {np.isfinite(values).sum()} of them finite, "
                f"for {len(which)} {part} rows"
            )
    test_ids = set(dataset.folds[outcome.fold].test_ids)
    fallback = [row for row in dataset.quarantine if dataset.ids[row] in test_ids and row not in dataset.unscored]
    rows = np.concatenate([split.test, np.array(fallback, dtype=np.int64)])
    ids = [dataset.ids[row] for row in rows]
    scorable = {dataset.ids[row] for row in range(len(dataset.ids)) if row not in dataset.unscored} & test_ids
    if len(set(ids)) != len(ids) or set(ids) != scorable:
        raise PredictionError(f"fold {outcome.fold}: {len(ids)} predictions do not match {len(scorable)} test ids")
    mean, spread = _of_labels(dataset.task, dataset.labels[np.concatenate([split.train, split.val])])
    arrays["test"] = np.concatenate([arrays["test"], np.broadcast_to(mean, (len(fallback), *shape))])
    if "test_std" in arrays:  # nothing is known of what was not read: as uncertain as the labels are spread
        unknown = np.broadcast_to(spread, (len(fallback), *shape))
        arrays["test_std"] = np.concatenate([arrays["test_std"], unknown])
    if "test_trust" in arrays:
        arrays["test_trust"] = np.concatenate([arrays["test_trust"], np.zeros(len(fallback))])
    metric = metric_of(dataset.task).for_training(dataset.labels[split.train])
    test, val = (_labelled(dataset, which, arrays, part) for part, which in (("test", rows), ("val", split.val)))
    return FoldScore(outcome.fold, test, val, metric, all_scores(metric, test.y_true, test.y_pred), len(fallback))


def ensemble(members: list[FoldScore]) -> FoldScore:
    """Mean prediction of several seeds on one fold.

    `std` is the spread of the members at each id, `trust` the least of theirs: one wild member spoils a mean.
    """
    first = members[0]
    test, validation = (mean_of([getattr(member, part) for member in members]) for part in ("test", "validation"))
    scores = all_scores(first.metric, test.y_true, test.y_pred)
    return FoldScore(first.fold, test, validation, first.metric, scores, first.n_fallback)


def mean_of(members: list[Labelled]) -> Labelled:
    """The mean of several predictions of the same examples, with the spread between them and the least trust."""
    first, together = members[0], np.stack([member.y_pred for member in members])
    trusts = [member.trust for member in members if member.trust is not None]
    trust = np.min(trusts, axis=0) if len(trusts) == len(members) else None
    return replace(first, y_pred=together.mean(axis=0), std=together.std(axis=0, ddof=1), trust=trust)


def model_file(outcome: Outcome) -> bytes:
    """The model an outcome left, as `models.fitted.load_model` reads it."""
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    return read_whole(filesystem, f"{path}/{MODEL_FILE}")


def _labelled(dataset: Dataset, rows: np.ndarray, arrays: dict[str, np.ndarray], part: str) -> Labelled:
    """A part's labels beside the predictions that a trial has left."""
    return Labelled(
        [dataset.ids[row] for row in rows],
        [dataset.group_names[row] or "unknown" for row in rows],
        dataset.labels[rows],
        arrays[part],
        arrays.get(f"{part}_std"),
        arrays.get(f"{part}_trust"),
    )


def _of_labels(task: Task, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of labels, or of several classes the share of each, in the shape of a prediction."""
    if task.n_classes:
        labels = (labels[..., None] == np.arange(task.n_classes)).astype(np.float64)
    return labels.mean(axis=0), labels.std(axis=0)
