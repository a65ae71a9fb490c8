"""The composition network as a model of the registry: no structure needed, every lever of gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data.task import Kind, Quantity
from models.config import GradientConfig
from models.crystals.composition.network import CompositionNetwork
from models.crystals.fitted_network import FittedNetwork, loaded_networks, loaded_reach, no_correction
from models.crystals.reach import Reach
from models.crystals.reference import Reference, fit_class_reference, fit_property_reference, unit_reference
from models.crystals.reference_transform import ReferenceTransform, reference_transform
from models.crystals.rows import CrystalRows
from models.model import Model, TrainingPart
from models.training.train import GradientRun

ROWS_PER_PASS = 8192
_ARGUMENTS = {"width", "rounds", "head_width", "head_depth", "dropout"}  # fields that a network is made of


class CompositionConfig(GradientConfig):
    """A network on element fractions; its target is standardised."""

    width: int = Field(default=128, ge=4, le=4096, multiple_of=4, description="of the vector of an element")
    rounds: int = Field(default=2, ge=1, le=32, description="of attention between the elements")
    head_width: int = Field(default=256, ge=1, le=8192, description="of the MLP after pooling")
    head_depth: int = Field(default=2, ge=0, le=32, description="residual blocks of that MLP")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="probability of dropping a number inside a block")
    reference: Literal["none", "ridge"] = Field(
        default="none", description="linear in the element fractions; the network learns what it leaves"
    )
    least_steps: int = Field(
        default=1, ge=1, le=1000, description="of an epoch: batches are smaller where rows are too few for so many"
    )

    def rows_a_step(self, n_train: int) -> int:
        """Rows of a batch, where there are so many training rows."""
        return min(self.batch_size, max(1, n_train // self.least_steps))

    def effective(self, n_train: int) -> dict[str, Any]:
        """See `ModelConfig`: what `least_steps` does is in the size of a batch."""
        return super().effective(n_train) | {"least_steps": 1}


@dataclass(frozen=True)
class FractionInputs:
    """Batches of element fractions, shape (n, 94), on a device."""

    fractions: Tensor

    def batch(self, which: np.ndarray) -> Tensor:
        """Those of the rows at the positions `which`."""
        return self.fractions.index_select(0, torch.from_numpy(which).to(self.fractions.device))

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        return [which[k : k + ROWS_PER_PASS] for k in range(0, len(which), ROWS_PER_PASS)]


def start_composition(
    config: CompositionConfig, rows: CrystalRows, part: TrainingPart, device: str = "cpu"
) -> GradientRun:
    """Make a fresh network ready to train.

    Raises:
        ValueError: a loss that does not fit the kind of task.
    """
    arguments = config.model_dump(include=_ARGUMENTS)
    network = CompositionNetwork(**arguments, seed=config.seed).to(device)
    targets = part.targets[part.train]
    if part.quantity == "energy_per_cell":
        targets = targets / rows.n_atoms[part.train]
    if config.reference == "none":
        reference = unit_reference(targets, part.kind)
    else:
        fit = fit_class_reference if part.kind == "classification" else fit_property_reference
        reference = fit(rows.fractions[part.train].astype(np.float64), targets)

    def fitted(networks: Sequence[nn.Module], transform: ReferenceTransform) -> FittedNetwork:
        return _fitted(networks, transform.reference, part.kind, part.quantity, arguments, transform.reach)

    transform = reference_transform(config, reference, rows, part, network.rescale)
    return GradientRun(config, network, transform, part, inputs=_inputs(rows, device), fitted=fitted)


def load_composition(content: dict[str, Any], device: str = "cpu") -> FittedNetwork:
    """What `FittedNetwork.content` describes, on a device."""
    networks = loaded_networks(content, lambda arguments: CompositionNetwork(**arguments), device)
    reference, reach = Reference.of(content["reference"]), loaded_reach(content)
    return _fitted(networks, reference, content["kind"], content["quantity"], content["arguments"], reach)


COMPOSITION_NETWORK = Model(
    name="composition_network",
    config=CompositionConfig,
    reads="compositions",
    start=start_composition,
    load=load_composition,
)


def _inputs(rows: CrystalRows, device: str) -> FractionInputs:
    return FractionInputs(torch.tensor(rows.fractions, dtype=torch.float32, device=device))


def _fitted(
    networks: Sequence[nn.Module],
    reference: Reference,
    kind: Kind,
    quantity: Quantity,
    arguments: dict[str, Any],
    reach: Reach | None,
) -> FittedNetwork:
    device = str(next(networks[0].parameters()).device)
    return FittedNetwork(
        networks=networks,
        reference=reference,
        kind=kind,
        quantity=quantity,
        inputs=lambda rows: _inputs(rows, device),
        correction=no_correction,
        arguments=arguments,
        reach=reach,
    )
