"""CHGNet's gated MLPs on gathered rows: one interface, compiled kernels on the CPU, torch elsewhere.

A gated MLP acts on a concatenation [a, b, e] of gathered rows. Its first linear map is split into
W_a a + W_b b + W_e e, so that the products run over atoms and bonds and only their results are gathered to
edges and angles; core and gate share them. What follows the products is `kernels.py` on a CPU and
the same in torch's operations on any other device, or for other widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from models.crystals.chgnet import kernels
from models.crystals.chgnet.gather import Positions, summed, taken

if TYPE_CHECKING:
    from chgnet.model.functions import GatedMLP

Gathered = tuple[Tensor, Positions]  # rows, and positions among them


@dataclass(frozen=True)
class _Weights:
    """The parameters of a stock `GatedMLP`, core and gate in one tensor each.

    Attributes:
        first: shape (2 * width, columns of the concatenation).
        first_bias: shape (2 * width,).
        second: shape (2, width, width), or None where there is no hidden layer.
        second_bias: shape (2, 1, width), or None.
        norm: scale and shift of core and gate, shape (2, 2, width); ones and zeros where there is no norm.
        normed: whether there is a layer norm.
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor | None
    second_bias: Tensor | None
    norm: Tensor
    normed: bool


def summed_messages(
    mlp: GatedMLP, parts: Sequence[Gathered], weights: Sequence[Gathered], count: Tensor, target: Positions
) -> Tensor:
    """Messages of edges (or angles), weighted, counted and summed by the atom (or bond) they go to.

    Args:
        mlp: stock module with one hidden layer.
        parts: what it acts on, in the order of stock's concatenation.
        weights: one or two whose product weights a message.
        count: how often each message counts, float32, shape (n,).
        target: of each message.

    Returns:
        float32, shape (target.n_rows, width).
    """
    w = _weights_of(mlp)
    assert w.second is not None, "a gated MLP without a hidden layer"
    assert w.second_bias is not None
    products, positions = _products(w, parts), [places for _, places in parts]
    if _for_kernels(products[0]):
        active = _GatherSilu.apply(len(products), *products, *_indices(positions))
    else:
        active = nn.functional.silu(_gathered(products, positions)).unflatten(1, (2, -1)).transpose(0, 1)
    hidden = torch.baddbmm(w.second_bias, active, w.second)
    if _for_kernels(products[0]):
        rows, indices = [rows for rows, _ in weights], _indices([places for _, places in weights])
        return _GateAndSum.apply(
            w.normed, len(rows), target.n_rows, hidden, w.norm, count, target.index, *rows, *indices
        )
    messages = _gate(hidden[0], hidden[1], w) * count[:, None]
    for weight, places in weights:
        messages = messages * taken(weight, places)
    return summed(messages, target)


def gated_rows(mlp: GatedMLP, parts: Sequence[Gathered]) -> Tensor:
    """A stock `GatedMLP` without a hidden layer on each concatenation of parts, float32, shape (n, width)."""
    w = _weights_of(mlp)
    products, positions = _products(w, parts), [places for _, places in parts]
    if _for_kernels(products[0]):
        return _GatherAndGate.apply(w.normed, len(products), w.norm, *products, *_indices(positions))
    core, gate = _gathered(products, positions).chunk(2, dim=1)
    return _gate(core, gate, w)


def _for_kernels(product: Tensor) -> bool:
    """Whether the compiled kernels can take it."""
    return product.device.type == "cpu" and product.dtype == torch.float32 and product.shape[1] == 2 * kernels.WIDTH


def _products(w: _Weights, parts: Sequence[Gathered]) -> list[Tensor]:
    """The first linear map, part by part, before the gather; the bias goes with the first part."""
    products = []
    column = 0
    for rows, _ in parts:
        weight = w.first[:, column : column + rows.shape[1]].T
        products.append(rows @ weight if column else torch.addmm(w.first_bias, rows, weight))
        column += rows.shape[1]
    return products


def _gathered(products: Sequence[Tensor], positions: Sequence[Positions]) -> Tensor:
    total = taken(products[0], positions[0])
    for product, places in zip(products[1:], positions[1:], strict=True):
        total = total + taken(product, places)
    return total


def _indices(positions: Sequence[Positions]) -> list[Tensor]:
    return [places.index for places in positions]


def _gate(core: Tensor, gate: Tensor, w: _Weights) -> Tensor:
    width = (core.shape[1],)
    if w.normed:
        core = nn.functional.layer_norm(core, width, w.norm[0, 0], w.norm[0, 1])
        gate = nn.functional.layer_norm(gate, width, w.norm[1, 0], w.norm[1, 1])
    return nn.functional.silu(core) * torch.sigmoid(gate)


def _weights_of(mlp: GatedMLP) -> _Weights:
    core, gate = _linears(mlp.mlp_core.layers), _linears(mlp.mlp_gate.layers)
    second = second_bias = None
    if len(core) == 2:
        second = torch.stack([core[1].weight.T, gate[1].weight.T])
        second_bias = torch.stack([core[1].bias, gate[1].bias])[:, None]
    if mlp.bn1 is not None and mlp.bn2 is not None:
        norm = torch.stack([mlp.bn1.weight, mlp.bn1.bias, mlp.bn2.weight, mlp.bn2.bias])
    else:
        ones = torch.ones_like(core[-1].bias)
        norm = torch.stack([ones, 0 * ones, ones, 0 * ones]).detach()
    return _Weights(
        first=torch.cat([core[0].weight, gate[0].weight]),
        first_bias=torch.cat([core[0].bias, gate[0].bias]),
        second=second,
        second_bias=second_bias,
        norm=norm.view(2, 2, -1),
        normed=mlp.bn1 is not None,
    )


def _linears(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _arrays(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


class _GatherSilu(Function):
    """`kernels.gather_silu` with its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, n_parts: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        parts, indices = tensors[:n_parts], tensors[n_parts:]
        out = parts[0].new_empty(2, len(indices[0]), kernels.WIDTH)
        kernels.gather_silu(_arrays(parts), _arrays(indices), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n_parts = len(ctx.saved_tensors) // 2
        parts, indices = ctx.saved_tensors[:n_parts], ctx.saved_tensors[n_parts:]
        d_parts = [torch.zeros_like(part) for part in parts]
        kernels.gather_silu_backward(_arrays(parts), _arrays(indices), gradient.contiguous().numpy(), _arrays(d_parts))
        return (None, *d_parts, *[None] * n_parts)


class _GateAndSum(Function):
    """`kernels.gate_and_sum` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        normed: bool,
        n_weights: int,
        n_targets: int,
        hidden: Tensor,
        norm: Tensor,
        count: Tensor,
        target: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, norm, count, target, *weights)
        ctx.normed = normed
        rows, indices = weights[:n_weights], weights[n_weights:]
        out = hidden.new_zeros(n_targets, kernels.WIDTH)
        kernels.gate_and_sum(
            hidden.detach().numpy(),
            norm.detach().numpy(),
            normed,
            _arrays(rows),
            _arrays(indices),
            count.numpy(),
            target.numpy(),
            out.numpy(),
        )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, norm, count, target, *weights = ctx.saved_tensors
        rows, indices = weights[: len(weights) // 2], weights[len(weights) // 2 :]
        d_hidden, d_norm = torch.empty_like(hidden), torch.zeros_like(norm)
        d_rows = [torch.zeros_like(row) for row in rows]
        kernels.gate_and_sum_backward(
            gradient.contiguous().numpy(),
            hidden.detach().numpy(),
            norm.detach().numpy(),
            ctx.normed,
            _arrays(rows),
            _arrays(indices),
            count.numpy(),
            target.numpy(),
            d_hidden.numpy(),
            d_norm.numpy(),
            _arrays(d_rows),
        )
        return (None, None, None, d_hidden, d_norm, None, None, *d_rows, *[None] * len(indices))


class _GatherAndGate(Function):
    """`kernels.gather_and_gate` with its gradient."""

    @staticmethod
    def forward(ctx: Any, normed: bool, n_parts: int, norm: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(norm, *tensors)
        ctx.normed = normed
        parts, indices = tensors[:n_parts], tensors[n_parts:]
        out = norm.new_empty(len(indices[0]), kernels.WIDTH)
        kernels.gather_and_gate(_arrays(parts), _arrays(indices), norm.detach().numpy(), normed, out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        norm, *tensors = ctx.saved_tensors
        parts, indices = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        d_norm, d_parts = torch.zeros_like(norm), [torch.zeros_like(part) for part in parts]
        kernels.gather_and_gate_backward(
            gradient.contiguous().numpy(),
            _arrays(parts),
            _arrays(indices),
            norm.detach().numpy(),
            ctx.normed,
            _arrays(d_parts),
            d_norm.numpy(),
        )
        return (None, None, d_norm, *d_parts, *[None] * len(indices))
