"""Fits the baseline that training has to beat; `trust.py` measures predictions by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logit

from data.crystals.corrections import mp2020_minus_legacy
from data.task import Kind, Quantity
from models.crystals.chgnet.anchors import load_anchors
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.fitted_network import combine
from models.crystals.reference import Reference, fit_class_reference, fit_energy_reference, fit_property_reference
from models.crystals.rows import CrystalRows
from models.model import TrainingPart

_SMALLEST_PROBABILITY = 1e-3  # beyond it a class is certain


@dataclass(frozen=True)
class Baseline:
    """Predicts what training has to beat, and what may stand for a prediction that is not trusted.

    Attributes:
        reference: fitted on the training rows.
        weights: of the pretrained network whose output is added; "" where the composition alone predicts.
        undo_mp2020: whether the corrections of 2020 are taken off that output.
        kind: of the task.
        quantity: what the target is to an energy model.
    """

    reference: Reference
    weights: str
    undo_mp2020: bool
    kind: Kind
    quantity: Quantity

    def predict(self, rows: CrystalRows, which: np.ndarray) -> np.ndarray:
        """Predictions in the task's unit, float64, shape (n,); needs `rows.outputs` where there are weights."""
        fractions = rows.fractions[which].astype(np.float64)
        outputs = correction = np.zeros(len(which))
        if self.weights:
            assert rows.outputs is not None
            outputs = rows.outputs[which].astype(np.float64)
        if self.undo_mp2020:
            correction = _corrections(rows, which)
        return combine(self.reference, outputs, fractions, rows.n_atoms[which], correction, self.kind, self.quantity)

    def moves(self, values: np.ndarray, by_baseline: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
        """Measures how far values are from the baseline's: energies of cells per atom, classes in logits."""
        if self.kind == "classification":
            certain = _SMALLEST_PROBABILITY
            values, by_baseline = (
                logit(np.clip(probabilities, certain, 1 - certain)) for probabilities in (values, by_baseline)
            )
        return np.abs(values - by_baseline) / (n_atoms if self.quantity == "energy_per_cell" else 1)


def fit_baseline(rows: CrystalRows, part: TrainingPart, weights: str, *, undo_mp2020: bool) -> Baseline:
    """Fits the reference on the training rows, to the outputs of a pretrained network where some weights are named."""
    train = part.train
    fractions, targets = rows.fractions[train].astype(np.float64), part.targets[train]
    if part.quantity == "energy_per_cell":
        targets = targets / rows.n_atoms[train]
    if part.kind == "classification":
        return Baseline(fit_class_reference(fractions, targets), "", False, part.kind, part.quantity)
    if not weights:
        return Baseline(fit_property_reference(fractions, targets), "", False, part.kind, part.quantity)
    assert rows.outputs is not None
    energies = rows.outputs[train].astype(np.float64)
    if undo_mp2020:
        energies = energies - _corrections(rows, train)
    # The network's output leaves CHGNet's own composition energies out, and so does the prior.
    prior = load_anchors(weights) - CHGNetwork(weights).composition_energies().double().numpy()
    reference = fit_energy_reference(fractions, energies, targets, prior)
    return Baseline(reference, weights, undo_mp2020, part.kind, part.quantity)


def _corrections(rows: CrystalRows, which: np.ndarray) -> np.ndarray:
    """Gives the corrections, eV/atom, shape (len(which),); computes them for crystals that no task holds."""
    assert rows.graphs is not None
    return mp2020_minus_legacy(rows.graphs, which) if rows.corrections is None else rows.corrections[which]
