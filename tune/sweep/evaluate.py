"""Test predictions joined with test labels, once: the only module that reads labels of a test part."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.errors import UserError
from data.metrics import TRUSTED, Metric, all_scores, metric_of, value_columns, with_beside
from data.stores.storage import read_whole
from data.task import Task
from tune.dataset.dataset import Dataset
from tune.trials.search import Outcome
from tune.trials.trial import MODEL_FILE, PREDICTIONS_FILE


class PredictionError(UserError, RuntimeError):
    """Predictions that do not cover the test part exactly once."""


@dataclass(frozen=True, eq=False)
class FoldScore:
    """One config on the test part of one fold.

    Attributes:
        fold: its index.
        predictions: id, group, y_true, y_pred, abs_error (and std of an ensemble, or of a model that tells its
            uncertainty), trust and trusted (`models/crystals/trust.py`), one row a test id. Where predictions are
            arrays, the values of each example that the metrics are made of instead, such as `relative_error`.
        validation: the same of the fold's validation part.
        arrays: y_true and y_pred (and std) by part, `test` and `val`; shapes (n, ...).
        scores: the metric of the task and those beside it.
        n_fallback: test examples that were not read, scored by the training mean.
    """

    fold: int
    predictions: pd.DataFrame
    validation: pd.DataFrame
    arrays: dict[str, dict[str, np.ndarray]]
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
    predicted = dict(np.load(io.BytesIO(read_whole(filesystem, f"{path}/{PREDICTIONS_FILE}"))))
    for part, which in (("test", split.test), ("val", split.val)):
        values = predicted[part]
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
    predicted["test"] = np.concatenate([predicted["test"], np.broadcast_to(mean, (len(fallback), *shape))])
    if "test_std" in predicted:  # nothing is known of what was not read: as uncertain as the labels are spread
        unknown = np.broadcast_to(spread, (len(fallback), *shape))
        predicted["test_std"] = np.concatenate([predicted["test_std"], unknown])
    if "test_trust" in predicted:
        predicted["test_trust"] = np.concatenate([predicted["test_trust"], np.zeros(len(fallback))])
    metric = metric_of(dataset.task).for_training(dataset.labels[split.train])
    parts = {"test": rows, "val": split.val}
    labelled = {part: _Labelled.of(dataset, which, predicted, part) for part, which in parts.items()}
    return _score(outcome.fold, dataset.task, metric, labelled, len(fallback))


def ensemble(dataset: Dataset, members: list[FoldScore]) -> FoldScore:
    """Mean prediction of several seeds on one fold.

    `std` is the spread of the members at each id, `trust` the least of theirs: one wild member spoils a mean.
    """
    first = members[0]
    labelled = {}
    for part, name in (("test", "predictions"), ("val", "validation")):
        tables = [getattr(member, name) for member in members]
        together = np.stack([member.arrays[part]["y_pred"] for member in members])
        marked = all("trust" in table for table in tables)
        labelled[part] = _Labelled(
            tables[0]["id"].tolist(),
            tables[0]["group"].tolist(),
            first.arrays[part]["y_true"],
            together.mean(axis=0),
            together.std(axis=0, ddof=1),
            np.min([table["trust"].to_numpy() for table in tables], axis=0) if marked else None,
        )
    metric = metric_of(dataset.task).for_training(dataset.labels[dataset.splits[first.fold].train])
    return _score(first.fold, dataset.task, metric, labelled, first.n_fallback)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Predictions of some rows beside their labels; `trust` of one that was not read, which no model has seen, is 0."""

    ids: list[str]
    groups: list[str]
    y_true: np.ndarray
    y_pred: np.ndarray
    std: np.ndarray | None
    trust: np.ndarray | None

    @classmethod
    def of(cls, dataset: Dataset, rows: np.ndarray, predicted: dict[str, np.ndarray], part: str) -> _Labelled:
        """The rows of a part, from what a trial has left of it."""
        return cls(
            [dataset.ids[row] for row in rows],
            [dataset.clusters[row] or "unknown" for row in rows],
            dataset.labels[rows],
            predicted[part],
            predicted.get(f"{part}_std"),
            predicted.get(f"{part}_trust"),
        )

    def table(self, task: Task, metric: Metric) -> pd.DataFrame:
        """A row an example: the predictions themselves where they are numbers, else the values of each example."""
        columns: dict[str, Any] = {"id": self.ids, "group": self.groups}
        if not task.prediction_shape:
            columns |= {"y_true": self.y_true, "y_pred": self.y_pred, "abs_error": np.abs(self.y_true - self.y_pred)}
            if self.std is not None:
                columns["std"] = self.std
        if task.prediction_shape or metric.scaled:
            for one in with_beside(metric):
                if one.columns:
                    values = one.of_examples(self.y_true, self.y_pred)
                    columns |= dict(zip(value_columns(one, values.shape[1]), values.T, strict=True))
        if self.trust is not None:
            columns |= {"trust": self.trust, "trusted": self.trust >= TRUSTED}
        return pd.DataFrame(columns)

    def arrays(self) -> dict[str, np.ndarray]:
        """Labels, predictions and uncertainty, as arrays."""
        uncertain = {} if self.std is None else {"std": self.std}
        return {"y_true": self.y_true, "y_pred": self.y_pred, **uncertain}


def _score(fold: int, task: Task, metric: Metric, labelled: dict[str, _Labelled], n_fallback: int) -> FoldScore:
    test, val = labelled["test"], labelled["val"]
    return FoldScore(
        fold,
        test.table(task, metric),
        val.table(task, metric),
        {part: of_part.arrays() for part, of_part in labelled.items()},
        all_scores(metric, test.y_true, test.y_pred),
        n_fallback,
    )


def _of_labels(task: Task, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of labels, or of several classes the share of each, in the shape of a prediction."""
    if task.n_classes:
        labels = (labels[..., None] == np.arange(task.n_classes)).astype(np.float64)
    return labels.mean(axis=0), labels.std(axis=0)


def model_file(outcome: Outcome) -> bytes:
    """The model an outcome left, as `models.fitted.load_model` reads it."""
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    return read_whole(filesystem, f"{path}/{MODEL_FILE}")
