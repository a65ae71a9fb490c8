"""A crystal as three flat arrays: what readers give, what the graph converter takes.

First step of the flow: rows of a task -> `Crystal` -> graph (`data/graphs.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_ATOMIC_NUMBER = 94  # CHGNet embeds H (1) to Pu (94)


class BadCrystalError(ValueError):
    """A row that cannot be used; its message is the reason shown in the quarantine table."""


@dataclass(frozen=True)
class Crystal:
    """One periodic crystal, in double precision.

    Attributes:
        numbers: atomic numbers, uint8, shape (n_atoms,).
        frac_coords: fractional coordinates, float64, shape (n_atoms, 3).
        lattice: lattice vectors in its rows, Angstrom, float64, shape (3, 3).
    """

    numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


@dataclass(frozen=True)
class ReadCrystal:
    """What a reader made of a row.

    Attributes:
        crystal: as it was read.
        notes: sentences on what the reader did beyond copying numbers, such as "deuterium is read as hydrogen". None of
            them can have changed the crystal: a row with a doubt that can is a `BadCrystalError`.
    """

    crystal: Crystal
    notes: tuple[str, ...] = ()


def crystal_from_structure(structure: Structure) -> Crystal:
    """Flatten a pymatgen `Structure`.

    Raises:
        BadCrystalError: the structure is empty or disordered, or holds an element beyond Z = 94.
    """
    if len(structure) == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    numbers = np.empty(len(structure), dtype=np.uint8)
    for k, site in enumerate(structure):
        if not site.is_ordered:
            raise BadCrystalError(f"disordered structure: site {k} is {site.species_string!r}")
        number = getattr(site.specie, "Z", 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise BadCrystalError(
                f"unknown element {site.specie!s} (Z = {number}) at site {k}: CHGNet knows Z = 1 to {MAX_ATOMIC_NUMBER}"
            )
        numbers[k] = number
    return Crystal(
        numbers=numbers,
        frac_coords=np.array(structure.frac_coords, dtype=np.float64),
        lattice=np.array(structure.lattice.matrix, dtype=np.float64),
    )
