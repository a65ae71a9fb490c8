"""Parameters as a few flat tensors, and the rule of a step on them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import GradientConfig


def make_optimizer(config: GradientConfig, flats: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of a config, with a group of its own for each flat tensor."""
    groups = [{"params": [flat]} for flat in flats]
    if config.optimizer == "radam":
        # Decoupled as in AdamW, so that `weight_decay` means the same for both.
        return torch.optim.RAdam(
            groups, lr=config.lr, weight_decay=config.weight_decay, decoupled_weight_decay=True, foreach=False
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def flattened(parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """One tensor that holds all parameters, and one of their gradients; theirs become views of these.

    The optimiser and the limit on the gradient then take a few calls a step, not a few for each of up to 130 tensors.
    """
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).requires_grad_()
    gradient = flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        part = slice(start, start + parameter.numel())
        parameter.data = flat.detach()[part].view_as(parameter)
        parameter.grad = gradient[part].view_as(parameter)
        start += parameter.numel()
    return flat, gradient


def twin(network: nn.Module) -> nn.Module:
    """A copy of a network with weights of its own; a plain copy would share what `flattened` made."""
    copied_network = copy.deepcopy(network)
    for parameter in copied_network.parameters():
        parameter.data = parameter.data.clone()
        parameter.grad = None
    return copied_network
