"""Rows taken at positions, and rows summed by position: each the gradient of the other.

On a GPU torch sums by position in an order that changes from run to run, or, told not to, sorts anew for every sum. The
positions of a batch serve some fifty sums, so here they are sorted once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions among so many rows.

    Attributes:
        index: int32, shape (n,).
        n_rows: that they point to.
    """

    index: Tensor
    n_rows: int

    @cached_property
    def by_row(self) -> tuple[Tensor, Tensor]:
        """Where each row is pointed to: places in `index`, row by row, and where each row's begin; int64."""
        ordered, order = torch.sort(self.index, stable=True)
        rows = torch.arange(self.n_rows + 1, dtype=self.index.dtype, device=self.index.device)
        return order, torch.searchsorted(ordered, rows)


def taken(rows: Tensor, positions: Positions) -> Tensor:
    """The rows at some positions, shape (n, ...)."""
    if rows.device.type == "cpu":
        return rows.index_select(0, positions.index)
    return _Taken.apply(rows, positions) if torch.is_grad_enabled() else rows.index_select(0, positions.index)


def summed(values: Tensor, positions: Positions) -> Tensor:
    """Sums of values by the position that each has, shape (n_rows, ...)."""
    if values.device.type == "cpu":
        return values.new_zeros(positions.n_rows, *values.shape[1:]).index_add(0, positions.index, values)
    return _Summed.apply(values, positions)


def added(rows: Tensor, values: Tensor, positions: Positions) -> Tensor:
    """Rows, with values added at the position that each has; shape as `rows`."""
    if rows.device.type == "cpu":
        return rows.index_add(0, positions.index, values)
    return rows + _Summed.apply(values, positions)


def _sum(values: Tensor, positions: Positions) -> Tensor:
    order, start = positions.by_row
    # Unsafe is what is not checked, for which the GPU would have to be waited for.
    return torch.segment_reduce(values.index_select(0, order), "sum", offsets=start, axis=0, unsafe=True)


class _Taken(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, positions: Positions) -> Tensor:
        ctx.positions = positions
        return rows.index_select(0, positions.index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.positions), None


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Positions) -> Tensor:
        ctx.positions = positions
        return _sum(values, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.positions.index), None
