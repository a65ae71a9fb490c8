"""One fold as a trial sees it: no label of its test part is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.task import Task
from models.model import TrainingPart


@dataclass(frozen=True)
class TrialFold:
    """One fold as a trial sees it: no label of its test part is in it.

    Attributes:
        targets: float64, shape (n_rows, *target_shape), NaN for every row but those of `train` and `val`.
        train, val, test: row positions, int64.
    """

    targets: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def part(self, task: Task) -> TrainingPart:
        """The part of the fold that a model may see: not even which rows are tested."""
        return TrainingPart(
            self.targets,
            self.train,
            self.val,
            task.kind,
            task.quantity,
            metric_name=task.metric,
            n_classes=task.n_classes,
        )
