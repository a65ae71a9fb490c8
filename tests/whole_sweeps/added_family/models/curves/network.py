"""Two models of curves: the mean of the training targets, and a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from models.config import GradientConfig, ModelConfig
from models.curves.family import ROWS_PER_PASS, Curves
from models.model import Model, Prediction, TrainingPart, fitted_once, never
from models.training.inputs import Mix, predict
from models.training.train import GradientRun


@dataclass(frozen=True)
class Mean:
    """The mean of the training targets, or the share of each class."""

    value: np.ndarray

    def predict_rows(self, _rows: Curves, which: np.ndarray) -> Prediction:
        return Prediction(np.broadcast_to(self.value, (len(which), *self.value.shape)))

    def content(self) -> dict[str, Any]:
        return {"value": self.value.tolist()}


def fit_mean(_config: ModelConfig, _rows: Curves, part: TrainingPart) -> Mean:
    targets = part.targets[part.train]
    return Mean((one_hot(targets, part.n_classes) if part.n_classes else targets).mean(axis=0))


def one_hot(targets: np.ndarray, n_classes: int) -> np.ndarray:
    return (targets[..., None] == np.arange(n_classes)).astype(np.float64)


def load_mean(content: dict[str, Any], _device: str) -> Mean:
    return Mean(np.array(content["value"]))


class MeanConfig(ModelConfig):
    """Nothing can be set."""


class NetworkConfig(GradientConfig):
    width: int = Field(default=32, ge=1)


class Network(nn.Module):
    """Two layers, from 16 points to the outputs of a row."""

    def __init__(self, width: int, n_outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, n_outputs))

    def forward(self, batch: Tensor, mix: Mix | None = None) -> Tensor:
        outputs = self.layers(batch if mix is None else torch.lerp(batch[mix.partner], batch, mix.share))
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.layers[2].parameters()), list(self.layers[0].parameters())]

    def open_groups(self, n_groups: int) -> None:
        for k, group in enumerate(self.parameter_groups()):
            for parameter in group:
                parameter.requires_grad_(k < n_groups)


@dataclass(frozen=True)
class CurveInputs:
    """Batches of curves, on a device."""

    values: Tensor

    def batch(self, which: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(which).to(self.values.device)]

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        return [which[k : k + ROWS_PER_PASS] for k in range(0, len(which), ROWS_PER_PASS)]


@dataclass(frozen=True)
class Targets:
    """The target transform: the network says targets as they are, or logits of classes."""

    part: TrainingPart
    refits = False

    def goals(self) -> np.ndarray:
        return self.part.targets

    def offset(self) -> np.ndarray:
        return np.zeros((len(self.part.targets), *self.part.prediction_shape))

    def predictions(self, outputs: np.ndarray, _which: np.ndarray) -> np.ndarray:
        return probabilities(outputs) if self.part.n_classes else outputs

    def refitted(self, _outputs: np.ndarray) -> Targets:
        return self

    def state(self) -> dict[str, Any]:
        return {}

    def restored(self, _state: dict[str, Any]) -> Targets:
        return self


def probabilities(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class FittedNetworks:
    """The mean of networks, which is one unless snapshots are averaged."""

    networks: list[Network]
    n_classes: int | None

    def predict_rows(self, rows: Curves, which: np.ndarray) -> Prediction:
        device = next(self.networks[0].parameters()).device
        inputs = CurveInputs(torch.from_numpy(rows.values).to(device))
        outputs = np.mean([predict(network, inputs, which) for network in self.networks], axis=0)
        return Prediction(probabilities(outputs) if self.n_classes else outputs)

    def content(self) -> dict[str, Any]:
        return {"n_classes": self.n_classes, "states": [network.state_dict() for network in self.networks]}


def start(config: NetworkConfig, rows: Curves, part: TrainingPart, device: str) -> GradientRun:
    (n_outputs,) = part.prediction_shape or (1,)
    return GradientRun(
        config,
        Network(config.width, n_outputs, config.seed).to(device),
        Targets(part),
        part,
        inputs=CurveInputs(torch.from_numpy(rows.values).to(device)),
        fitted=lambda networks, _transform: FittedNetworks(list(networks), part.n_classes),
    )


def load(content: dict[str, Any], device: str) -> FittedNetworks:
    networks = []
    for state in content["states"]:
        width, n_outputs = state["layers.0.weight"].shape[0], state["layers.2.weight"].shape[0]
        networks.append(Network(width, n_outputs, 0).to(device))
        networks[-1].load_state_dict(state)
    return FittedNetworks(networks, content["n_classes"])


MEAN = Model("curve_mean", MeanConfig, "curves", fitted_once(fit_mean), load_mean, by_chance=never, family="curves")
NETWORK = Model("curve_network", NetworkConfig, "curves", start, load, family="curves")
