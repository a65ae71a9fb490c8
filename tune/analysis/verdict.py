"""What seeds do to the difference of two runs, and the verdict: is B better than A, or is that noise?

Two things can make a difference without either run being better: which examples were there to be predicted
(`tune/analysis/paired.py`), and which seeds were drawn (`seed_noise`). `verdict_on` goes by the interval of both
together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from data.metrics import Metric
from data.task_words import TaskWords
from models.bootstrap import MIN_GROUPS
from tune.analysis.paired import Difference, PairedPredictions


@dataclass(frozen=True)
class Noise:
    """What the seed alone does to a difference.

    Attributes:
        band: 95 % of differences between equally good runs are less than this, either way.
        source: what it was estimated from, in words.
    """

    band: float
    source: str


def seed_noise(a: np.ndarray, b: np.ndarray, other: np.ndarray | None = None) -> Noise | None:
    """The band within which a difference says nothing, for the seeds alone make one of that size.

    With several seeds on both sides it is Welch's (Biometrika 34, 28, 1947; degrees of freedom by Satterthwaite,
    Biometrics Bulletin 2, 110, 1946):

        band = t(0.975, df) sqrt(s_A^2 / n_A + s_B^2 / n_B)

    with s the standard deviation (ddof 1) of a run's metric over its n seeds. Otherwise one standard deviation s,
    of n seeds of one run, stands for both sides:

        band = t(0.975, n - 1) s sqrt(1 / n_A + 1 / n_B)

    A side in which no seed has a part has no term in the sums.

    Args:
        a: metric of each seed of A, each the mean over folds, shape (n_A,); empty where no seed has a part in A.
        b: the same of B.
        other: the same of a run that was made to measure the noise; used in place of the runs' own.

    Returns:
        The band, or None where nothing has several seeds.
    """
    trained = [side for side in (a, b) if len(side)]
    if not trained:
        return Noise(0.0, "no seed has a part in either run")
    if other is None and all(len(side) > 1 for side in trained):
        terms = np.array([side.var(ddof=1) / len(side) for side in trained])
        spare = np.array([len(side) - 1 for side in trained])
        freedom = terms.sum() ** 2 / (terms**2 / spare).sum() if terms.any() else spare.sum()
        sizes = " and ".join(str(len(side)) for side in trained)
        return Noise(float(t.ppf(0.975, freedom) * np.sqrt(terms.sum())), f"the runs' own seeds, {sizes}")
    source = "the run given as --noise"
    if other is None:
        several = [side for side in trained if len(side) > 1]
        if not several:
            return None
        other, source = several[0], "the run that has several seeds, taken for both"
    spread = other.std(ddof=1) * np.sqrt(sum(1 / len(side) for side in trained))
    return Noise(float(t.ppf(0.975, len(other) - 1) * spread), f"{source}, {len(other)} seeds")


def verdict_on(
    paired: PairedPredictions, metric: Metric, difference: Difference, noise: Noise | None, words: TaskWords
) -> tuple[str, str]:
    """Whether B is better than A, and why, in a sentence.

    Args:
        paired: predictions of A and of B.
        metric: of their task.
        difference: A minus B.
        noise: what the seed alone does; None where nothing tells.
        words: of the task.

    Returns:
        "identical (inert)", "better", "worse", "within noise" or "undecided"; and the sentence.
    """
    size, name = abs(difference.value), metric.title
    if identical(paired):
        return "identical (inert)", (
            f"All {len(paired.rows)} predictions are equal to the last digit: whatever differs between the runs did "
            "nothing."
        )
    if difference.n_groups < MIN_GROUPS:
        return "undecided", (
            f"{difference.n_groups} {words.groups} are too few for an interval: at least {MIN_GROUPS} are needed."
        )
    if noise is None:
        return "undecided", (
            f"The {name} differs by {size:.3g}; the 95 % interval of that over {words.examples}, "
            f"{difference.low:.3g} to {difference.high:.3g}, says nothing of what another seed would have given. "
            "Measure that: train with --seeds 3, or sweep --space seed_noise once and name that run by --noise."
        )
    low, high = difference.with_seeds(noise.band)
    because = f"{low:.3g} to {high:.3g} over {words.examples} and seeds together"
    if low <= 0 <= high:
        return "within noise", (
            f"The runs' {name} differs by {size:.3g}, and its 95 % interval, {because}, holds 0. Over "
            f"{words.examples} alone it is {difference.low:.3g} to {difference.high:.3g}; "
            f"seeds alone make differences up to {noise.band:.3g}."
        )
    better = metric.better(-difference.value, 0.0)  # the metric of B, less that of A
    return "better" if better else "worse", (
        f"The {name} of B is {'lower' if difference.value > 0 else 'higher'} by {size:.3g}; its 95 % "
        f"interval, {because}, leaves out 0."
    )


def identical(paired: PairedPredictions) -> bool:
    """Whether the runs predict the same to the last digit, seed by seed."""
    return paired.a.shape == paired.b.shape and bool((paired.a == paired.b).all())
