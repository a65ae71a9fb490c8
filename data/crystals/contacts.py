"""How near the atoms of a crystal are to one another, in parts of what their radii make one expect."""

from __future__ import annotations

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from data.crystals.crystal import Crystal

RADII = np.array([gemmi.Element(z).covalent_r for z in range(119)])  # covalent, Angstrom
# The loosest of 1,940 crystals of the demo (some stretched by 8 %) and of the Materials Project has 1.46; cells in Bohr
# that are taken for Angstrom have 1.7 to 2.1 mostly.
_FAR_CONTACT = 1.6
_MOST_ATOMS = 500  # larger cells are not looked at: it would take long
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)


def closest_contact(crystal: Crystal) -> float:
    """The shortest distance between two atoms, images counted, in parts of the sum of their covalent radii."""
    shifts = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    wrapped = crystal.frac_coords - np.floor(crystal.frac_coords)
    images = (wrapped[:, None] + shifts).reshape(-1, 3) @ crystal.lattice
    radius = RADII[crystal.numbers]
    image_radius = np.repeat(radius, len(shifts))
    distance, match = cKDTree(images).query(wrapped @ crystal.lattice, k=min(9, len(images)))
    distance, match = distance[:, 1:], match[:, 1:]
    return float((distance / (radius[:, None] + image_radius[match])).min(initial=np.inf))


def far_apart(crystal: Crystal) -> str:
    """A note on a crystal none of whose atoms touch, as in a cell that is not in Angstrom; "" for others."""
    usable = 0 < len(crystal.numbers) <= _MOST_ATOMS and np.isfinite(crystal.frac_coords).all()
    if not usable or not np.isfinite(crystal.lattice).all() or np.isin(crystal.numbers, _NOBLE_GASES).any():
        return ""
    contact = closest_contact(crystal)
    if contact <= _FAR_CONTACT:
        return ""
    return (
        f"no atoms touch, so the cell may lack atoms or not be in Angstrom: the nearest are {contact:.2g} times "
        "the sum of their radii apart"
    )
