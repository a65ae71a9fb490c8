"""Two runs on the same examples: how far apart they are, and how sure that is over examples.

A difference is always A minus B, of the metric: the mean over folds of the mean over a run's
seeds. What seeds do to it, and whether it is a gain, is `tune/analysis/verdict.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from data.metrics import Metric
from models.bootstrap import RESAMPLES, group_numbers, interval, resampled_scores
from tune.errors import RunError


@dataclass(frozen=True, eq=False)
class PairedPredictions:
    """Predictions of two runs on the rows that both have.

    Attributes:
        rows: fold, id, group, and y_true where it is a number; n rows.
        a: shape (seeds of A, n), in the task's unit, or probabilities; where predictions are no numbers, what the
            metric is made of, shape (seeds of A, n, values).
        b: the same of B.
    """

    rows: pd.DataFrame
    a: np.ndarray
    b: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A minus B.

    Attributes:
        value: of the metric.
        low: lower end of its 95 % interval over examples.
        high: upper end.
        p_value: of Wilcoxon's signed-rank test; None for a metric that is no mean over examples.
        n_groups: that were resampled.
    """

    value: float
    low: float
    high: float
    p_value: float | None
    n_groups: int

    def with_seeds(self, band: float) -> tuple[float, float]:
        """Ends of the 95 % interval over examples and seeds together.

        The two vary independently, so the distances from the value to the ends of either interval add as squares
        (Zou and Donner, Statistics in Medicine 27, 1693, 2008): to ask each by itself would call a difference real
        that both together make, 16 times in 100 instead of 5 where they are alike.

        Args:
            band: half of the 95 % interval over seeds alone; see `tune.analysis.verdict.Noise`.
        """
        below, above = max(0.0, self.value - self.low), max(0.0, self.high - self.value)
        return self.value - float(np.hypot(below, band)), self.value + float(np.hypot(above, band))


def paired_predictions(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame], metric: Metric) -> PairedPredictions:
    """Predictions of A and of B, one table a seed, on the (fold, id) that all of them have.

    Raises:
        RunError: they have none in common, or their labels differ.
    """
    tables = [table.set_index(["fold", "id"]) for table in (*a, *b)]
    common = tables[0].index
    for table in tables[1:]:
        common = common.intersection(table.index, sort=False)
    if not len(common):
        raise RunError("the runs have no id in a common fold: there is nothing to compare")
    tables = [table.loc[common] for table in tables]
    if not is_of_predictions(tables[0], metric):
        columns = metric.columns_of(tables[0])
        values = np.stack([table[columns].to_numpy() for table in tables])
        rows = tables[0][["group"]].reset_index()[["fold", "id", "group"]]
        return PairedPredictions(rows, values[: len(a)], values[len(a) :])
    labels = tables[0]["y_true"].to_numpy()
    for table in tables[1:]:
        differ = np.flatnonzero(table["y_true"].to_numpy() != labels)
        if len(differ):
            first = differ[0]
            raise RunError(
                f"the labels of {len(differ)} common ids differ, for example of {common[first][1]!r}: "
                f"{labels[first]!s} and {table['y_true'].iloc[first]!s}"
            )
    rows = tables[0][["group", "y_true"]].reset_index()[["fold", "id", "group", "y_true"]]
    predicted = np.stack([table["y_pred"].to_numpy() for table in tables])
    return PairedPredictions(rows, predicted[: len(a)], predicted[len(a) :])


def is_of_predictions(table: pd.DataFrame, metric: Metric) -> bool:
    """Whether a table's predictions are what the metric is made of, and not values that were made of them before."""
    return "y_pred" in table and not metric.scaled


def fold_scores(rows: pd.DataFrame, predicted: np.ndarray, metric: Metric) -> np.ndarray:
    """The metric by seed and fold, shape (seeds, folds); `predicted` is as in `PairedPredictions`."""
    fold = rows["fold"].to_numpy()
    rows_by_fold = [np.flatnonzero(fold == index) for index in np.unique(fold)]
    if predicted.ndim == 3:
        return np.stack([metric.of_means(predicted[:, which].mean(axis=1)) for which in rows_by_fold], axis=1)
    y_true = rows["y_true"].to_numpy()
    return np.array(
        [
            [metric.value(y_true[which], seed_predictions[which]) for which in rows_by_fold]
            for seed_predictions in predicted
        ]
    )


def abs_errors(paired: PairedPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors of A and of B by row, each the mean over its seeds, else the first value; both of shape (n,)."""
    if paired.a.ndim == 3:
        return paired.a[..., 0].mean(axis=0), paired.b[..., 0].mean(axis=0)
    y_true = paired.rows["y_true"].to_numpy()
    return np.abs(paired.a - y_true).mean(axis=0), np.abs(paired.b - y_true).mean(axis=0)


def difference(paired: PairedPredictions, metric: Metric, n_resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """A minus B with a 95 % interval over examples: what others of the kind would have given.

    The interval is that of `models/bootstrap.py`: groups are resampled, the same ones for both runs. The p value
    is that of Wilcoxon's signed-rank test (Biometrics Bulletin 1, 80, 1945) over the mean difference of each
    group; it asks about the typical group, not the mean.

    Args:
        paired: the predictions.
        metric: of the task.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    resampled = resampled_scores(paired.rows, [paired.a, paired.b], metric, n_resamples, seed)
    low, high = interval(resampled[:, 0] - resampled[:, 1])
    value = fold_scores(paired.rows, paired.a, metric).mean() - fold_scores(paired.rows, paired.b, metric).mean()
    group = group_numbers(paired.rows)
    p_value = None
    if metric.is_mean:
        error_a, error_b = abs_errors(paired)
        by_group = np.bincount(group, weights=error_a - error_b) / np.bincount(group)
        p_value = float(wilcoxon(by_group).pvalue) if by_group.any() else 1.0
    return Difference(float(value), low, high, p_value, int(group.max()) + 1)
