"""Limits how far training may move a prediction, to a few times what the training rows ask for.

A network's last layers are steep, and training moves them along whatever its rows do not show. The pretrained norm
before CHGNet's readout closes half of its 64 channels; a training opens them, and atoms unlike all that were trained
on come out tens of eV off, while no row of the training or validation part shows it (docs/accuracy.md). What these rows
do show is how far they ask predictions to move from where training begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.crystals.reference import Reference
from models.crystals.rows import CrystalRows
from models.model import TrainingPart

REACH = 3.0  # times the move that is enough for 99 of 100 training rows
_ENOUGH_FOR = 0.99

# Output of the network before training for the rows at some positions, float64, shape (n,).
Start = Callable[[CrystalRows, np.ndarray], np.ndarray]


def zero(_rows: CrystalRows, which: np.ndarray) -> np.ndarray:
    """`Start` of a network that says nothing before training, so that the reference alone is where it begins."""
    return np.zeros(len(which))


@dataclass(frozen=True)
class Reach:
    """Keeps a prediction within `limit` of what it was before training.

    Attributes:
        limit: in the target's unit, per atom where that is an energy of a cell.
        reference: before training, with the unit of the network's output then.
    """

    limit: float
    reference: Reference

    def limited(
        self, values: np.ndarray, start: np.ndarray, fractions: np.ndarray, correction: np.ndarray
    ) -> np.ndarray:
        """Moves predictions beyond the limit to it, and leaves all others as they are to the last bit.

        Args:
            values: predictions, in the unit of `limit`, shape (n,).
            start: output of the network before training, shape (n,).
            fractions: element fractions, shape (n, 94).
            correction: that has been subtracted from the values, shape (n,).
        """
        begun = self.reference.predict(fractions) + self.reference.scale * start - correction
        return np.clip(values, begun - self.limit, begun + self.limit)

    def content(self) -> dict[str, Any]:
        """Gives tensors and plain values for a file."""
        return {"limit": self.limit, "reference": self.reference.content()}

    @staticmethod
    def of(content: dict[str, Any]) -> Reach:
        """Makes a reach of what its `content` was."""
        return Reach(content["limit"], Reference.of(content["reference"]))


def fit_reach(
    rows: CrystalRows, part: TrainingPart, reference: Reference, start: np.ndarray, correction: np.ndarray
) -> Reach:
    """Learns from the training rows of a regression how far they ask predictions to move.

    Args:
        rows: all rows of the task.
        part: what training may see of the fold.
        reference: before training.
        start: output of the network before training for the training rows, shape (n_train,).
        correction: to subtract from their predictions, per atom, shape (n_train,).
    """
    train = part.train
    targets = part.targets[train]
    if part.quantity == "energy_per_cell":
        targets = targets / rows.n_atoms[train]
    begun = reference.predict(rows.fractions[train].astype(np.float64)) + reference.scale * start - correction
    return Reach(REACH * float(np.quantile(np.abs(targets - begun), _ENOUGH_FOR)), reference)
