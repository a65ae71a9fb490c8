"""What training makes small: the losses of `GradientConfig.loss`, each a value for every element of an output."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_function(name: str, delta: float) -> Loss:
    """The loss of each element of outputs against its goals, both float32 of one shape, which is the loss's too.

    With several classes outputs have one axis more, the last, of a logit each.

    Args:
        name: a value of `GradientConfig.loss`.
        delta: error where `huber` turns from quadratic to linear (Huber, Ann. Math. Stat. 35, 73 (1964)), and the scale
            of `log_cosh`, which does so smoothly; both are half the squared error near zero.
    """
    functional = nn.functional
    losses: dict[str, Loss] = {
        "mae": lambda outputs, goals: functional.l1_loss(outputs, goals, reduction="none"),
        "mse": lambda outputs, goals: functional.mse_loss(outputs, goals, reduction="none"),
        "huber": lambda outputs, goals: functional.huber_loss(outputs, goals, reduction="none", delta=delta),
        "log_cosh": lambda outputs, goals: _log_cosh((outputs - goals) / delta) * delta**2,
        "cross_entropy": _cross_entropy,
    }
    return losses[name]


def _cross_entropy(outputs: Tensor, goals: Tensor) -> Tensor:
    """The loss of logits against 0 or 1, or of those of several classes, on the last axis, against numbers."""
    if outputs.ndim == goals.ndim:
        return nn.functional.binary_cross_entropy_with_logits(outputs, goals, reduction="none")
    return nn.functional.cross_entropy(outputs.movedim(-1, 1), goals.long(), reduction="none", ignore_index=-1)


def _log_cosh(x: Tensor) -> Tensor:
    # In this form large errors do not overflow.
    return x + nn.functional.softplus(-2 * x) - math.log(2)
