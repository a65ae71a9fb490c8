"""Baselines that know the composition alone: the mean of the training targets, and ridge regression.

What a model learns from structures is what it does better than these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit

from data.task import Kind, Quantity
from models.config import ModelConfig
from models.crystals.reference import Reference, fit_class_reference, fit_property_reference, unit_reference
from models.crystals.rows import CrystalRows
from models.model import Model, Prediction, TrainingPart, fitted_once, never


class DummyConfig(ModelConfig):
    """There is nothing to choose."""


class RidgeConfig(ModelConfig):
    """Ridge regression on the element fractions."""

    alpha: Annotated[float, Field(gt=0)] | Literal["leave_one_out"] = Field(
        default="leave_one_out",
        description="penalty on the squared coefficients, of a classification on those of the logits; or chosen by "
        "leave-one-out on the training rows (a classification: 1)",
    )


@dataclass(frozen=True)
class FittedLinear:
    """prediction = reference(composition), then a sigmoid for a classification, a factor n_atoms for a cell's energy.

    Attributes:
        reference: linear in the element fractions.
        kind: of the task.
        quantity: of the target.
    """

    reference: Reference
    kind: Kind
    quantity: Quantity

    def predict_rows(self, rows: CrystalRows, which: np.ndarray) -> Prediction:
        """Predictions of the rows at the positions `which`."""
        values = self.reference.predict(rows.fractions[which].astype(np.float64))
        if self.kind == "classification":
            return Prediction(expit(values))
        return Prediction(values * rows.n_atoms[which] if self.quantity == "energy_per_cell" else values)

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_linear` makes it again."""
        return {
            "coefficients": torch.from_numpy(self.reference.coefficients),
            "intercept": self.reference.intercept,
            "kind": self.kind,
            "quantity": self.quantity,
        }


def load_linear(content: dict[str, Any], _device: str = "cpu") -> FittedLinear:
    """What `FittedLinear.content` describes; it computes on the CPU, whatever the device."""
    reference = Reference(content["coefficients"].numpy(), content["intercept"], 1.0)
    return FittedLinear(reference, content["kind"], content["quantity"])


def fit_dummy(_config: DummyConfig, rows: CrystalRows, part: TrainingPart) -> FittedLinear:
    """Mean of the training targets (per atom where they are energies of a cell), or frequency of the class."""
    return FittedLinear(unit_reference(_targets(rows, part), part.kind), part.kind, part.quantity)


def fit_ridge(config: RidgeConfig, rows: CrystalRows, part: TrainingPart) -> FittedLinear:
    """Ridge regression on the element fractions, or logistic regression."""
    fractions, targets = rows.fractions[part.train].astype(np.float64), _targets(rows, part)
    if part.kind == "classification":
        reference = _fit_logistic(fractions, targets, config.alpha)
    elif config.alpha == "leave_one_out":
        reference = fit_property_reference(fractions, targets)
    else:
        from sklearn.linear_model import Ridge

        model = Ridge(alpha=config.alpha).fit(fractions, targets)
        reference = Reference(np.asarray(model.coef_, dtype=np.float64), float(model.intercept_), 1.0)
    return FittedLinear(reference, part.kind, part.quantity)


def _fit_logistic(fractions: np.ndarray, targets: np.ndarray, alpha: float | str) -> Reference:
    if isinstance(alpha, str) or len(np.unique(targets)) < 2:
        return fit_class_reference(fractions, targets)
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / alpha, max_iter=2000).fit(fractions, targets)
    return Reference(model.coef_[0].astype(np.float64), float(model.intercept_[0]), 1.0)


def _targets(rows: CrystalRows, part: TrainingPart) -> np.ndarray:
    """Of the training rows, per atom where they are energies of a cell."""
    targets = part.targets[part.train]
    return targets / rows.n_atoms[part.train] if part.quantity == "energy_per_cell" else targets


DUMMY = Model(
    name="dummy",
    config=DummyConfig,
    reads="compositions",
    start=fitted_once(fit_dummy),
    load=load_linear,
    by_chance=never,
)
RIDGE = Model(
    name="ridge",
    config=RidgeConfig,
    reads="compositions",
    start=fitted_once(fit_ridge),
    load=load_linear,
    by_chance=never,
)
