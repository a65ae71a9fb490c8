"""Test-time augmentation: the mean prediction of copies of a crystal, each moved a little.

Off unless asked for, and with `auto` off where it does not help on validation: an energy model is smooth already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from models.augment import moved
from models.metrics import Metric
from models.model import Fitted, Prediction, TrainingRows

JITTER = 0.01  # Angstrom, standard deviation of each coordinate
STRAIN = 0.002  # standard deviation of each component


@dataclass(frozen=True)
class AugmentationResult:
    """What averaging over copies did on validation, and what it cost.

    Attributes:
        copies: of each crystal.
        used: whether the predictions that follow are averaged.
        val_without, val_with: metric on validation.
        seconds_without, seconds_with: of predicting validation.
    """

    copies: int
    used: bool
    val_without: float
    val_with: float
    seconds_without: float
    seconds_with: float


def averaged(fitted: Fitted, rows: TrainingRows, which: np.ndarray, copies: int) -> Prediction:
    """Mean over moved copies of the rows at `which`; the same copies every time."""
    assert rows.graphs is not None, "copies are moved crystals"
    values = np.zeros(len(which))
    for copy in range(copies):
        graphs = moved(rows.graphs, JITTER, STRAIN, [0, copy])
        noisy = replace(rows, graphs=graphs, features=None, outputs=None, collapse=False)
        values += fitted.predict_rows(noisy, which).values
    return Prediction(values / copies)


def judge(
    fitted: Fitted,
    rows: TrainingRows,
    val: np.ndarray,
    val_targets: np.ndarray,
    metric: Metric,
    copies: int,
    *,
    only_if_better: bool,
) -> AugmentationResult:
    """Measure on validation rows what averaging gives; `only_if_better` leaves it out where it gives nothing."""
    without, seconds_without = _timed(lambda: fitted.predict_rows(rows, val).values)
    mean, seconds_with = _timed(lambda: averaged(fitted, rows, val, copies).values)
    before, after = metric.value(val_targets, without), metric.value(val_targets, mean)
    used = metric.better(after, before) or not only_if_better
    return AugmentationResult(copies, used, before, after, seconds_without, seconds_with)


def _timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began
