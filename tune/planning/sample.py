"""A sample of a task's rows, of all sizes, and parts of it to train on: what `--plan` measures with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.crystals.rows import Rows
from tune.dataset.trial_fold import TrialFold


def sample_positions(sizes: np.ndarray, most: int) -> np.ndarray:
    """Rows spread evenly over all sizes, in random order; all rows where there are not more."""
    if len(sizes) <= most:
        return np.arange(len(sizes))
    by_size = np.argsort(sizes, kind="stable")
    spread = ((np.arange(most) + 0.5) * len(sizes) / most).astype(int)
    return np.random.default_rng(0).permutation(by_size[spread])


def sample_of(rows: Rows, positions: np.ndarray) -> Rows:
    """The rows at `positions`, in that order, with a buffer of their own; read in the order of the file."""
    in_order = np.sort(positions)
    payloads = rows.select(in_order.tolist(), "").chunk(0, len(positions)).payloads
    ends = np.cumsum([len(payload) for payload in payloads])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    chosen = rows.select(positions.tolist(), f"sample of {rows.sha256}")
    return replace(chosen, buffer=b"".join(payloads), spans=spans[np.searchsorted(in_order, positions)])


def split(sample: Rows, usable: np.ndarray, work: np.ndarray, n_train: int, batch_size: int) -> TrialFold:
    """Rows of all sizes to train on, whole batches where there are enough, and an eighth as many to judge on."""
    n_train = min(max(n_train, batch_size), max(1, int(0.7 * len(usable))))
    n_train -= n_train % batch_size if n_train > batch_size else 0
    n_others = max(1, n_train // 8)
    train = usable[sample_positions(work[usable], n_train)]
    others = np.random.default_rng(0).permutation(np.setdiff1d(usable, train))[: 2 * n_others]
    val, test = np.split(others, [n_others])
    return TrialFold(sample.targets, train, val, test)
