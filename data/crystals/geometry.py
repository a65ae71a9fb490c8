"""One graph laid out for a network: lengths of its bonds, the edges that leave each atom, and their angles.

A *short* edge belongs to a bond shorter than the bond-graph cutoff; any two that leave the same atom form an
angle. Everything is computed in double precision. What is made here lives only while a batch is assembled
(`data/crystals/batches.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.machine.compiled import compiled


class Geometry(NamedTuple):
    """Of one crystal; for atom i with d short edges the angle between its p-th and q-th is at `i, p, q`.

    Attributes:
        length: of each bond, Angstrom, float64, shape (n_bonds,).
        is_short: of each bond, bool, shape (n_bonds,).
        edge_start, edge_bond, edge_other: edges `edge_start[i]:edge_start[i + 1]` leave atom i; their bonds,
            and the atoms at their other ends.
        short_start, short_bond: the same of short edges.
        short_place: place of a short bond among the short edges of its first and its second atom,
            int64, shape (n_bonds, 2).
        angle_start, angle: radian, float64; at `angle_start[i] + d * p + q`, so for p = q too (0).
    """

    length: np.ndarray
    is_short: np.ndarray
    edge_start: np.ndarray
    edge_bond: np.ndarray
    edge_other: np.ndarray
    short_start: np.ndarray
    short_bond: np.ndarray
    short_place: np.ndarray
    angle_start: np.ndarray
    angle: np.ndarray


@compiled
def geometry_of(
    frac_coords: np.ndarray,
    lattice: np.ndarray,
    bond_atoms: np.ndarray,
    bond_image: np.ndarray,
    bond_graph_cutoff: float,
) -> Geometry:
    """Lay out one graph; the arrays are those of `data.crystals.graphs.Graph`."""
    n_atoms = len(frac_coords)
    n_bonds = len(bond_atoms)
    length = np.empty(n_bonds)
    unit = np.empty((n_bonds, 3))
    is_short = np.empty(n_bonds, dtype=np.bool_)
    edge_start = np.zeros(n_atoms + 1, dtype=np.int64)
    short_start = np.zeros(n_atoms + 1, dtype=np.int64)
    for k in range(n_bonds):
        i, j = int(bond_atoms[k, 0]), int(bond_atoms[k, 1])
        da = np.float64(frac_coords[j, 0]) - frac_coords[i, 0] + bond_image[k, 0]
        db = np.float64(frac_coords[j, 1]) - frac_coords[i, 1] + bond_image[k, 1]
        dc = np.float64(frac_coords[j, 2]) - frac_coords[i, 2] + bond_image[k, 2]
        x = da * lattice[0, 0] + db * lattice[1, 0] + dc * lattice[2, 0]
        y = da * lattice[0, 1] + db * lattice[1, 1] + dc * lattice[2, 1]
        z = da * lattice[0, 2] + db * lattice[1, 2] + dc * lattice[2, 2]
        distance = np.sqrt(x * x + y * y + z * z)
        length[k] = distance
        unit[k, 0] = x / distance
        unit[k, 1] = y / distance
        unit[k, 2] = z / distance
        is_short[k] = distance < bond_graph_cutoff
        for side in range(2):
            edge_start[bond_atoms[k, side] + 1] += 1
            if is_short[k]:
                short_start[bond_atoms[k, side] + 1] += 1

    angle_start = np.zeros(n_atoms + 1, dtype=np.int64)
    for i in range(n_atoms):
        angle_start[i + 1] = angle_start[i] + short_start[i + 1] ** 2
        edge_start[i + 1] += edge_start[i]
        short_start[i + 1] += short_start[i]

    edge_bond = np.empty(2 * n_bonds, dtype=np.int32)
    edge_other = np.empty(2 * n_bonds, dtype=np.int32)
    short_bond = np.empty(short_start[n_atoms], dtype=np.int32)
    short_sign = np.empty(short_start[n_atoms])
    short_place = np.empty((n_bonds, 2), dtype=np.int64)
    next_edge = edge_start.copy()
    next_short = short_start.copy()
    for k in range(n_bonds):
        for side in range(2):
            i = int(bond_atoms[k, side])
            edge_bond[next_edge[i]] = k
            edge_other[next_edge[i]] = bond_atoms[k, 1 - side]
            next_edge[i] += 1
            if is_short[k]:
                short_bond[next_short[i]] = k
                short_sign[next_short[i]] = 1.0 - 2.0 * side
                short_place[k, side] = next_short[i] - short_start[i]
                next_short[i] += 1

    angle = np.zeros(angle_start[n_atoms])
    for i in range(n_atoms):
        first = short_start[i]
        degree = short_start[i + 1] - first
        for p in range(degree):
            u = short_bond[first + p]
            for q in range(p + 1, degree):
                v = short_bond[first + q]
                cosine = unit[u, 0] * unit[v, 0] + unit[u, 1] * unit[v, 1] + unit[u, 2] * unit[v, 2]
                # 1 - 1e-6 keeps acos differentiable in stock CHGNet, and its weights were trained with it
                value = np.arccos(cosine * short_sign[first + p] * short_sign[first + q] * (1.0 - 1e-6))
                angle[angle_start[i] + degree * p + q] = value
                angle[angle_start[i] + degree * q + p] = value
    return Geometry(
        length,
        is_short,
        edge_start,
        edge_bond,
        edge_other,
        short_start,
        short_bond,
        short_place,
        angle_start,
        angle,
    )
