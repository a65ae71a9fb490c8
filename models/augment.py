"""Crystals moved a little: noise for training, and copies to average over at test time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.graphs import Graphs


def moved(graphs: Graphs, jitter: float, strain: float, seed: list[int]) -> Graphs:
    """The same crystals with atoms displaced and cells strained at random.

    Bonds stay those of the unmoved crystal: at the cutoff CHGNet's envelope is zero with its slope, so a bond that
    comes into reach or leaves it is worth next to nothing.

    Args:
        graphs: to move; left as they are.
        jitter: standard deviation of each Cartesian coordinate, Angstrom.
        strain: standard deviation of each component of a symmetric strain; no unit.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed)
    frac_coords, lattices = graphs.frac_coords, graphs.lattices
    if jitter:
        whole = graphs.atoms_per_graph > 0  # a rejected row has no cell
        inverse = np.zeros(lattices.shape)
        inverse[whole] = np.linalg.inv(lattices[whole].astype(np.float64))
        shifts = noise.normal(0.0, jitter, frac_coords.shape)
        owner = np.repeat(np.arange(len(graphs)), graphs.atoms_per_graph)
        moves = np.einsum("ai,aij->aj", shifts, inverse[owner])
        frac_coords = (frac_coords + moves).astype(frac_coords.dtype)
    if strain:
        random = noise.normal(0.0, strain, (len(graphs), 3, 3))
        upper = np.triu(random)
        symmetric = upper + np.triu(random, 1).transpose(0, 2, 1)
        lattices = (lattices @ (np.eye(3) + symmetric)).astype(lattices.dtype)
    return replace(graphs, frac_coords=frac_coords, lattices=lattices)
