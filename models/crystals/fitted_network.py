"""A trained network with its reference: what gradient descent leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from torch import nn

from data.task import Kind, Quantity
from models.crystals.reach import Reach, Start, zero
from models.crystals.reference import Reference
from models.crystals.rows import CrystalRows
from models.model import Prediction
from models.training.inputs import Inputs, predict


@dataclass
class FittedNetwork:
    """prediction = reference(composition) + scale x network(row) - correction.

    It is limited to the reach of training. A sigmoid follows for a classification, and a factor n_atoms for an energy
    per cell.

    Attributes:
        networks: their outputs are averaged; one, unless training kept snapshots.
        reference: fitted on the training rows.
        kind: of the task.
        quantity: what the target is to an energy model.
        inputs: batches of rows for a network.
        correction: of rows at some positions, per atom, shape (n,).
        arguments: what a network is made of again, plain values.
        reach: how far training may have moved a prediction; None where nothing limits it.
        start: output of the network before training.
    """

    networks: Sequence[nn.Module]
    reference: Reference
    kind: Kind
    quantity: Quantity
    inputs: Callable[[CrystalRows], Inputs]
    correction: Callable[[CrystalRows, np.ndarray], np.ndarray]
    arguments: dict[str, Any]
    reach: Reach | None = None
    start: Start = zero

    def predict_rows(self, rows: CrystalRows, which: np.ndarray) -> Prediction:
        """Predictions of the rows at the positions `which`."""
        inputs = self.inputs(rows)
        outputs = np.mean([predict(network, inputs, which) for network in self.networks], axis=0)
        fractions = rows.fractions[which].astype(np.float64)
        correction = self.correction(rows, which)
        start = None if self.reach is None else self.start(rows, which)
        return Prediction(
            combine(
                self.reference, outputs, fractions, rows.n_atoms[which], correction, self.kind, self.quantity,
                self.reach, start,
            )
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        """Everything `loaded` needs, tensors and plain values only."""
        return {
            "state_dicts": [
                {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
                for network in self.networks
            ],
            "reference": self.reference.content(),
            "kind": self.kind,
            "quantity": self.quantity,
            "arguments": self.arguments,
            "reach": None if self.reach is None else self.reach.content(),
        }


def loaded_networks(
    content: dict[str, Any], make: Callable[[dict[str, Any]], nn.Module], device: str
) -> list[nn.Module]:
    """The networks of `FittedNetwork.content` on a device, each made by `make` of the arguments in it.

    Raises:
        ValueError: there is none in it.
    """
    networks = []
    for state in content["state_dicts"]:
        network = make(content["arguments"])
        network.load_state_dict(state)
        networks.append(network.to(device).eval())
    if not networks:
        raise ValueError("no network in it")
    return networks


def loaded_reach(content: dict[str, Any]) -> Reach | None:
    """That of `FittedNetwork.content`; None also of a file that an earlier version wrote."""
    return Reach.of(content["reach"]) if content.get("reach") else None


def no_correction(_rows: CrystalRows, which: np.ndarray) -> np.ndarray:
    """`FittedNetwork.correction` of a network that needs none."""
    return np.zeros(len(which))


def combine(
    reference: Reference,
    outputs: np.ndarray,
    fractions: np.ndarray,
    n_atoms: np.ndarray,
    correction: np.ndarray,
    kind: Kind,
    quantity: Quantity,
    reach: Reach | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Predictions from network outputs, in the task's unit (probabilities for a classification).

    Args:
        reference: of the network.
        outputs: shape (n,).
        fractions: element fractions, shape (n, 94).
        n_atoms: shape (n,).
        correction: to subtract, per atom, shape (n,).
        kind: of the task.
        quantity: of the target.
        reach: of training, or None.
        start: output of the network before training, shape (n,), where there is a reach.
    """
    values = reference.predict(fractions) + reference.scale * outputs - correction
    if reach is not None:
        assert start is not None
        values = reach.limited(values, start, fractions, correction)
    if kind == "classification":
        return expit(values)
    return values * n_atoms if quantity == "energy_per_cell" else values
