"""What a network is to output for each row, and the loss of not doing so."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.config import GradientConfig
from models.model import TrainingPart
from models.training.losses import loss_function


class TargetTransform(Protocol):
    """How targets become what a network is to output, and its outputs become predictions.

    What is fitted of it is fitted on training rows alone.
    """

    @property
    def refits(self) -> bool:
        """Whether to fit it anew, by `refitted`, after every epoch."""
        ...

    def goals(self) -> np.ndarray:
        """The goal of output plus offset, a row each, float64; NaN where a row's target is not to be seen."""
        ...

    def offset(self) -> np.ndarray:
        """The offset that is added to an output before it is judged, in the shape of outputs."""
        ...

    def predictions(self, outputs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Predictions in the task's unit, float64, from outputs for the rows at `which`."""
        ...

    def refitted(self, outputs: np.ndarray) -> TargetTransform:
        """Fits anew to outputs for the training rows."""
        ...

    def state(self) -> dict[str, Any]:
        """The state that `refitted` changes, as tensors and plain values."""
        ...

    def restored(self, state: dict[str, Any]) -> TargetTransform:
        """The transform that had this `state`."""
        ...


class Objective:
    """The loss of a network's outputs on the rows of one fold."""

    def __init__(
        self, config: GradientConfig, transform: TargetTransform, part: TrainingPart, device: torch.device
    ) -> None:
        """Take the targets as `transform` has them.

        Raises:
            ValueError: a loss that does not fit the kind of task.
        """
        if (config.loss == "cross_entropy") != (part.kind == "classification"):
            raise ValueError(f"loss {config.loss!r} for a {part.kind}: cross_entropy goes with classification alone")
        self.device = device
        self.n_classes = part.n_classes
        self.per_element = loss_function(config.loss, config.loss_delta)
        self.take(transform)

    def take(self, transform: TargetTransform) -> None:
        """Set another transform, and so what the network is to output."""
        self.transform = transform
        self.goals = torch.from_numpy(transform.goals()).float().to(self.device)
        self.offset = torch.from_numpy(transform.offset()).float().to(self.device)

    def refit(self, outputs: np.ndarray) -> None:
        """Fit the transform anew to outputs for the training rows."""
        self.take(self.transform.refitted(outputs))

    def mean_loss(self, outputs: Tensor, goals: Tensor, offset: Tensor) -> Tensor:
        """The mean over all elements; a row first, and classes last in `outputs` where there are several."""
        return self.per_element(outputs + offset, goals).mean()

    def loss(
        self, outputs: Tensor, which: np.ndarray, partners: np.ndarray | None = None, share: float = 1.0
    ) -> Tensor:
        """Mean loss of outputs for the rows at `which`; those rows hold `share` of themselves, the rest of a partner.

        Args:
            outputs: of the network, float32, shape (n, ...).
            which: row positions, int64, shape (n,).
            partners: rows that each is mixed with; None: with none.
            share: that a row has in its mixture.
        """
        goals, offset = self.expected(which)
        if partners is not None:
            goals_of_partners, offset_of_partners = self.expected(partners)
            if self.n_classes:  # numbers of classes have no mean; their losses do
                loss_of_partners = self.mean_loss(outputs, goals_of_partners, offset_of_partners)
                return share * self.mean_loss(outputs, goals, offset) + (1 - share) * loss_of_partners
            goals = torch.lerp(goals_of_partners, goals, share)
            offset = torch.lerp(offset_of_partners, offset, share)
        return self.mean_loss(outputs, goals, offset)

    def expected(self, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """The goals of the rows at `which`, and what is added to their outputs; shape (n, ...)."""
        rows = torch.from_numpy(which).to(self.device)
        return self.goals[rows], self.offset[rows]

    def loss_value(self, outputs: np.ndarray, which: np.ndarray) -> float:
        """The mean loss as a number, of outputs of shape (n, ...)."""
        return float(self.loss(torch.from_numpy(outputs).float().to(self.device), which))

    def predictions(self, outputs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """In the task's unit, from outputs for the rows at `which`; float64, shape (n, ...)."""
        return self.transform.predictions(outputs, which)
