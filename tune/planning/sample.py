"""A sample of a task's rows, of all sizes, and parts of it to train on: what `--plan` measures with."""

from __future__ import annotations

import numpy as np

from data.task import TaskRows
from tune.dataset.trial_fold import TrialFold


def sample_positions(sizes: np.ndarray, most: int) -> np.ndarray:
    """Rows spread evenly over all sizes, in random order; all rows where there are not more."""
    if len(sizes) <= most:
        return np.arange(len(sizes))
    by_size = np.argsort(sizes, kind="stable")
    spread = ((np.arange(most) + 0.5) * len(sizes) / most).astype(int)
    return np.random.default_rng(0).permutation(by_size[spread])


def split(sample: TaskRows, usable: np.ndarray, work: np.ndarray, n_train: int, batch_size: int) -> TrialFold:
    """Rows of all sizes to train on, whole batches where there are enough, and an eighth as many to judge on."""
    n_train = min(max(n_train, batch_size), max(1, int(0.7 * len(usable))))
    n_train -= n_train % batch_size if n_train > batch_size else 0
    n_others = max(1, n_train // 8)
    train = usable[sample_positions(work[usable], n_train)]
    other_rows = np.random.default_rng(0).permutation(np.setdiff1d(usable, train))[: 2 * n_others]
    val, test = np.split(other_rows, [n_others])
    return TrialFold(sample.targets, train, val, test)
