"""Applies symmetry operators to sites, which gives all atoms of a cell.

A site near a special position is moved onto it, for coordinates in a file are rounded. Called by `reader.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from data.crystals.crystal import BadCrystalError
from data.crystals.formats.cif.symmetry import Symmetry
from data.crystals.quality import MIN_DISTANCE_ANGSTROM

if TYPE_CHECKING:
    from collections.abc import Sequence

# An atom this far from its own image sits on a special position: 0.33 for a third moves an image by 0.1 in a cell of
# 10 Angstrom. Atoms of a split site are further apart, and are a disorder.
SPECIAL_POSITION_ANGSTROM = 0.1
NOTED_SHIFT_ANGSTROM = 1e-3
MAX_ATOMS = 20_000
_MAX_IMAGES, _MAX_NEIGHBOURS = 200_000, 200


@dataclass(frozen=True, eq=False)
class Cell:
    """Holds all atoms of a cell.

    Attributes:
        numbers: atomic numbers, uint8, shape (n_atoms,).
        frac_coords: float64, shape (n_atoms, 3), in [0, 1); atoms of a site stand together.
        multiplicities: int64, shape (n_sites,), atoms of each site; 0 for a site that an earlier one has in its orbit.
        repeated: labels of the sites whose atoms an earlier site has.
        incomplete: whether some but not all equivalents of a site are listed.
        notes: what was done to the positions.
    """

    numbers: np.ndarray
    frac_coords: np.ndarray
    multiplicities: np.ndarray
    repeated: tuple[str, ...]
    incomplete: bool
    notes: tuple[str, ...]


def expand(
    labels: Sequence[str], numbers: np.ndarray, frac_coords: np.ndarray, symmetry: Symmetry, lattice: np.ndarray
) -> Cell:
    """Applies the operators to the sites.

    Args:
        labels: what messages call each site.
        numbers: uint8, shape (n_sites,).
        frac_coords: float64, shape (n_sites, 3).
        symmetry: whose rotations keep the lattice.
        lattice: float64, shape (3, 3).

    Raises:
        BadCrystalError: atoms lie nearer than `MIN_DISTANCE_ANGSTROM`, or there are more than `MAX_ATOMS`.
    """
    n_sites, n_operators = len(labels), len(symmetry)
    if n_sites * n_operators > _MAX_IMAGES:
        raise BadCrystalError(f"{n_sites} sites under {n_operators} operators are too many; at most {MAX_ATOMS} atoms")
    coords = frac_coords - np.floor(frac_coords)
    notes = []
    if n_operators == 1:
        orbits = [coords[k : k + 1] for k in range(n_sites)]
    else:
        coords, shifts = _on_special_positions(labels, coords, symmetry, lattice)
        worst = int(np.argmax(shifts))
        if shifts[worst] > NOTED_SHIFT_ANGSTROM:
            moved = int((shifts > NOTED_SHIFT_ANGSTROM).sum())
            notes.append(
                f"{moved} site{'s' if moved > 1 else ''} moved onto special positions, "
                f"{labels[worst]} by {shifts[worst]:.2g} Angstrom"
            )
        orbits = _orbits(coords, symmetry, lattice)
    multiplicities = np.array([len(orbit) for orbit in orbits])
    if multiplicities.sum() > MAX_ATOMS:
        raise BadCrystalError(f"the cell has {multiplicities.sum()} atoms; at most {MAX_ATOMS} are read")
    everywhere = np.concatenate(orbits)
    everywhere -= np.floor(everywhere)
    everywhere[everywhere >= 1.0] = 0.0
    site_of = np.repeat(np.arange(n_sites), multiplicities)
    same = _coincident_sites(labels, numbers, coords, everywhere, site_of, lattice)
    keep = np.ones(n_sites, dtype=bool)
    keep[list(same)] = False
    repeated = tuple(labels[k] for k in sorted(same))
    listed = np.ones(n_sites, dtype=np.int64)
    for first in same.values():
        listed[first] += 1
    incomplete = any(listed[k] < multiplicities[k] for k in set(same.values()))
    if repeated:
        notes.append(f"sites that others have as their equivalents are read once: {', '.join(repeated[:5])}")
    atoms = keep[site_of]
    return Cell(
        numbers=np.repeat(numbers, multiplicities)[atoms],
        frac_coords=everywhere[atoms],
        multiplicities=np.where(keep, multiplicities, 0),
        repeated=repeated,
        incomplete=incomplete,
        notes=tuple(notes),
    )


def _lengths(differences: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Measures the shortest of each fractional difference's images, for differences much shorter than the cell."""
    vectors = (differences - np.rint(differences)) @ lattice
    return np.sqrt((vectors * vectors).sum(-1))


def _reach(distance: float, lattice: np.ndarray) -> float:
    """The longest fractional difference (less than half a cell) that can be this long in Angstrom."""
    return min(distance * float(np.linalg.norm(np.linalg.inv(lattice), 2)), 0.49)


def _images(coords: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """Every image of every site, shape (n_sites, n_operators, 3)."""
    images = np.matmul(symmetry.rotations[None].astype(np.float64), coords[:, None, :, None])[..., 0]
    return images + symmetry.translations


def _on_special_positions(
    labels: Sequence[str], coords: np.ndarray, symmetry: Symmetry, lattice: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves sites onto the special positions they are near, and says how far each moved, Angstrom."""
    moved = coords.copy()
    for _ in range(3):
        differences = _images(moved, symmetry) - moved[:, None]
        differences -= np.rint(differences)
        vectors = differences @ lattice
        near = (vectors * vectors).sum(-1) < SPECIAL_POSITION_ANGSTROM**2
        step = (differences * near[..., None]).sum(1) / near.sum(1)[:, None]
        moved += step
        if np.abs(step).max() < 1e-13:
            break
    lengths = _lengths(_images(moved, symmetry) - moved[:, None], lattice)
    between = (lengths > 1e-6) & (lengths < MIN_DISTANCE_ANGSTROM)
    if between.any():
        site = int(np.argmax(between.any(1)))
        raise BadCrystalError(
            f"site {labels[site]} at {_text(coords[site])} and its image by symmetry are "
            f"{lengths[site][between[site]].min():.2f} Angstrom apart, neither one atom nor two"
        )
    return moved, _lengths(moved - coords, lattice)


def _orbits(coords: np.ndarray, symmetry: Symmetry, lattice: np.ndarray) -> list[np.ndarray]:
    """Lists the distinct images of every site, in the order of the operators."""
    images = _images(coords, symmetry)
    orbits = []
    fixed = (_lengths(images - coords[:, None], lattice) < SPECIAL_POSITION_ANGSTROM).sum(1)
    for k, site_images in enumerate(images):
        if fixed[k] == 1:
            orbits.append(site_images)
            continue
        lengths = _lengths(site_images[:, None] - site_images[None, :], lattice) < SPECIAL_POSITION_ANGSTROM
        first = np.argmax(lengths, axis=1)
        orbits.append(site_images[np.unique(first)])
    return orbits


def _coincident_sites(
    labels: Sequence[str],
    numbers: np.ndarray,
    coords: np.ndarray,
    everywhere: np.ndarray,
    site_of: np.ndarray,
    lattice: np.ndarray,
) -> dict[int, int]:
    """Finds sites that are equivalent to an earlier one, {site: the earlier one}; refuses atoms that overlap."""
    reach = _reach(MIN_DISTANCE_ANGSTROM, lattice)
    same: dict[int, int] = {}
    tree = cKDTree(everywhere, boxsize=1.0)
    if len(everywhere) > 1000 and tree.count_neighbors(tree, reach) > _MAX_NEIGHBOURS * len(everywhere):
        raise BadCrystalError(f"its {len(everywhere)} atoms lie on one another")
    pairs = tree.query_pairs(reach, output_type="ndarray")
    if len(pairs) == 0:
        return same
    lengths = _lengths(everywhere[pairs[:, 0]] - everywhere[pairs[:, 1]], lattice)
    near = np.flatnonzero(lengths < MIN_DISTANCE_ANGSTROM)
    for k in near[np.lexsort((pairs[near, 1], pairs[near, 0]))]:
        i, j = sorted(site_of[pairs[k]].tolist())
        length = float(lengths[k])
        whom = f"sites {labels[i]} at {_text(coords[i])} and {labels[j]} at {_text(coords[j])}"
        if i == j:
            raise BadCrystalError(f"site {labels[i]} and its image are {length:.2f} Angstrom apart")
        if length > SPECIAL_POSITION_ANGSTROM / 5:
            raise BadCrystalError(
                f"overlapping atoms: {whom} are {length:.2f} Angstrom apart; expected at least {MIN_DISTANCE_ANGSTROM}"
            )
        if numbers[i] != numbers[j] or _lengths(coords[i] - coords[j], lattice) < SPECIAL_POSITION_ANGSTROM / 5:
            raise BadCrystalError(f"two full atoms on one site: {whom}")
        same.setdefault(j, same.get(i, i))
    return same


def same_atoms(cell: Cell, other: Cell, lattice: np.ndarray) -> bool:
    """Says whether two fillings of one cell are the same crystal, but for where the origin is."""
    if len(cell.numbers) != len(other.numbers) or not np.array_equal(np.sort(cell.numbers), np.sort(other.numbers)):
        return False
    kinds, counts = np.unique(cell.numbers, return_counts=True)
    rarest = kinds[np.argmin(counts)]
    start = cell.frac_coords[cell.numbers == rarest][0]
    origins = other.frac_coords[other.numbers == rarest]
    origins = origins[np.argsort(_lengths(origins - start, lattice))]
    return any(_coincide(cell, other, start - origin, lattice) for origin in [start, *origins[:48]])


def _coincide(cell: Cell, other: Cell, shift: np.ndarray, lattice: np.ndarray) -> bool:
    tolerance = SPECIAL_POSITION_ANGSTROM
    kinds, counts = np.unique(cell.numbers, return_counts=True)
    for number in kinds[np.argsort(counts)]:
        a = cell.frac_coords[cell.numbers == number]
        b = (other.frac_coords[other.numbers == number] + shift) % 1.0
        b[b >= 1.0] = 0.0
        distance, match = cKDTree(b, boxsize=1.0).query(a, distance_upper_bound=_reach(tolerance, lattice))
        if not np.isfinite(distance).all() or len(set(match.tolist())) < len(a):
            return False
        if _lengths(a - b[match], lattice).max() > tolerance:
            return False
    return True


def _text(coords: np.ndarray) -> str:
    return f"({', '.join(f'{x:.5g}' for x in coords)})"
