"""What training makes small: the losses of `GradientConfig.loss`."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_function(name: str, delta: float) -> Loss:
    """Mean loss of outputs against wanted values, both float32 of shape (n,).

    Args:
        name: a value of `GradientConfig.loss`.
        delta: error where `huber` turns from quadratic to linear (Huber, Ann. Math. Stat. 35, 73 (1964)), and the scale
            of `log_cosh`, which does so smoothly; both are half the squared error near zero.
    """
    if name == "mae":
        return nn.functional.l1_loss
    if name == "mse":
        return nn.functional.mse_loss
    if name == "huber":
        return lambda outputs, wanted: nn.functional.huber_loss(outputs, wanted, delta=delta)
    if name == "log_cosh":
        return lambda outputs, wanted: _log_cosh((outputs - wanted) / delta) * delta**2
    return nn.functional.binary_cross_entropy_with_logits


def _log_cosh(x: Tensor) -> Tensor:
    # In this form large errors do not overflow.
    return (x + nn.functional.softplus(-2 * x) - math.log(2)).mean()
