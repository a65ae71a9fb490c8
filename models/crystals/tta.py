"""Test-time augmentation: the mean prediction of copies of a crystal, each moved a little.

Off unless asked for, and with `auto` off where validation does not show that it helps: an energy model is smooth
already, and of two predictions that are as good one is better on any few crystals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from data.metrics import Metric
from models.bootstrap import MIN_GROUPS, interval, resampled_scores
from models.crystals.augment import copy_of
from models.crystals.rows import CrystalRows
from models.model import Fitted, Prediction

JITTER = 0.01  # Angstrom, standard deviation of each coordinate
STRAIN = 0.002  # standard deviation of each component
RESAMPLES = 1000  # of the compositions of validation, for the interval of the gain


@dataclass(frozen=True)
class AugmentationResult:
    """What averaging over copies did on validation, and what it cost.

    Attributes:
        copies: of each crystal.
        used: whether the predictions that follow are averaged.
        val_without, val_with: metric on validation.
        gain_low, gain_high: 95 % interval of what averaging gains there, positive where it helps, over compositions
            (`models/bootstrap.py`).
        seconds_without, seconds_with: of predicting validation, both from the structures' graphs.
    """

    copies: int
    used: bool
    val_without: float
    val_with: float
    gain_low: float
    gain_high: float
    seconds_without: float
    seconds_with: float


def averaged(fitted: Fitted, rows: CrystalRows, which: np.ndarray, copies: int) -> Prediction:
    """Mean over moved copies of the rows at `which`; the same copies every time.

    A standard deviation that the model knows is the mean of the copies' own: what it does not know of a crystal, it
    does not know of a copy of it either.
    """
    assert rows.graphs is not None, "copies are moved crystals"
    predicted = []
    for copy in range(copies):
        graphs = copy_of(rows.graphs, copy, JITTER, STRAIN)
        noisy = replace(rows, graphs=graphs, features=None, outputs=None, collapse=False)
        predicted.append(fitted.predict_rows(noisy, which))
    stds = [prediction.std for prediction in predicted if prediction.std is not None]
    return Prediction(
        np.mean([prediction.values for prediction in predicted], axis=0), np.mean(stds, axis=0) if stds else None
    )


def judge_copies(
    fitted: Fitted,
    rows: CrystalRows,
    val: np.ndarray,
    val_targets: np.ndarray,
    metric: Metric,
    copies: int,
    *,
    only_if_better: bool,
) -> AugmentationResult:
    """Measure on validation rows what averaging gives.

    With `only_if_better` it is left out unless the interval of its gain leaves out 0, and where validation has fewer
    compositions than an interval needs.
    """
    afresh = replace(rows, features=None, outputs=None)  # what is known of these rows is not known of new ones
    without, seconds_without = _timed(lambda: fitted.predict_rows(afresh, val).values)
    mean, seconds_with = _timed(lambda: averaged(fitted, rows, val, copies).values)
    before, after = metric.value(val_targets, without), metric.value(val_targets, mean)
    compositions = _compositions(rows.fractions[val])
    low, high = _gain(compositions, val_targets, without, mean, metric)
    is_better = low > 0 and len(set(compositions)) >= MIN_GROUPS
    used = is_better or not only_if_better
    return AugmentationResult(copies, used, before, after, low, high, seconds_without, seconds_with)


def _compositions(fractions: np.ndarray) -> list[str]:
    """A name for the composition of each row, of element fractions of shape (n, 94)."""
    _, numbers = np.unique(fractions.round(6), axis=0, return_inverse=True)
    return numbers.ravel().astype(str).tolist()


def _gain(
    compositions: list[str], targets: np.ndarray, without: np.ndarray, averaged: np.ndarray, metric: Metric
) -> tuple[float, float]:
    """95 % interval of the gain over resamples of compositions.

    Args:
        compositions: a name of each row's.
        targets, without, averaged: labels and both predictions, shape (n,).
        metric: that the gain is one of.
    """
    rows = pd.DataFrame({"fold": 0, "id": compositions, "group": compositions, "y_true": targets})
    resampled = resampled_scores(rows, [without[None], averaged[None]], metric, RESAMPLES)
    sign = 1 if metric.mode == "max" else -1
    return interval(sign * (resampled[:, 1] - resampled[:, 0]))


def _timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start
