"""Batches made as large as others, so that what was recorded for one of them serves all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.crystals.batches import GraphBatch

GROWTH = 1.2  # from one size to the next


class BatchSize(NamedTuple):
    """Rows of each kind that a batch has."""

    atoms: float
    edges: float
    bonds: float
    short: float
    angles: float


def size_of(batch: GraphBatch) -> BatchSize:
    """Rows of each kind."""
    return BatchSize(
        len(batch.numbers), len(batch.center), len(batch.bond_length), len(batch.short_bonds), len(batch.angle)
    )


def size_above(size: BatchSize, typical: BatchSize) -> tuple[BatchSize, int]:
    """The smallest of the sizes that has room for a batch, and its number.

    A size is the typical one times a power of `GROWTH`; all its numbers grow together, so that there are few sizes.
    """
    least, common = np.maximum(np.array(size), 1), np.maximum(np.array(typical), 1.0)
    level = math.ceil(math.log(np.max(least / common)) / math.log(GROWTH) - 1e-9)
    rows = np.ceil(common * GROWTH**level).astype(int)
    return BatchSize(*np.maximum(rows, least).tolist()), level


def padded(batch: GraphBatch, size: BatchSize) -> GraphBatch:
    """The same batch with more rows, which count for nothing.

    What they point to is spread over all rows, so that no sum becomes much longer than the others.

    Args:
        batch: on the CPU.
        size: not below the batch's in any number; whole numbers, and atoms, bonds and short bonds above zero.
    """
    atoms, edges, bonds, short, angles = (int(rows) for rows in size)

    def pointing(positions: Tensor, n_rows: int, n_targets: int) -> Tensor:
        padding = torch.arange(n_rows - len(positions), dtype=positions.dtype).remainder_(n_targets)
        return torch.cat([positions, padding])

    def filled(values: Tensor, n_rows: int, filling: int) -> Tensor:
        return torch.cat([values, values.new_full((n_rows - len(values), *values.shape[1:]), filling)])

    return GraphBatch(
        numbers=filled(batch.numbers, atoms, 1),
        owner=pointing(batch.owner, atoms, batch.n_graphs),
        atom_count=filled(batch.atom_count, atoms, 0),
        atoms_per_graph=batch.atoms_per_graph,
        center=pointing(batch.center, edges, atoms),
        neighbor=pointing(batch.neighbor, edges, atoms),
        edge_bond=pointing(batch.edge_bond, edges, bonds),
        edge_count=filled(batch.edge_count, edges, 0),
        bond_length=filled(batch.bond_length, bonds, 1),
        short_bonds=pointing(batch.short_bonds, short, bonds),
        bond_has_angles=filled(batch.bond_has_angles, bonds, 0),
        angle_center=pointing(batch.angle_center, angles, atoms),
        angle_bond_i=pointing(batch.angle_bond_i, angles, short),
        angle_bond_j=pointing(batch.angle_bond_j, angles, short),
        angle_count=filled(batch.angle_count, angles, 0),
        angle=filled(batch.angle, angles, 1),
    )
