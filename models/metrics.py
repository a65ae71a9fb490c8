"""What a prediction is judged by: MAE for regressions, ROC-AUC for classifications, as Matbench does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import roc_auc_score

Kind = Literal["regression", "classification"]
TRUSTED = 0.5  # a prediction whose trust is below it is marked (`models/trust.py`)


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
        return float(roc_auc_score(y_true, y_pred)) if len(np.unique(y_true)) > 1 else 0.5

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
