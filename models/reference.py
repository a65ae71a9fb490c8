"""The part of a target that its composition explains: prediction = reference + scale x network.

For energies the reference turns CHGNet's total energy into the target's zero (for example the elements),
one number per element, with CHGNet's own elemental energies as the prior; so an element that the
training part shows once, or never, still has a sensible one. Other targets get a linear model of the
element fractions. Everything is fitted on training rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV

# Weight of the prior against one crystal's error, per element. Chosen by cross-validation inside the
# training parts; the result is flat around it.
PRIOR_STRENGTH = 0.1
_SMALLEST_RESIDUAL = 1e-2  # eV/atom; smaller errors count quadratically
_SLOPE_LIMITS = (0.4, 2.5)


class TargetScaleError(ValueError):
    """Targets that do not behave as the declared quantity (energy per atom or per cell)."""


@dataclass(frozen=True)
class Reference:
    """Linear in the element fractions.

    Attributes:
        coefficients: float64, shape (94,), by Z - 1, in the target's unit (logits for a classification).
        intercept: in the target's unit.
        scale: what one unit of the network's output is worth in the target's unit.
    """

    coefficients: np.ndarray
    intercept: float
    scale: float

    def predict(self, fractions: np.ndarray) -> np.ndarray:
        """Reference of some compositions; fractions have shape (n, 94)."""
        return fractions @ self.coefficients + self.intercept


def fit_energy_reference(
    fractions: np.ndarray, energies: np.ndarray, targets: np.ndarray, prior: np.ndarray
) -> Reference:
    """Least absolute deviations of `energies - fractions @ elemental - targets`, drawn to a prior.

    Solved by iteratively reweighted least squares (Holland & Welsch, Commun. Stat. A6, 813 (1977)).

    Args:
        fractions: element fractions, shape (n, 94).
        energies: the network's energies per atom, eV, shape (n,).
        targets: energies per atom, eV, shape (n,).
        prior: elemental energies on the scale of `energies`, eV/atom, shape (94,).

    Raises:
        TargetScaleError: the targets do not follow the energies one to one.
    """
    _check_slope(fractions, energies, targets)
    wanted = energies - targets - fractions @ prior
    weight = np.ones(len(wanted))
    deviation = np.zeros(94)
    for _ in range(50):
        normal = fractions.T @ (weight[:, None] * fractions) + PRIOR_STRENGTH * np.eye(94)
        previous, deviation = deviation, np.linalg.solve(normal, fractions.T @ (weight * wanted))
        weight = 1 / np.maximum(np.abs(wanted - fractions @ deviation), _SMALLEST_RESIDUAL)
        weight /= weight.mean()
        if np.abs(deviation - previous).max() < 1e-6:
            break
    return Reference(coefficients=-(prior + deviation), intercept=0.0, scale=1.0)


def _check_slope(fractions: np.ndarray, energies: np.ndarray, targets: np.ndarray) -> None:
    """Refuse targets that are energies of something else than one atom, where the rows can tell."""
    if len(targets) < 50:
        return
    within = [values - fractions @ _ridge(fractions, values) for values in (energies, targets)]
    slope = float(within[0] @ within[1] / (within[0] @ within[0]))
    correlation = float(np.corrcoef(within)[0, 1])
    if correlation > 0.5 and not _SLOPE_LIMITS[0] < slope < _SLOPE_LIMITS[1]:
        raise TargetScaleError(
            f"one eV/atom of CHGNet's energy moves this target by {slope:.2f} at equal composition, expected about 1: "
            "the target is not an energy on the declared scale. Declare it with --quantity energy_per_atom or "
            "energy_per_cell, or as --quantity other, which trains a fresh readout"
        )


def _ridge(fractions: np.ndarray, values: np.ndarray) -> np.ndarray:
    normal = fractions.T @ fractions + 1e-3 * np.eye(fractions.shape[1])
    return np.linalg.solve(normal, fractions.T @ values)


def fit_property_reference(fractions: np.ndarray, targets: np.ndarray) -> Reference:
    """Ridge regression on element fractions; the scale is the standard deviation of what it leaves."""
    model = RidgeCV(alphas=np.logspace(-4, 2, 13)).fit(fractions, targets)
    residual = targets - model.predict(fractions)
    return Reference(
        coefficients=model.coef_.astype(np.float64),
        intercept=float(model.intercept_),
        scale=float(max(residual.std(), 1e-12)),
    )


def fit_class_reference(fractions: np.ndarray, targets: np.ndarray) -> Reference:
    """Logistic regression on element fractions, in logits; of a single class, its smoothed frequency."""
    if len(np.unique(targets)) < 2:
        rate = (targets.sum() + 1) / (len(targets) + 2)
        return Reference(coefficients=np.zeros(94), intercept=float(np.log(rate / (1 - rate))), scale=1.0)
    model = LogisticRegression(max_iter=2000).fit(fractions, targets)
    return Reference(model.coef_[0].astype(np.float64), float(model.intercept_[0]), 1.0)
