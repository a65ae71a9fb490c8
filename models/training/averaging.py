"""Which weights are judged and kept: as they are, averaged over steps or epochs, or of several cycles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.config import GradientConfig, largest_decay

Tensors = list[Tensor]  # what trains, one flat tensor for each group of parameters


class Averaging:
    """The lever `GradientConfig.averaging`; its source is told there."""

    def __init__(self, config: GradientConfig, flats: Tensors) -> None:
        """Begin with the weights as they are; `flats` are those that train."""
        self.config, self.flats = config, flats
        self.mean = copied(flats) if config.averaging in ("ema", "swa") else []
        self.n_averaged = 0  # steps (ema) or epochs (swa) in the mean
        self.ended: list[Tensors] = []  # of ended cycles

    def judged(self) -> list[Tensors]:
        """Weights whose mean prediction is judged, and kept if it is the best."""
        if self.n_averaged:
            return [self.mean]
        return [*self.ended, [flat.detach() for flat in self.flats]]

    def after_step(self) -> None:
        """Take the weights after an optimiser's step into the mean."""
        if self.config.averaging == "ema":
            self.n_averaged += 1
            self._add(1 - min(self.config.ema_decay, largest_decay(self.n_averaged)))

    def after_epoch(self, epoch: int) -> None:
        """Take the weights at an epoch's end into the mean."""
        if self.config.averaging == "swa" and epoch > self.config.swa_start * self.config.epochs:
            self.n_averaged += 1
            self._add(1 / self.n_averaged)

    def after_judging(self, epoch: int) -> None:
        """Put the weights aside where a cycle ends."""
        if self.config.averaging != "snapshots" or not epoch:
            return
        n, cycles = self.config.epochs, self.config.snapshots
        if epoch * cycles // n > (epoch - 1) * cycles // n:
            self.ended.append(copied(self.flats))

    def state(self) -> dict[str, Any]:
        """For a checkpoint, on the CPU."""
        return {
            "mean": [values.cpu() for values in self.mean],
            "n_averaged": self.n_averaged,
            "ended": [[values.cpu() for values in weights] for weights in self.ended],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        load(self.mean, state["mean"])
        self.n_averaged = state["n_averaged"]
        self.ended = [
            [values.to(flat.device) for values, flat in zip(weights, self.flats, strict=True)]
            for weights in state["ended"]
        ]

    def _add(self, weight: float) -> None:
        with torch.no_grad():
            for mean, flat in zip(self.mean, self.flats, strict=True):
                mean.lerp_(flat, weight)


def copied(weights: Tensors) -> Tensors:
    """Copies of weights in memory of their own."""
    return [values.detach().clone() for values in weights]


def load(weights: Tensors, values: Tensors) -> None:
    """Write values into weights."""
    with torch.no_grad():
        for tensor, new_values in zip(weights, values, strict=True):
            tensor.copy_(new_values)
