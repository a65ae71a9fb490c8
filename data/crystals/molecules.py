"""Tells molecular crystals from others: their bonds join atoms into finite molecules only.

The graphs hold every distance up to the cutoff; two atoms are bonded where they are nearer than some multiple of the
sum of their covalent radii. A molecule is finite where no path of bonds leads from an atom to its own copy in another
cell (P. M. Larsen et al., Phys. Rev. Mater. 3, 034003 (2019), dimensionality 0).

Source of the radii: B. Cordero et al., Dalton Trans. 2832 (2008), as ASE ships them.
"""

from __future__ import annotations

import numpy as np

from data.crystals.graphs import Graphs
from data.machine.compiled import compiled

# Of the sum of two covalent radii. Between non-metals: below the shortest distances between molecules (iodine: 1.26).
# Where a metal takes part: above the longest bonds in salts (thallium fluoride: 1.3) and metals (lead: 1.22).
BOND_FACTOR = 1.24
BOND_FACTOR_OF_METALS = 1.45
_NON_METALS = (1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(52, 55), 85, 86)  # atomic numbers


def molecular(graphs: Graphs) -> np.ndarray:
    """Says of each crystal whether it is molecular, a lone atom being a molecule too; bool, shape (n_graphs,).

    A graph without atoms, of a rejected row, is not.
    """
    from ase.data import covalent_radii  # here: half a second that most sweeps need not pay

    is_metal = np.ones(len(covalent_radii), dtype=np.bool_)
    is_metal[list(_NON_METALS)] = False
    return _molecular(*graphs.read_only(), np.asarray(covalent_radii, dtype=np.float64), is_metal)


@compiled
def _molecular(
    numbers: np.ndarray,
    frac_coords: np.ndarray,
    lattices: np.ndarray,
    bond_atoms: np.ndarray,
    bond_image: np.ndarray,
    atom_start: np.ndarray,
    bond_start: np.ndarray,
    radii: np.ndarray,
    is_metal: np.ndarray,
) -> np.ndarray:
    """`molecular`, with the covalent radius in Angstrom and the kind of each atomic number, shape (> 94,)."""
    is_molecular = np.zeros(len(lattices), dtype=np.bool_)
    for g in range(len(lattices)):
        first, n_atoms = atom_start[g], atom_start[g + 1] - atom_start[g]
        # Atoms joined so far form trees; `shift` is the cell of an atom less that of the parent, where they are joined.
        parent, shift = np.arange(n_atoms), np.zeros((n_atoms, 3), dtype=np.int64)
        finite = n_atoms > 0
        for bond in range(bond_start[g], bond_start[g + 1]):
            i, j = np.int64(bond_atoms[bond, 0]), np.int64(bond_atoms[bond, 1])
            square = 0.0
            for axis in range(3):
                length = 0.0
                for k in range(3):
                    steps = frac_coords[first + j, k] - frac_coords[first + i, k] + bond_image[bond, k]
                    length += steps * lattices[g, k, axis]
                square += length * length
            z_i, z_j = numbers[first + i], numbers[first + j]
            factor = BOND_FACTOR_OF_METALS if is_metal[z_i] or is_metal[z_j] else BOND_FACTOR
            longest = factor * (radii[z_i] + radii[z_j])
            if square > longest * longest:
                continue
            # Cell of each atom less that of its tree's root, on the path that leads there.
            cell = np.zeros((2, 3), dtype=np.int64)
            roots = np.zeros(2, dtype=np.int64)
            for side in range(2):
                atom = i if side == 0 else j
                while parent[atom] != atom:
                    for k in range(3):
                        cell[side, k] += shift[atom, k]
                    atom = parent[atom]
                roots[side] = atom
            # Along this bond atom j lies `bond_image` cells from atom i.
            for k in range(3):
                cell[0, k] += bond_image[bond, k] - cell[1, k]
            if roots[0] != roots[1]:
                parent[roots[1]] = roots[0]
                for k in range(3):
                    shift[roots[1], k] = cell[0, k]
            elif cell[0, 0] != 0 or cell[0, 1] != 0 or cell[0, 2] != 0:
                finite = False
                break
        is_molecular[g] = finite
    return is_molecular
