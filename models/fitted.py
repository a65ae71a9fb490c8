"""A trained model as a user has it: network and reference in one file that predicts crystals.

from models.fitted import load_model
load_model("model_fold_0.pth").predict(structures)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit

from data.crystal import BadCrystalError, crystal_from_structure
from data.graphs import convert, element_fractions, stack
from data.quality import check_crystal
from data.task_table import Quantity
from models.chgnet import CHGNetwork
from models.features import GraphInputs, Inputs, predict
from models.metrics import Kind
from models.reference import Reference

if TYPE_CHECKING:
    from pymatgen.core import Structure

FILE_FORMAT = 1


class ModelFileError(ValueError):
    """A file that is not a model of ours, or one of another version."""


@dataclass
class FittedModel:
    """prediction = reference(composition) + scale x network(graph).

    A sigmoid follows for a classification, and a factor n_atoms for an energy per cell.

    Attributes:
        network: CHGNet.
        reference: fitted on the training rows.
        kind: of the task.
        quantity: what the target is to an energy model.
        about: task, target, unit, where its labels come from and other facts for the reader.
    """

    network: CHGNetwork
    reference: Reference
    kind: Kind
    quantity: Quantity
    about: dict[str, str]

    def combine(self, outputs: np.ndarray, fractions: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
        """Predictions from network outputs, in the task's unit (probabilities for a classification).

        Args:
            outputs: shape (n,).
            fractions: element fractions, shape (n, 94).
            n_atoms: shape (n,).
        """
        values = self.reference.predict(fractions) + self.reference.scale * outputs
        if self.kind == "classification":
            return expit(values)
        return values * n_atoms if self.quantity == "energy_per_cell" else values

    def predict_rows(self, inputs: Inputs, fractions: np.ndarray, n_atoms: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Predictions for the rows at the positions `which`; the other arguments cover all rows."""
        return self.combine(predict(self.network, inputs, which), fractions[which], n_atoms[which])

    def predict(self, structures: Sequence[Structure]) -> np.ndarray:
        """Predictions for new crystals, float64, shape (n,), in the unit `about["unit"]`.

        Raises:
            BadCrystalError: a structure that cannot be predicted; the message names its position.
        """
        graphs = []
        for position, structure in enumerate(structures):
            try:
                crystal = crystal_from_structure(structure)
                check_crystal(crystal)
                graphs.append(convert(crystal, self.network.atom_graph_cutoff))
            except BadCrystalError as problem:
                raise BadCrystalError(f"structure {position}: {problem}") from None
        if not graphs:
            return np.empty(0)
        together = stack(graphs)
        device = next(self.network.parameters()).device
        inputs = GraphInputs(together, self.network.bond_graph_cutoff, device)
        everything = np.arange(len(together))
        return self.predict_rows(inputs, element_fractions(together), together.atoms_per_graph, everything)

    def save(self, path: Path) -> None:
        """Write everything `load_model` needs to one file, tensors and plain values only."""
        content = {
            "format": FILE_FORMAT,
            "weights": self.network.weights,
            "state_dict": {name: value.cpu() for name, value in self.network.stock.state_dict().items()},
            "reference_coefficients": torch.from_numpy(np.asarray(self.reference.coefficients, dtype=np.float64)),
            "reference_intercept": self.reference.intercept,
            "scale": self.reference.scale,
            "kind": self.kind,
            "quantity": self.quantity,
            "about": self.about,
        }
        torch.save(content, path)


def load_model(path: str | Path, device: str = "cpu") -> FittedModel:
    """Read a model file.

    Raises:
        ModelFileError: not a model file, or one of another format version.
        FileNotFoundError: no such file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"]
    except FileNotFoundError:
        raise
    except Exception as problem:  # torch reports damage in many ways; all mean the same to the user
        raise ModelFileError(f"{path} is not a matsweep model file, or is damaged: {problem}") from problem
    if found != FILE_FORMAT:
        raise ModelFileError(f"{path} has model format {found!r}; this version reads {FILE_FORMAT}")
    try:
        network = CHGNetwork(content["weights"])
        network.stock.load_state_dict(content["state_dict"])
        return FittedModel(
            network=network.to(device).eval(),
            reference=Reference(
                coefficients=content["reference_coefficients"].numpy(),
                intercept=content["reference_intercept"],
                scale=content["scale"],
            ),
            kind=content["kind"],
            quantity=content["quantity"],
            about=content["about"],
        )
    except (KeyError, ValueError, RuntimeError) as problem:  # RuntimeError: weights missing or misshapen
        raise ModelFileError(f"{path} is damaged, its content is not a whole model: {problem!r}") from problem
