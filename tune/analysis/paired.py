"""Two runs on the same examples: how far apart they are, and how sure that is over examples.

A difference is always A minus B, of the metric (MAE or ROC-AUC): the mean over folds of the mean over a run's
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
        rows: fold, id, group, y_true; n rows.
        a: shape (seeds of A, n), in the task's unit, or probabilities.
        b: shape (seeds of B, n).
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
        p_value: of Wilcoxon's signed-rank test; None for a ROC-AUC.
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


def paired_predictions(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> PairedPredictions:
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


def fold_scores(rows: pd.DataFrame, predicted: np.ndarray, metric: Metric) -> np.ndarray:
    """The metric by seed and fold, shape (seeds, folds); `predicted` has shape (seeds, n)."""
    y_true, fold = rows["y_true"].to_numpy(), rows["fold"].to_numpy()
    rows_by_fold = [np.flatnonzero(fold == index) for index in np.unique(fold)]
    return np.array([[metric.value(y_true[which], of_seed[which]) for which in rows_by_fold] for of_seed in predicted])


def abs_errors(paired: PairedPredictions) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors of A and of B by row, each the mean over its seeds; both of shape (n,)."""
    y_true = paired.rows["y_true"].to_numpy()
    return np.abs(paired.a - y_true).mean(axis=0), np.abs(paired.b - y_true).mean(axis=0)


def difference(paired: PairedPredictions, metric: Metric, n_resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """A minus B with a 95 % interval over examples: what others of the kind would have given.

    The interval is that of `models/bootstrap.py`: groups are resampled, the same ones for both runs. The p value
    is that of Wilcoxon's signed-rank test (Biometrics Bulletin 1, 80, 1945) over the mean difference of each
    group; it asks about the typical group, not the mean.

    Args:
        paired: the predictions.
        metric: MAE or ROC-AUC.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    resampled = resampled_scores(paired.rows, [paired.a, paired.b], metric, n_resamples, seed)
    low, high = interval(resampled[:, 0] - resampled[:, 1])
    value = fold_scores(paired.rows, paired.a, metric).mean() - fold_scores(paired.rows, paired.b, metric).mean()
    group = group_numbers(paired.rows)
    p_value = None
    if metric.name == "mae":
        error_a, error_b = abs_errors(paired)
        by_group = np.bincount(group, weights=error_a - error_b) / np.bincount(group)
        p_value = float(wilcoxon(by_group).pvalue) if by_group.any() else 1.0
    return Difference(float(value), low, high, p_value, int(group.max()) + 1)
