"""Targets of crystals for a network: what the reference explains is taken off, the rest is in the network's unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.task import Kind, Quantity
from models.config import GradientConfig
from models.crystals.fitted_network import combine
from models.crystals.reach import Reach, fit_reach
from models.crystals.reference import Reference
from models.crystals.rows import CrystalRows
from models.model import TrainingPart

# Makes a reference anew of outputs for the training rows, shape (n_train,), and the present one.
Refit = Callable[[np.ndarray, Reference], Reference]


@dataclass(frozen=True, eq=False)
class ReferenceTransform:
    """prediction = reference(composition) + scale x output - correction, limited to the reach of training.

    A `TargetTransform`. Of a classification the reference is added to the logit, and a sigmoid follows.

    Attributes:
        reference: of the composition, with the scale of an output.
        targets: per atom where they are energies of a cell, float64, shape (n_rows,).
        fractions: element fractions, float64, shape (n_rows, 94).
        n_atoms: shape (n_rows,).
        correction: that is subtracted, per atom, shape (n_rows,).
        kind: of the task.
        quantity: of the target.
        reach: of training; None where nothing limits a prediction.
        start: output of the network before training, shape (n_rows,).
        refit: makes the reference anew after every epoch; None: it stays.
    """

    reference: Reference
    targets: np.ndarray
    fractions: np.ndarray
    n_atoms: np.ndarray
    correction: np.ndarray
    kind: Kind
    quantity: Quantity
    reach: Reach | None
    start: np.ndarray
    refit: Refit | None

    @property
    def refits(self) -> bool:
        """See `TargetTransform`."""
        return self.refit is not None

    def goals(self) -> np.ndarray:
        """The class; of a regression the target less what the reference explains, in the unit of an output."""
        if self.kind == "classification":
            return self.targets
        return (self.targets - self._explained()) / self.reference.scale

    def offset(self) -> np.ndarray:
        """What the reference adds to a logit; zero for a regression."""
        return self._explained() if self.kind == "classification" else np.zeros_like(self.targets)

    def predictions(self, outputs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """In the task's unit, from outputs for the rows at `which`; float64, shape (n,)."""
        return combine(
            self.reference, outputs, self.fractions[which], self.n_atoms[which], self.correction[which],
            self.kind, self.quantity, self.reach, self.start[which],
        )  # fmt: skip

    def refitted(self, outputs: np.ndarray) -> ReferenceTransform:
        """With the reference that `refit` makes."""
        assert self.refit is not None
        return replace(self, reference=self.refit(outputs, self.reference))

    def state(self) -> dict[str, Any]:
        """The reference."""
        return self.reference.content()

    def restored(self, state: dict[str, Any]) -> ReferenceTransform:
        """With the reference of a `state`."""
        return replace(self, reference=Reference.of(state))

    def _explained(self) -> np.ndarray:
        return self.reference.predict(self.fractions) - self.correction


def reference_transform(
    config: GradientConfig,
    reference: Reference,
    rows: CrystalRows,
    part: TrainingPart,
    rescale: Callable[[float, float], None],
    *,
    corrections: np.ndarray | None = None,
    start: np.ndarray | None = None,
    refit: Refit | None = None,
) -> ReferenceTransform:
    """Fit the reach of training, and give the reference the scale that the config asks for.

    Args:
        config: of the run.
        reference: fitted on the training rows.
        rows: all rows of the task.
        part: what the run may see of the fold.
        rescale: changes the network's last layer so that its output becomes (output - shift) / scale.
        corrections: to subtract from predictions, per atom, shape (n_rows,); None: nothing.
        start: output of the network before training, shape (n_rows,), where it is not zero: see `reach.py`.
        refit: makes the reference anew after every epoch.
    """
    n_rows, fractions = len(part.targets), rows.fractions.astype(np.float64)
    correction = np.zeros(n_rows) if corrections is None else corrections
    targets = part.targets / np.maximum(rows.n_atoms, 1) if part.quantity == "energy_per_cell" else part.targets
    start, reach = np.zeros(n_rows) if start is None else start, None
    if part.kind == "regression" and config.epochs:  # the logits of a class have no end
        reach = fit_reach(rows, part, reference, start[part.train], correction[part.train])
    residuals = (targets + correction - fractions @ reference.coefficients)[part.train]
    reference = _rescaled(reference, config.target_scale, residuals, rescale)
    return ReferenceTransform(
        reference, targets, fractions, rows.n_atoms, correction, part.kind, part.quantity, reach, start, refit
    )


def _rescaled(
    reference: Reference, target_scale: str, residuals: np.ndarray, rescale: Callable[[float, float], None]
) -> Reference:
    """The reference with another scale, and the network's output changed to fit.

    Args:
        reference: with the scale so far.
        target_scale: of the config.
        residuals: what the elements of the training rows do not explain, in the target's unit, shape (n_train,).
        rescale: see `reference_transform`.
    """
    if target_scale == "natural":
        return reference
    if target_scale == "robust":
        shift = float(np.median(residuals))
        scale = 1.4826 * float(np.median(np.abs(residuals - shift)))  # of a normal distribution its standard deviation
    else:
        shift, scale = float(residuals.mean()), float(residuals.std())
    scale = max(scale, 1e-12)
    if math.isclose(scale, reference.scale, rel_tol=1e-9) and abs(shift - reference.intercept) < 1e-9 * scale:
        return reference  # already so: a fresh readout begins in this unit
    # The output so far is worth reference.scale, from reference.intercept on.
    rescale((shift - reference.intercept) / reference.scale, scale / reference.scale)
    return replace(reference, intercept=shift, scale=scale)
