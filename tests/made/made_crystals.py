"""Crystals of a few lines for tests of several files; no fixture, no test.

Pymatgen's `from_spacegroup` and `from_prototype` take half a second to multiply the operators of a cubic group.
"""

from pymatgen.core import Lattice, Structure

_FACES = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
_EDGES = [[0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    """Eight atoms in a cube of edge `a` Angstrom."""
    return Structure(Lattice.cubic(a), [cation] * 4 + [anion] * 4, _FACES + _EDGES)


def face_centred(element: str, a: float) -> Structure:
    """Four atoms in a cube of edge `a` Angstrom."""
    return Structure(Lattice.cubic(a), [element] * 4, _FACES)


def body_centred(corner: str, centre: str, a: float) -> Structure:
    """Two atoms in a cube of edge `a` Angstrom: caesium chloride's structure, or a metal's."""
    return Structure(Lattice.cubic(a), [corner, centre], [[0, 0, 0], [0.5, 0.5, 0.5]])
