"""A crystal as three flat arrays: what readers give, what the graph converter takes.

First step of the flow: rows of a task -> `Crystal` -> graph (`data/crystals/graphs.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.crystals.elements import MAX_ATOMIC_NUMBER, SYMBOL_NUMBERS, SymbolError, read_symbol
from data.errors import UserError

if TYPE_CHECKING:
    from pymatgen.core import Structure


class BadCrystalError(UserError, ValueError):
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
        notes: sentences on what the reader did beyond copying numbers, such as "deuterium and tritium are read as
            hydrogen". None of them can have changed the crystal: a row with a doubt that can is a `BadCrystalError`.
            What stands before a colon is the same in all rows with that note, so that notes can be counted.
    """

    crystal: Crystal
    notes: tuple[str, ...] = ()


def number_at(symbol: str, site: int) -> tuple[int, str]:
    """The atomic number of the element at a site, and a note or "", as `data.crystals.elements.read_symbol` reads it.

    Raises:
        BadCrystalError: no element, or one beyond Z = 94.
    """
    try:
        return read_symbol(symbol)
    except SymbolError as error:
        raise BadCrystalError(f"site {site}: {error}") from None


def crystal_of(
    symbols: Sequence[str], frac_coords: np.ndarray, lattice: np.ndarray, notes: Iterable[str] = ()
) -> ReadCrystal:
    """Puts together what a reader has read of a crystal.

    Args:
        symbols: elements, one an atom.
        frac_coords: float64, shape (n_atoms, 3).
        lattice: vectors in its rows, Angstrom, float64, shape (3, 3).
        notes: of the reader.

    Raises:
        BadCrystalError: there are no atoms, the shapes do not go together, or a symbol is no element up to Pu.
    """
    n_atoms = len(symbols)
    if not n_atoms:
        raise BadCrystalError("empty structure: it has no atoms")
    if frac_coords.shape != (n_atoms, 3) or lattice.shape != (3, 3):
        raise BadCrystalError(
            f"{n_atoms} elements, coordinates of shape {frac_coords.shape} and lattice of shape {lattice.shape}; "
            f"expected ({n_atoms}, 3) and (3, 3)"
        )
    numbers, of_elements = bytearray(n_atoms), []
    for k, symbol in enumerate(symbols):
        number = SYMBOL_NUMBERS.get(symbol)
        if number is None:
            number, note = number_at(symbol, k)
            of_elements.append(note)
        numbers[k] = number
    crystal = Crystal(np.frombuffer(numbers, dtype=np.uint8), frac_coords, lattice)
    return ReadCrystal(crystal, tuple(dict.fromkeys(note for note in (*of_elements, *notes) if note)))


def fractional(positions: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Fractional coordinates of positions in Angstrom, shape (n_atoms, 3), not moved into the cell.

    Raises:
        BadCrystalError: the lattice vectors span no volume.
    """
    try:
        return np.linalg.solve(lattice.T, positions.T).T
    except np.linalg.LinAlgError:
        raise BadCrystalError(f"singular lattice: {lattice.tolist()}") from None


def not_periodic(pbc: Sequence[bool]) -> str:
    """The reason to refuse what has a cell and is no crystal.

    Args:
        pbc: whether it is periodic along each lattice vector.
    """
    directions = " and ".join(vector for vector, periodic in zip("abc", pbc, strict=True) if not periodic)
    return f"no crystal: it is not periodic along {directions} (pbc); expected a structure periodic along a, b and c"


def crystal_from_structure(structure: Structure) -> Crystal:
    """Flatten a pymatgen `Structure`.

    Raises:
        BadCrystalError: the structure is empty, disordered or not periodic in all directions, or holds a dummy, a
            vacancy or an element beyond Z = 94.
    """
    if not all(structure.lattice.pbc):
        raise BadCrystalError(not_periodic(structure.lattice.pbc))
    if len(structure) == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    numbers = np.empty(len(structure), dtype=np.uint8)
    for k, site in enumerate(structure):
        if not site.is_ordered:
            raise BadCrystalError(f"disordered structure: site {k} is {site.species_string!r}")
        number = getattr(site.specie, "Z", 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:  # a dummy has a number of its own, far beyond
            number, _ = number_at(getattr(site.specie, "symbol", str(site.specie)), k)
        numbers[k] = number
    return Crystal(
        numbers=numbers,
        frac_coords=np.array(structure.frac_coords, dtype=np.float64),
        lattice=np.array(structure.lattice.matrix, dtype=np.float64),
    )
