"""What a network is to say: targets less what the reference explains, in its unit; and the loss of not saying it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.config import GradientConfig
from models.fitted_network import combine
from models.losses import loss_function
from models.model import TrainingPart, TrainingRows
from models.reach import Reach, fit_reach
from models.reference import Reference


class Objective:
    """Targets, loss and predictions of one fold, given the reference that goes with the network."""

    def __init__(
        self,
        config: GradientConfig,
        reference: Reference,
        rows: TrainingRows,
        part: TrainingPart,
        corrections: np.ndarray | None,
        device: torch.device,
        rescale: Callable[[float, float], None],
        start: np.ndarray | None,
    ) -> None:
        """Set the reference, with the scale that the config asks for.

        Args:
            config: of the run.
            reference: prediction = reference(composition) + scale x output [- correction].
            rows: all rows of the task.
            part: what the run may see of the fold.
            corrections: to subtract from predictions, per atom, shape (n_rows,); None: nothing.
            device: of the network.
            rescale: changes the network's last layer so that its output becomes (output - shift) / scale.
            start: output of the network before training, shape (n_rows,), where it is not zero.

        Raises:
            ValueError: a loss that does not fit the kind of task.
        """
        if (config.loss == "cross_entropy") != (part.kind == "classification"):
            raise ValueError(f"loss {config.loss!r} for a {part.kind}: cross_entropy goes with classification alone")
        self.rows, self.part, self.device = rows, part, device
        self.fractions = rows.fractions.astype(np.float64)
        self.correction = np.zeros(len(part.targets)) if corrections is None else corrections
        per_cell = part.quantity == "energy_per_cell"
        self.per_atom = part.targets / np.maximum(rows.n_atoms, 1) if per_cell else part.targets
        self.function = loss_function(config.loss, config.loss_delta)
        self.reach: Reach | None = None
        self.start = np.zeros(len(part.targets)) if start is None else start
        if part.kind == "regression" and config.epochs:  # the logits of a class have no end
            self.reach = fit_reach(rows, part, reference, self.start[part.train], self.correction[part.train])
        self.take(self._rescaled(reference, config.target_scale, rescale))

    def take(self, reference: Reference) -> None:
        """Set another reference, and so what the network is to say.

        For a regression that is the target less the reference. For a classification it is the class, with the
        reference added to the logit.
        """
        self.reference = reference
        offset = reference.predict(self.fractions) - self.correction
        is_class = self.part.kind == "classification"
        wanted = self.per_atom if is_class else (self.per_atom - offset) / reference.scale
        self.wanted = torch.from_numpy(wanted).float().to(self.device)
        self.offset = torch.from_numpy(offset if is_class else np.zeros_like(offset)).float().to(self.device)

    def loss(
        self, outputs: Tensor, which: np.ndarray, partners: np.ndarray | None = None, share: float = 1.0
    ) -> Tensor:
        """Mean loss of outputs for the rows at `which`; those rows hold `share` of themselves, the rest of a partner.

        Args:
            outputs: of the network, float32, shape (n,).
            which: row positions, int64, shape (n,).
            partners: rows that each is mixed with; None: with none.
            share: that a row has in its mixture.
        """
        wanted, offset = self.expected(which)
        if partners is not None:
            wanted_of_partner, offset_of_partner = self.expected(partners)
            wanted = torch.lerp(wanted_of_partner, wanted, share)
            offset = torch.lerp(offset_of_partner, offset, share)
        return self.function(outputs + offset, wanted)

    def expected(self, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """What `function` wants of the rows at `which`, and what it wants added to their outputs; shape (n,)."""
        rows = torch.from_numpy(which).to(self.device)
        return self.wanted[rows], self.offset[rows]

    def loss_value(self, outputs: np.ndarray, which: np.ndarray) -> float:
        """The same as a number, of outputs of shape (n,)."""
        return float(self.loss(torch.from_numpy(outputs).float().to(self.device), which))

    def predictions(self, outputs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """In the task's unit, from outputs for the rows at `which`; float64, shape (n,)."""
        return combine(
            self.reference, outputs, self.fractions[which], self.rows.n_atoms[which], self.correction[which],
            self.part.kind, self.part.quantity, self.reach, self.start[which],
        )  # fmt: skip

    def _rescaled(self, reference: Reference, target_scale: str, rescale: Callable[[float, float], None]) -> Reference:
        """The reference with the scale that the config asks for, and the network's output changed to fit."""
        if target_scale == "natural":
            return reference
        left = (self.per_atom + self.correction - self.fractions @ reference.coefficients)[self.part.train]
        if target_scale == "robust":
            shift = float(np.median(left))
            scale = 1.4826 * float(np.median(np.abs(left - shift)))  # of a normal distribution its standard deviation
        else:
            shift, scale = float(left.mean()), float(left.std())
        scale = max(scale, 1e-12)
        if math.isclose(scale, reference.scale, rel_tol=1e-9) and abs(shift - reference.intercept) < 1e-9 * scale:
            return reference  # already so: a fresh readout begins in this unit
        # The output so far is worth reference.scale, from reference.intercept on.
        rescale((shift - reference.intercept) / reference.scale, scale / reference.scale)
        return replace(reference, intercept=shift, scale=scale)
