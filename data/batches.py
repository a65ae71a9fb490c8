"""Graphs -> the tensors of a training batch: bonds with lengths, angles with their values.

All graphs of a batch are laid behind one another and assembled in two compiled passes; no Python loop
runs over graphs. Geometry is computed in double precision and handed over in single precision.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numba
import numpy as np
import torch
from torch import Tensor

from data.graphs import Graphs


@dataclass(frozen=True)
class GraphBatch:
    """What CHGNet needs of a batch; indices are int64 and count through the whole batch.

    A directed edge e belongs to bond `e % n_bonds`: the first half runs i -> j, the second j -> i.
    A *short* bond is shorter than the bond-graph cutoff; only these form angles.

    Attributes:
        numbers: atomic numbers, int64, shape (n_atoms,).
        owner: graph of each atom, shape (n_atoms,).
        atoms_per_graph: float32, shape (n_graphs,).
        center, neighbor: atoms of each directed edge, shape (2 * n_bonds,).
        bond_length: Angstrom, float32, shape (n_bonds,).
        short_bonds: bonds that form angles, shape (n_short,).
        bond_has_angles: whether the graph of a bond has any angle, float32, shape (n_bonds, 1).
        angle_center: atom at the vertex, shape (n_angles,).
        angle_bond_i, angle_bond_j: positions in `short_bonds` of the two sides, shape (n_angles,).
        angle: radian, float32, shape (n_angles,).
    """

    numbers: Tensor
    owner: Tensor
    atoms_per_graph: Tensor
    center: Tensor
    neighbor: Tensor
    bond_length: Tensor
    short_bonds: Tensor
    bond_has_angles: Tensor
    angle_center: Tensor
    angle_bond_i: Tensor
    angle_bond_j: Tensor
    angle: Tensor

    @property
    def n_graphs(self) -> int:
        """Number of graphs in the batch."""
        return len(self.atoms_per_graph)

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        return GraphBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def graph_batch(graphs: Graphs, which: np.ndarray, bond_graph_cutoff: float) -> GraphBatch:
    """Assemble a batch.

    Args:
        graphs: the graphs to choose from.
        which: positions of the chosen graphs, int64, shape (n_graphs,).
        bond_graph_cutoff: Angstrom; bonds shorter than this form angles.
    """
    which = np.asarray(which, dtype=np.int64)
    atoms_per_graph = graphs.atom_start[which + 1] - graphs.atom_start[which]
    arrays = _assemble(
        graphs.numbers,
        graphs.frac_coords,
        graphs.lattices,
        graphs.bond_atoms,
        graphs.bond_image,
        graphs.atom_start,
        graphs.bond_start,
        which,
        bond_graph_cutoff,
    )
    numbers, owner, edges, bond_length, short, bond_has_angles, angle_index, angle = map(torch.from_numpy, arrays)
    return GraphBatch(
        numbers=numbers,
        owner=owner,
        atoms_per_graph=torch.from_numpy(atoms_per_graph.astype(np.float32)),
        center=edges[0],
        neighbor=edges[1],
        bond_length=bond_length,
        short_bonds=short,
        bond_has_angles=bond_has_angles[:, None],
        angle_center=angle_index[0],
        angle_bond_i=angle_index[1],
        angle_bond_j=angle_index[2],
        angle=angle,
    )


@numba.njit(cache=True)
def _assemble(
    numbers: np.ndarray,
    frac_coords: np.ndarray,
    lattices: np.ndarray,
    bond_atoms: np.ndarray,
    bond_image: np.ndarray,
    atom_start: np.ndarray,
    bond_start: np.ndarray,
    which: np.ndarray,
    bond_graph_cutoff: float,
) -> tuple[np.ndarray, ...]:
    """The arrays of `graph_batch`, in the order in which it unpacks them."""
    n_atoms = 0
    n_bonds = 0
    for g in which:
        n_atoms += atom_start[g + 1] - atom_start[g]
        n_bonds += bond_start[g + 1] - bond_start[g]

    # First pass: atoms, edges, bond vectors; the short directed edges leaving each atom are counted.
    out_numbers = np.empty(n_atoms, dtype=np.int64)
    owner = np.empty(n_atoms, dtype=np.int64)
    edges = np.empty((2, 2 * n_bonds), dtype=np.int64)
    length = np.empty(n_bonds, dtype=np.float32)
    unit = np.empty((n_bonds, 3), dtype=np.float64)
    short_position = np.full(n_bonds, -1, dtype=np.int64)
    degree = np.zeros(n_atoms, dtype=np.int64)
    n_short = 0
    atom = 0
    bond = 0
    for position in range(len(which)):
        g = which[position]
        first_atom = atom
        lattice = lattices[g].astype(np.float64)
        for k in range(atom_start[g], atom_start[g + 1]):
            out_numbers[atom] = numbers[k]
            owner[atom] = position
            atom += 1
        for k in range(bond_start[g], bond_start[g + 1]):
            i = np.int64(bond_atoms[k, 0])
            j = np.int64(bond_atoms[k, 1])
            edges[0, bond] = edges[1, n_bonds + bond] = first_atom + i
            edges[1, bond] = edges[0, n_bonds + bond] = first_atom + j
            da = np.float64(frac_coords[atom_start[g] + j, 0]) - frac_coords[atom_start[g] + i, 0] + bond_image[k, 0]
            db = np.float64(frac_coords[atom_start[g] + j, 1]) - frac_coords[atom_start[g] + i, 1] + bond_image[k, 1]
            dc = np.float64(frac_coords[atom_start[g] + j, 2]) - frac_coords[atom_start[g] + i, 2] + bond_image[k, 2]
            x = da * lattice[0, 0] + db * lattice[1, 0] + dc * lattice[2, 0]
            y = da * lattice[0, 1] + db * lattice[1, 1] + dc * lattice[2, 1]
            z = da * lattice[0, 2] + db * lattice[1, 2] + dc * lattice[2, 2]
            distance = np.sqrt(x * x + y * y + z * z)
            length[bond] = distance
            unit[bond, 0] = x / distance
            unit[bond, 1] = y / distance
            unit[bond, 2] = z / distance
            if distance < bond_graph_cutoff:
                short_position[bond] = n_short
                n_short += 1
                degree[first_atom + i] += 1
                degree[first_atom + j] += 1
            bond += 1

    # Second pass: the short directed edges of each atom, then every ordered pair of them.
    edge_start = np.zeros(n_atoms + 1, dtype=np.int64)
    n_angles = 0
    for k in range(n_atoms):
        edge_start[k + 1] = edge_start[k] + degree[k]
        n_angles += degree[k] * (degree[k] - 1)
    short = np.empty(n_short, dtype=np.int64)
    edge_bond = np.empty(edge_start[-1], dtype=np.int64)
    edge_sign = np.empty(edge_start[-1], dtype=np.float64)
    filled = edge_start[:-1].copy()
    for k in range(n_bonds):
        if short_position[k] < 0:
            continue
        short[short_position[k]] = k
        for direction in range(2):
            start = edges[direction, k]
            edge_bond[filled[start]] = k
            edge_sign[filled[start]] = 1.0 - 2.0 * direction
            filled[start] += 1
    angle_index = np.empty((3, n_angles), dtype=np.int64)
    angle = np.empty(n_angles, dtype=np.float32)
    has_angles = np.zeros(len(which), dtype=np.float32)
    count = 0
    for k in range(n_atoms):
        for p in range(edge_start[k], edge_start[k + 1]):
            for q in range(edge_start[k], edge_start[k + 1]):
                if p == q:
                    continue
                u = edge_bond[p]
                v = edge_bond[q]
                cosine = unit[u, 0] * unit[v, 0] + unit[u, 1] * unit[v, 1] + unit[u, 2] * unit[v, 2]
                # 1 - 1e-6 keeps acos differentiable in stock CHGNet, and its weights were trained with it
                cosine *= edge_sign[p] * edge_sign[q] * (1.0 - 1e-6)
                angle_index[0, count] = k
                angle_index[1, count] = short_position[u]
                angle_index[2, count] = short_position[v]
                angle[count] = np.arccos(cosine)
                count += 1
        if edge_start[k + 1] - edge_start[k] > 1:
            has_angles[owner[k]] = 1.0
    bond_has_angles = np.empty(n_bonds, dtype=np.float32)
    for k in range(n_bonds):
        bond_has_angles[k] = has_angles[owner[edges[0, k]]]
    return out_numbers, owner, edges, length, short, bond_has_angles, angle_index, angle
