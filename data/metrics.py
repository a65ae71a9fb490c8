"""The metrics that tasks are judged by, in one table.

A task names its metric (`data.task.Task.metric`). Most are a function of the mean, over the examples, of values that
each example has by itself; these values are what the bootstrap resamples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data.task import Task

if TYPE_CHECKING:
    import pandas as pd

TRUSTED = 0.5  # a prediction whose trust is below it is marked (`models/crystals/trust.py`)


def _first(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


@dataclass(frozen=True)
class Metric:
    """A number that predictions are judged by.

    Attributes:
        name: as it appears in files, for example in `val_mae`.
        title: as people write it.
        mode: whether less or more is better.
        unit: whether it has the unit of the target, that unit squared, or none.
        columns: what the values of an example are called; empty where an example has no values by itself.
        values: the values of each example, of labels, predictions and `scale`: float64, shape (n, len(columns)). What
            an example is, is the first axis of labels and predictions.
        of_means: the metric of the means of the values, shape (..., len(columns)) to (...).
        of_all: the metric of all labels and predictions, where examples have no values.
        beside: names of other metrics that are stated with it.
        scaled: whether `scale` counts, which is the standard deviation of the training targets.
        scale: in the unit of the target.
    """

    name: str
    title: str
    mode: Literal["min", "max"]
    unit: Literal["target", "target squared", "none"]
    columns: tuple[str, ...] = ()
    values: Callable[[np.ndarray, np.ndarray, float], np.ndarray] | None = None
    of_means: Callable[[np.ndarray], np.ndarray] = _first
    of_all: Callable[[np.ndarray, np.ndarray], float] | None = None
    beside: tuple[str, ...] = ()
    scaled: bool = False
    scale: float = 1.0

    def value(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Score predictions, an example along the first axis of both arrays."""
        if self.of_all is not None:
            return self.of_all(y_true, y_pred)
        return float(self.of_means(self.of_examples(y_true, y_pred).mean(axis=0)))

    def of_examples(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """The values of each example, float64, shape (n, len(columns))."""
        assert self.values is not None
        return self.values(y_true, y_pred, self.scale)

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of one value of each example, as MAE is and RMSE is not."""
        return self.of_all is None and self.of_means is _first

    def columns_of(self, table: pd.DataFrame) -> list[str]:
        """The columns of a table that hold the values of examples, of which there may be several of a kind."""
        pattern = "|".join(rf"{column}(_\d+)?" for column in self.columns)
        return [name for name in table.columns if self.columns and re.fullmatch(pattern, name)]

    def for_training(self, targets: np.ndarray) -> Metric:
        """The metric for a model that was trained on some targets, shape (n, ...)."""
        return replace(self, scale=float(targets.std()) or 1.0) if self.scaled else self

    def better(self, a: float, b: float) -> bool:
        """Whether a beats b."""
        return a < b if self.mode == "min" else a > b

    def unit_of(self, target: str) -> str:
        """The unit of the metric where `target` is that of the targets; "" where there is none."""
        return {"target": target, "target squared": f"({target})^2" if target else "", "none": ""}[self.unit]


def _of_each(values: np.ndarray) -> np.ndarray:
    """The mean over all axes but the first, shape (n, 1)."""
    return values.reshape(len(values), -1).mean(axis=1)[:, None] if values.ndim > 1 else values[:, None]


def _right(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Whether the likeliest class is the true one: of scores of classes on the last axis, or of probabilities of 1."""
    if y_pred.ndim > y_true.ndim:
        return y_pred.argmax(axis=-1) == y_true
    return (y_pred >= 0.5) == (y_true >= 0.5)


def _areas(y_true: np.ndarray, y_pred: np.ndarray, _scale: float) -> np.ndarray:
    """The shares of an example's places where label and prediction agree on a class, then where either has it.

    Shape (n, 2 * classes). Places with a negative label count nowhere, as the borders of objects in VOC 2012.
    """
    n_classes, n_rows = y_pred.shape[-1], len(y_true)
    is_true = (y_true[..., None] == np.arange(n_classes)).reshape(n_rows, -1, n_classes)
    is_said = (y_pred.argmax(axis=-1)[..., None] == np.arange(n_classes)).reshape(n_rows, -1, n_classes)
    counts = (y_true >= 0).reshape(n_rows, -1, 1)
    both, either = ((on & counts).mean(axis=1) for on in (is_true & is_said, is_true | is_said))
    return np.concatenate([both, either], axis=1)


def _mean_ratio(means: np.ndarray) -> np.ndarray:
    """Intersection over union, mean over the classes that are there."""
    both, either = np.split(means, 2, axis=-1)
    ratio = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
    return np.nanmean(ratio, axis=-1)


def _relative(y_true: np.ndarray, y_pred: np.ndarray, _scale: float) -> np.ndarray:
    """Norm of an example's error over the norm of its label (Li et al., arXiv:2010.08895, the loss of FNO)."""
    n = len(y_true)
    error = np.linalg.norm((y_true - y_pred).reshape(n, -1), axis=1)
    return (error / np.maximum(np.linalg.norm(y_true.reshape(n, -1), axis=1), np.finfo(np.float64).tiny))[:, None]


def _area_under_curve(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """ROC-AUC; of a single class it is undefined and counts as 0.5, no better than chance."""
    if len(np.unique(y_true)) < 2:
        return 0.5
    from sklearn.metrics import roc_auc_score  # here: a second that regressions need not pay

    return float(roc_auc_score(y_true, y_pred))


_TABLE = (
    Metric(
        "mae", "MAE", "min", "target", ("abs_error",),
        lambda y_true, y_pred, _scale: _of_each(np.abs(y_true - y_pred)),
        beside=("rmse", "max_error"),
    ),
    Metric(
        "mse", "MSE", "min", "target squared", ("squared_error",),
        lambda y_true, y_pred, _scale: _of_each((y_true - y_pred) ** 2),
        beside=("mae",),
    ),
    Metric(
        "rmse", "RMSE", "min", "target", ("squared_error",),
        lambda y_true, y_pred, _scale: _of_each((y_true - y_pred) ** 2),
        of_means=lambda means: np.sqrt(means[..., 0]),
        beside=("mae", "max_error"),
    ),
    Metric(
        "rmse_over_std", "RMSE / std of the training targets", "min", "none", ("squared_error_over_variance",),
        lambda y_true, y_pred, scale: _of_each((y_true - y_pred) ** 2) / scale**2,
        of_means=lambda means: np.sqrt(means[..., 0]),
        beside=("rmse", "mae"),
        scaled=True,
    ),
    Metric("relative_l2", "relative L2 error", "min", "none", ("relative_error",), _relative, beside=("rmse",)),
    Metric(
        "max_error", "largest error", "min", "target",
        of_all=lambda y_true, y_pred: float(np.abs(y_true - y_pred).max()),
    ),
    Metric("rocauc", "ROC-AUC", "max", "none", of_all=_area_under_curve, beside=("accuracy",)),
    Metric(
        "accuracy", "accuracy", "max", "none", ("accuracy",),
        lambda y_true, y_pred, _scale: _of_each(_right(y_true, y_pred).astype(np.float64)),
    ),
    Metric(
        "miou", "mean intersection over union", "max", "none", ("intersection", "union"), _areas,
        of_means=_mean_ratio, beside=("accuracy",),
    ),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _TABLE}


def metric_of(task: Task) -> Metric:
    """The metric that a task is judged by."""
    return METRICS[task.metric]


def with_beside(metric: Metric) -> list[Metric]:
    """The metric, and those that are stated beside it."""
    return [metric, *(METRICS[name] for name in metric.beside)]


def all_scores(metric: Metric, y_true: np.ndarray, y_pred: np.ndarray) -> dict[str, float]:
    """The metric, and those that are stated beside it, by name."""
    return {score_metric.name: score_metric.value(y_true, y_pred) for score_metric in with_beside(metric)}


def value_columns(metric: Metric, n_values: int) -> list[str]:
    """Names of the columns of the values of an example, of which there may be several of a kind, as one a class."""
    n_each = n_values // len(metric.columns)
    if n_each == 1:
        return list(metric.columns)
    return [f"{column}_{k}" for column in metric.columns for k in range(n_each)]


def scores_of(metric: Metric, table: pd.DataFrame) -> dict[str, float]:
    """All scores of a table with columns y_true and y_pred, or with those of examples' values.

    Of such values the metric alone is made, and those beside it whose values are there too.
    """
    if "y_true" in table and not metric.scaled:
        return all_scores(metric, table["y_true"].to_numpy(), table["y_pred"].to_numpy())
    scores = {}
    for score_metric in with_beside(metric):
        if columns := score_metric.columns_of(table):
            scores[score_metric.name] = float(score_metric.of_means(table[columns].to_numpy().mean(axis=0)))
    return scores


def example_errors(metric: Metric, table: pd.DataFrame) -> np.ndarray:
    """How wrong the prediction of each example is, shape (n,): its absolute error, or the metric of it alone.

    A metric of which more is better is taken from 1. A table without a column of absolute errors has the values that
    the metric is made of.
    """
    if "abs_error" in table:
        return table["abs_error"].to_numpy()
    alone = np.asarray(metric.of_means(table[metric.columns_of(table)].to_numpy()))
    return alone if metric.mode == "min" else 1 - alone


def over_folds(folds: Sequence[tuple[int, int, dict[str, float]]]) -> dict[str, Any]:
    """Scores by fold, their mean, and their standard deviation over several folds; of the largest errors the largest.

    Args:
        folds: index, number of test examples and scores of each.
    """
    by_fold = [{"fold": fold, "n_test": n_test, **scores} for fold, n_test, scores in folds]
    by_name = {name: [scores[name] for *_, scores in folds] for name in folds[0][-1]}
    largest = by_name.pop("max_error", None)
    mean = {name: float(np.mean(values)) for name, values in by_name.items()}
    result: dict[str, Any] = {"folds": by_fold, "mean": mean, "n_folds": len(folds)}
    if largest is not None:
        result["max_error"] = max(largest)
    if len(folds) > 1:
        result["std_over_folds"] = {name: float(np.std(values, ddof=1)) for name, values in by_name.items()}
    return result
