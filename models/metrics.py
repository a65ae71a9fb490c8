"""What a prediction is judged by: MAE for regressions, ROC-AUC for classifications, as Matbench does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["regression", "classification"]
TRUSTED = 0.5  # a prediction whose trust is below it is marked (`models/crystals/trust.py`)


@dataclass(frozen=True)
class Metric:
    """The one number that choices are made by.

    Attributes:
        name: as it appears in results, for example `val_mae`.
        mode: whether less or more is better.
    """

    name: Literal["mae", "rocauc"]
    mode: Literal["min", "max"]

    def value(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Score predictions (probabilities for a classification); both arrays have shape (n,).

        ROC-AUC of a single class is undefined and counts as 0.5, no better than chance.
        """
        if self.name == "mae":
            return float(np.abs(y_true - y_pred).mean())
        if len(np.unique(y_true)) < 2:
            return 0.5
        from sklearn.metrics import roc_auc_score  # here: a second that regressions need not pay

        return float(roc_auc_score(y_true, y_pred))

    def better(self, a: float, b: float) -> bool:
        """Whether a beats b."""
        return a < b if self.mode == "min" else a > b


def metric_of(kind: Kind) -> Metric:
    """The metric of a kind of task."""
    return Metric("mae", "min") if kind == "regression" else Metric("rocauc", "max")


def all_scores(kind: Kind, y_true: np.ndarray, y_pred: np.ndarray) -> dict[str, float]:
    """Every score of a prediction: MAE, RMSE and largest error, or ROC-AUC and accuracy at 0.5."""
    if kind == "classification":
        accuracy = float(((y_pred >= 0.5) == (y_true >= 0.5)).mean())
        return {"rocauc": metric_of(kind).value(y_true, y_pred), "accuracy": accuracy}
    error = np.abs(y_true - y_pred)
    return {
        "mae": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "max_error": float(error.max()),
    }


def over_folds(folds: Sequence[tuple[int, int, dict[str, float]]]) -> dict[str, Any]:
    """Scores by fold, their mean, and their standard deviation over several folds; of the largest errors the largest.

    Args:
        folds: index, number of test crystals and scores of each.
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
