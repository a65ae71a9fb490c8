"""Graphs -> the tensors of a training batch: bonds with lengths, angles with their values.

All graphs of a batch are laid behind one another in one compiled pass; no Python loop runs over graphs.
Geometry is computed in double precision (`data/crystals/geometry.py`) and handed over in single precision. Where
symmetry is collapsed, atoms, bonds and angles that are equivalent (`data/crystals/symmetry.py`) are computed once
and counted as often as they occur.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from data.crystals.geometry import Geometry, geometry_of
from data.crystals.graphs import Graphs
from data.crystals.symmetry import TOLERANCE, empty, equivalent_classes, new_table, value_classes, value_of
from data.machine.compiled import compiled, read_only


@dataclass(frozen=True)
class GraphBatch:
    """What CHGNet needs of a batch; indices are int32 and count through the whole batch.

    An *edge* is a bond seen from one of its atoms. A *short* bond is shorter than the bond-graph cutoff;
    only these form angles. Rows stand for classes of equivalent atoms, edges, bonds and angles; without
    collapse every class has one member.

    Attributes:
        numbers: atomic numbers, int32, shape (n_atoms,).
        owner: graph of each atom, shape (n_atoms,).
        atom_count: how many atoms of the crystal a row stands for, float32, shape (n_atoms,).
        atoms_per_graph: of the crystals, float32, shape (n_graphs,).
        center, neighbor: atoms of each edge, in the order of the center, shape (n_edges,).
        edge_bond: bond of each edge, shape (n_edges,).
        edge_count: how many edges of its center an edge stands for, float32, shape (n_edges,).
        bond_length: Angstrom, float32, shape (n_bonds,).
        short_bonds: bonds that form angles, shape (n_short,).
        bond_has_angles: whether the graph of a bond has any angle, float32, shape (n_bonds, 1).
        angle_center: atom at the vertex, shape (n_angles,).
        angle_bond_i, angle_bond_j: positions in `short_bonds` of the two sides, in the order of the
            first, shape (n_angles,).
        angle_count: how many angles of its first bond an angle stands for, float32, shape (n_angles,).
        angle: radian, float32, shape (n_angles,).
    """

    numbers: Tensor
    owner: Tensor
    atom_count: Tensor
    atoms_per_graph: Tensor
    center: Tensor
    neighbor: Tensor
    edge_bond: Tensor
    edge_count: Tensor
    bond_length: Tensor
    short_bonds: Tensor
    bond_has_angles: Tensor
    angle_center: Tensor
    angle_bond_i: Tensor
    angle_bond_j: Tensor
    angle_count: Tensor
    angle: Tensor

    @property
    def n_graphs(self) -> int:
        """Number of graphs in the batch."""
        return len(self.atoms_per_graph)

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        return GraphBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def graph_batch(graphs: Graphs, which: np.ndarray, bond_graph_cutoff: float, *, collapse: bool = False) -> GraphBatch:
    """Assemble a batch.

    Args:
        graphs: the graphs to choose from.
        which: positions of the chosen graphs, int64, shape (n_graphs,).
        bond_graph_cutoff: Angstrom; bonds shorter than this form angles.
        collapse: whether equivalent atoms, bonds and angles share a row. Lengths and angles are the same
            within `data.crystals.symmetry.TOLERANCE`.
    """
    arrays = _assemble(
        *graphs.read_only(),
        read_only(which.astype(np.int64)),
        float(bond_graph_cutoff),
        TOLERANCE if collapse else 0.0,
    )
    return GraphBatch(*map(torch.from_numpy, arrays))


def split_by_size(graphs: Graphs, which: np.ndarray, most_bonds: int) -> list[np.ndarray]:
    """Cut a list of graphs into runs of at most `most_bonds` bonds, or of one graph that has more.

    Time and memory of a pass go with bonds, not with graphs: runs cut so are alike and bounded.
    """
    total = np.cumsum(graphs.bond_start[which + 1] - graphs.bond_start[which])
    cuts = []
    run_start = 0
    for k in range(1, len(which)):
        if total[k] - run_start > most_bonds:
            cuts.append(k)
            run_start = total[k - 1]
    return np.split(which, cuts)


@compiled
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
    tolerance: float,
) -> tuple[np.ndarray, ...]:
    """The arrays of a `GraphBatch`, in its order; no tolerance, no collapse."""
    n_atoms, n_bonds = 0, 0
    for g in which:
        n_atoms += atom_start[g + 1] - atom_start[g]
        n_bonds += bond_start[g + 1] - bond_start[g]
    # As long as they can get, but for the angles, which grow on demand. Memory that is never written to
    # costs nothing.
    out_numbers = np.empty(n_atoms, dtype=np.int32)
    owner = np.empty(n_atoms, dtype=np.int32)
    atom_count = np.zeros(n_atoms, dtype=np.float32)
    atoms_per_graph = np.empty(len(which), dtype=np.float32)
    edges = np.empty((3, 2 * n_bonds), dtype=np.int32)  # center, neighbor, bond
    edge_count = np.empty(2 * n_bonds, dtype=np.float32)
    bond_length = np.empty(n_bonds, dtype=np.float32)
    short_bonds = np.empty(n_bonds, dtype=np.int32)
    bond_has_angles = np.empty((n_bonds, 1), dtype=np.float32)
    short_row = np.empty(n_bonds, dtype=np.int32)
    angles = np.empty((3, 4 * n_bonds), dtype=np.int32)  # center, bond i, bond j
    angle_values = np.empty((2, 4 * n_bonds), dtype=np.float32)  # count, angle
    # Of a plain 0 numba would compile the functions below twice.
    atom_row = edge_row = bond_row = n_short = angle_row = np.int64(0)
    table = new_table(np.int64(0))
    for position in range(len(which)):
        g = which[position]
        atoms, bonds = slice(atom_start[g], atom_start[g + 1]), slice(bond_start[g], bond_start[g + 1])
        z, ends = numbers[atoms], bond_atoms[bonds]
        lattice = lattices[g].astype(np.float64)
        geometry = geometry_of(frac_coords[atoms], lattice, ends, bond_image[bonds], bond_graph_cutoff)
        if tolerance > 0.0:
            if table.shape[1] < 2 * max(len(ends), len(geometry.angle)):
                table = new_table(max(len(ends), len(geometry.angle)))
            angle_class = value_classes(geometry.angle, tolerance, table)
            atom_class, bond_class = equivalent_classes(z, geometry, angle_class, tolerance, table)
        else:
            angle_class = np.empty(0, dtype=np.int32)
            atom_class = np.arange(len(z)).astype(np.int32)
            bond_class = np.arange(len(ends)).astype(np.int32)

        atoms_per_graph[position] = len(z)
        n_classes = 0
        for i in range(len(z)):
            row = atom_row + atom_class[i]
            atom_count[row] += 1.0
            if atom_class[i] < n_classes:
                continue
            n_classes += 1
            out_numbers[row] = z[i]
            owner[row] = position
            edge_row = _write_edges(
                i, geometry, atom_class, bond_class, atom_row, bond_row, tolerance, table, edges, edge_count, edge_row
            )

        n_bond_classes = 0
        for k in range(len(ends)):
            if bond_class[k] == n_bond_classes:
                bond_length[bond_row + n_bond_classes] = geometry.length[k]
                if geometry.is_short[k]:
                    short_bonds[n_short] = bond_row + n_bond_classes
                    short_row[n_bond_classes] = n_short
                    n_short += 1
                n_bond_classes += 1
        first_angle = angle_row
        n_bond_classes = 0
        for k in range(len(ends)):
            if bond_class[k] == n_bond_classes:
                n_bond_classes += 1
                if geometry.is_short[k]:
                    angles, angle_values = _with_room(angles, angle_values, angle_row + 2 * len(geometry.short_bond))
                    angle_row = _write_angles(
                        k, ends[k], geometry, atom_class, bond_class, angle_class, atom_row, short_row, tolerance,
                        table, angles, angle_values, angle_row,
                    )  # fmt: skip
        for bond in range(bond_row, bond_row + n_bond_classes):
            bond_has_angles[bond, 0] = 1.0 if angle_row > first_angle else 0.0
        atom_row += n_classes
        bond_row += n_bond_classes
    return (
        out_numbers[:atom_row],
        owner[:atom_row],
        atom_count[:atom_row],
        atoms_per_graph,
        edges[0, :edge_row],
        edges[1, :edge_row],
        edges[2, :edge_row],
        edge_count[:edge_row],
        bond_length[:bond_row],
        short_bonds[:n_short],
        bond_has_angles[:bond_row],
        angles[0, :angle_row],
        angles[1, :angle_row],
        angles[2, :angle_row],
        angle_values[0, :angle_row],
        angle_values[1, :angle_row],
    )


@compiled
def _write_edges(
    i: int,
    geometry: Geometry,
    atom_class: np.ndarray,
    bond_class: np.ndarray,
    atom_row: int,
    bond_row: int,
    tolerance: float,
    table: np.ndarray,
    edges: np.ndarray,
    edge_count: np.ndarray,
    edge_row: int,
) -> int:
    """Write the edges that leave atom i; those of the same bond and neighbor class share a row.

    Returns:
        The next free row.
    """
    _, _, edge_start, edge_bond, edge_other, _, _, _, _, _ = geometry
    empty(table)
    for k in range(edge_start[i], edge_start[i + 1]):
        bond = bond_class[edge_bond[k]]
        other = atom_class[edge_other[k]]
        if tolerance > 0.0:
            row = value_of(table, np.int64(bond) * len(atom_class) + other, edge_row)
            if row < edge_row:
                edge_count[row] += 1.0
                continue
        edges[0, edge_row] = atom_row + atom_class[i]
        edges[1, edge_row] = atom_row + other
        edges[2, edge_row] = bond_row + bond
        edge_count[edge_row] = 1.0
        edge_row += 1
    return edge_row


@compiled
def _write_angles(
    bond: int,
    ends: np.ndarray,
    geometry: Geometry,
    atom_class: np.ndarray,
    bond_class: np.ndarray,
    angle_class: np.ndarray,
    atom_row: int,
    short_row: np.ndarray,
    tolerance: float,
    table: np.ndarray,
    angles: np.ndarray,
    angle_values: np.ndarray,
    angle_row: int,
) -> int:
    """Write the angles of a short bond with the other short edges at both of its ends; equivalent ones share a row.

    Returns:
        The next free row.
    """
    _, _, _, _, _, short_start, short_bond, short_place, angle_start, angle = geometry
    empty(table)
    for side in range(2):
        i = np.int64(ends[side])
        first = short_start[i]
        degree = short_start[i + 1] - first
        p = short_place[bond, side]
        for q in range(degree):
            if p == q:
                continue
            other = bond_class[short_bond[first + q]]
            place = angle_start[i] + degree * p + q
            if tolerance > 0.0:
                sides = np.int64(other) * len(atom_class) + atom_class[i]
                row = value_of(table, sides * len(angle) + angle_class[place], angle_row)
                if row < angle_row:
                    angle_values[0, row] += 1.0
                    continue
            angles[0, angle_row] = atom_row + atom_class[i]
            angles[1, angle_row] = short_row[bond_class[bond]]
            angles[2, angle_row] = short_row[other]
            angle_values[0, angle_row] = 1.0
            angle_values[1, angle_row] = angle[place]
            angle_row += 1
    return angle_row


@compiled
def _with_room(angles: np.ndarray, values: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The same arrays, or longer copies of them where they have fewer than `n_rows` columns."""
    if angles.shape[1] >= n_rows:
        return angles, values
    longer, longer_values = np.empty((3, 2 * n_rows), dtype=np.int32), np.empty((2, 2 * n_rows), dtype=np.float32)
    for k in range(angles.shape[1]):
        for row in range(3):
            longer[row, k] = angles[row, k]
        for row in range(2):
            longer_values[row, k] = values[row, k]
    return longer, longer_values
