"""The part of a target that its composition explains: prediction = reference + scale x network.

For energies the reference turns CHGNet's total energy into the target's zero (for example the elements),
one number per element, with CHGNet's own elemental energies as the prior; so an element that the
training part shows once, or never, still has a sensible one. Other targets get a linear model of the
element fractions. Everything is fitted on training rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.task import Kind
from models.family import UnsuitedError

# An element leaves its prior where its fractions, summed over the crystals that ask for it, exceed this.
# Chosen, with the width, by cross-validation inside the training part of a fold (mp_e_form and perovskites,
# all rows and a hundred). A pull that does not grow with the distance lets targets have another zero.
PRIOR_STRENGTH = 0.3
_PRIOR_WIDTH = 0.03  # eV/atom; nearer to the prior the pull falls to nothing
_SMALLEST_RESIDUAL = 1e-2  # eV/atom; smaller errors count quadratically
_SLOPE_LIMITS = (0.4, 2.5)
_SLOPE_SIGMAS = 4.0  # by which a slope must differ from 1 to be refused
_SMALLEST_FREEDOM = 30  # rows beyond the elements they show, to tell a slope from


class TargetScaleError(UnsuitedError):
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

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        coefficients = torch.from_numpy(np.asarray(self.coefficients, dtype=np.float64))
        return {"coefficients": coefficients, "intercept": self.intercept, "scale": self.scale}

    @staticmethod
    def of(content: dict[str, Any]) -> Reference:
        """The reference that `content` describes."""
        return Reference(content["coefficients"].numpy(), content["intercept"], content["scale"])


NO_REFERENCE = Reference(coefficients=np.zeros(94), intercept=0.0, scale=1.0)


def unit_reference(targets: np.ndarray, kind: Kind) -> Reference:
    """No part for the composition: the mean and standard deviation of the targets, or the logit of their frequency."""
    if kind == "classification":
        return fit_class_reference(np.zeros((len(targets), 94)), np.full(len(targets), targets.mean()))
    return Reference(np.zeros(94), float(targets.mean()), float(max(targets.std(), 1e-12)))


def fit_energy_reference(
    fractions: np.ndarray, energies: np.ndarray, targets: np.ndarray, prior: np.ndarray
) -> Reference:
    """Least absolute deviations of `energies - fractions @ elemental - targets`, drawn to a prior.

    The distance to the prior counts linearly, too: sum |errors| + PRIOR_STRENGTH sum |elemental - prior|.

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
    differences = energies - targets - fractions @ prior
    weight = np.ones(len(differences))
    pull = np.full(94, PRIOR_STRENGTH)
    deviation = np.zeros(94)
    for _ in range(50):
        normal = fractions.T @ (weight[:, None] * fractions) + np.diag(pull)
        previous, deviation = deviation, np.linalg.solve(normal, fractions.T @ (weight * differences))
        weight = 1 / np.maximum(np.abs(differences - fractions @ deviation), _SMALLEST_RESIDUAL)
        pull = PRIOR_STRENGTH / np.maximum(np.abs(deviation), _PRIOR_WIDTH)
        if np.abs(deviation - previous).max() < 1e-6:
            break
    return Reference(coefficients=-(prior + deviation), intercept=0.0, scale=1.0)


def _check_slope(fractions: np.ndarray, energies: np.ndarray, targets: np.ndarray) -> None:
    """Refuse targets that are energies of something else than one atom, where the rows can tell."""
    solution, _, rank, _ = np.linalg.lstsq(fractions, np.stack([energies, targets], axis=1), rcond=1e-6)
    freedom = len(targets) - int(rank) - 1
    x, y = energies - fractions @ solution[:, 0], targets - fractions @ solution[:, 1]
    if freedom < _SMALLEST_FREEDOM or x.std() < 1e-3:  # eV/atom: composition explains CHGNet's energies as well
        return
    slope = float(x @ y / (x @ x))
    uncertainty = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x)))
    is_far = not _SLOPE_LIMITS[0] < slope < _SLOPE_LIMITS[1]
    if is_far and abs(slope - 1) > _SLOPE_SIGMAS * uncertainty:
        raise TargetScaleError(
            f"one eV/atom of CHGNet's energy moves this target by {slope:.2f} at equal composition, expected about 1: "
            "the target is not an energy on the declared scale. Declare it with --quantity energy_per_atom or "
            "energy_per_cell, or as --quantity other, which trains a fresh readout"
        )


def fit_property_reference(fractions: np.ndarray, targets: np.ndarray) -> Reference:
    """Ridge regression on element fractions; the scale is the standard deviation of what it leaves."""
    from sklearn.linear_model import RidgeCV  # here, as below: a second that predictions need not pay

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
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=2000).fit(fractions, targets)
    return Reference(model.coef_[0].astype(np.float64), float(model.intercept_[0]), 1.0)
