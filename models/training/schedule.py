"""The learning rate of each step: the schedules of `GradientConfig.schedule`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data.metrics import Metric
from models.config import GradientConfig

# One-cycle: Smith & Topin, arXiv 1708.07120, with the shares that torch's own has.
_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 250_000


def learning_rate(config: GradientConfig, step: int, n_steps: int, halvings: int = 0) -> float:
    """The learning rate of one step.

    Args:
        config: of the run.
        step: steps done before it.
        n_steps: of the whole run.
        halvings: how often `plateau` has halved it.
    """
    warm = config.warmup * n_steps
    if step < warm:
        return config.lr * min(1.0, (step + 1) / warm)
    progress = (step - warm) / (n_steps - warm)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "plateau":
        return config.lr * 0.5**halvings
    if config.schedule == "exponential":
        return config.lr * config.lr_end**progress
    if config.schedule == "one_cycle":
        if progress < _RISE:
            return config.lr * _cosine(_FIRST, 1.0, progress / _RISE)
        return config.lr * _cosine(1.0, _LAST, (progress - _RISE) / (1 - _RISE))
    if config.averaging == "snapshots":
        progress = progress * config.snapshots % 1.0
    return config.lr * _cosine(1.0, 0.0, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def halvings(values: Sequence[float], patience: int, metric: Metric) -> int:
    """How often the validation metric has gone `patience` epochs without a better value; it waits anew after each."""
    best, n_waits, count = values[0], 0, 0
    for value in values[1:]:
        if metric.better(value, best):
            best, n_waits = value, 0
            continue
        n_waits += 1
        if n_waits == patience:
            n_waits, count = 0, count + 1
    return count
