"""Crystals moved a little: noise for training, and copies to average over at test time.

Bonds stay those of the unmoved crystal: at the cutoff CHGNet's envelope is zero with its slope, so a bond that comes
into reach or leaves it is worth next to nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.crystals.graphs import Graphs


def moved(graphs: Graphs, jitter: float, strain: float, seed: list[int]) -> Graphs:
    """The same crystals with atoms displaced and cells strained at random, each in its own way.

    Args:
        graphs: to move; left as they are.
        jitter: standard deviation of each Cartesian coordinate, Angstrom.
        strain: standard deviation of each component of a symmetric strain; no unit.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed)
    shifts = noise.normal(0.0, jitter, graphs.frac_coords.shape) if jitter else None
    strains = noise.normal(0.0, strain, (len(graphs), 3, 3)) if strain else None
    return _displaced(graphs, shifts, strains)


def copy_of(graphs: Graphs, number: int, jitter: float, strain: float) -> Graphs:
    """One of the copies to average over: all crystals are strained alike, and their first atoms displaced alike.

    So a crystal's copy is the same whichever others are predicted with it.

    Args:
        graphs: to move; left as they are.
        number: of the copy; others are moved otherwise.
        jitter: standard deviation of each Cartesian coordinate, Angstrom.
        strain: standard deviation of each component of a symmetric strain; no unit.
    """
    noise = np.random.default_rng([0, number])
    strains = np.broadcast_to(noise.normal(0.0, strain, (3, 3)), (len(graphs), 3, 3))
    n_atoms = graphs.atoms_per_graph
    shifts = noise.normal(0.0, jitter, (int(n_atoms.max(initial=0)), 3))
    within = np.arange(len(graphs.frac_coords)) - np.repeat(graphs.atom_start[:-1], n_atoms)
    return _displaced(graphs, shifts[within], strains)


def _displaced(graphs: Graphs, shifts: np.ndarray | None, strains: np.ndarray | None) -> Graphs:
    """Atoms displaced by `shifts`, Angstrom, shape (n_atoms, 3); cells strained by the upper part of `strains`."""
    frac_coords, lattices = graphs.frac_coords, graphs.lattices
    if shifts is not None:
        whole = graphs.atoms_per_graph > 0  # a rejected row has no cell
        inverse = np.zeros(lattices.shape)
        inverse[whole] = np.linalg.inv(lattices[whole].astype(np.float64))
        owner = np.repeat(np.arange(len(graphs)), graphs.atoms_per_graph)
        moves = np.einsum("ai,aij->aj", shifts, inverse[owner])
        frac_coords = (frac_coords + moves).astype(frac_coords.dtype)
    if strains is not None:
        symmetric = np.triu(strains) + np.triu(strains, 1).transpose(0, 2, 1)
        lattices = (lattices @ (np.eye(3) + symmetric)).astype(lattices.dtype)
    return replace(graphs, frac_coords=frac_coords, lattices=lattices)
