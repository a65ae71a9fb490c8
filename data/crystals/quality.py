"""Says why a crystal cannot be used; rows with a reason are quarantined, never repaired or replaced."""

from __future__ import annotations

import math

import numpy as np

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.elements import MAX_ATOMIC_NUMBER
from data.machine.compiled import compiled

MIN_DISTANCE_ANGSTROM = 0.5  # the shortest bond there is, H-H, has 0.74
MIN_THICKNESS_ANGSTROM = 0.1  # a cell flatter than this has no usable volume

_FAULT_NONE, _FAULT_ELEMENT, _FAULT_COORDINATE, _FAULT_LATTICE, _FAULT_OVERLAP = range(5)


def check_crystal(crystal: Crystal) -> None:
    """Refuse a crystal that no model could learn from.

    Raises:
        BadCrystalError: it is empty, holds an unknown element or a value that is not finite, its
            lattice is singular, or two of its atoms (periodic images included) overlap.
    """
    numbers, frac_coords, lattice = crystal.numbers, crystal.frac_coords, crystal.lattice
    if len(numbers) == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    if frac_coords.shape != (len(numbers), 3) or lattice.shape != (3, 3):
        raise BadCrystalError(
            f"coordinates of shape {frac_coords.shape} and lattice of shape {lattice.shape}; "
            f"expected ({len(numbers)}, 3) and (3, 3)"
        )
    fault, site, other, value = _first_fault(numbers, frac_coords, lattice)
    if fault == _FAULT_ELEMENT:
        raise BadCrystalError(
            f"unknown element Z = {numbers[site]} at site {site}: CHGNet knows Z = 1 to {MAX_ATOMIC_NUMBER}"
        )
    if fault == _FAULT_COORDINATE:
        raise BadCrystalError(f"coordinates of site {site} are not finite: {frac_coords[site].tolist()}")
    if fault == _FAULT_LATTICE:
        raise BadCrystalError(
            f"singular lattice: the cell is {value:.3g} Angstrom thick along vector {site}; "
            f"expected at least {MIN_THICKNESS_ANGSTROM}: {lattice.tolist()}"
        )
    if fault == _FAULT_OVERLAP:
        whom = f"sites {site} (Z = {numbers[site]}) and {other} (Z = {numbers[other]})"
        if site == other:
            whom = f"site {site} (Z = {numbers[site]}) and its own periodic image"
        raise BadCrystalError(
            f"overlapping atoms: {whom} are {value:.3f} Angstrom apart; expected at least {MIN_DISTANCE_ANGSTROM}"
        )


@compiled
def _first_fault(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> tuple[int, int, int, float]:
    """The first fault's kind, its site (or lattice vector), its other site, and the length that shows it."""
    n_atoms = len(numbers)
    for i in range(n_atoms):
        if numbers[i] < 1 or numbers[i] > MAX_ATOMIC_NUMBER:
            return _FAULT_ELEMENT, i, i, 0.0
        for k in range(3):
            if not math.isfinite(frac_coords[i, k]):
                return _FAULT_COORDINATE, i, i, 0.0
    thickness = np.empty(3)
    for k in range(3):
        a, b, c = lattice[k], lattice[(k + 1) % 3], lattice[(k + 2) % 3]
        x = b[1] * c[2] - b[2] * c[1]
        y = b[2] * c[0] - b[0] * c[2]
        z = b[0] * c[1] - b[1] * c[0]
        area = math.sqrt(x * x + y * y + z * z)
        thickness[k] = abs(a[0] * x + a[1] * y + a[2] * z) / area if area > 0.0 else 0.0
        if not (thickness[k] >= MIN_THICKNESS_ANGSTROM and math.isfinite(thickness[k])):
            return _FAULT_LATTICE, k, k, thickness[k]
    site, other, distance = _closest_pair(frac_coords, lattice, thickness)
    if site >= 0:
        return _FAULT_OVERLAP, site, other, distance
    return _FAULT_NONE, 0, 0, 0.0


@compiled
def _closest_pair(frac_coords: np.ndarray, lattice: np.ndarray, thickness: np.ndarray) -> tuple[int, int, float]:
    """The closest pair nearer than the limit, images counted; sites are -1 when there is none."""
    best = MIN_DISTANCE_ANGSTROM
    site, other = -1, -1
    low = np.empty(3, dtype=np.int64)
    high = np.empty(3, dtype=np.int64)
    d = np.empty(3)
    for i in range(len(frac_coords)):
        for j in range(i, len(frac_coords)):
            near = True
            for k in range(3):
                difference = frac_coords[j, k] - frac_coords[i, k]
                d[k] = difference - np.round(difference)
                # |d + n| * thickness is the distance between lattice planes, a lower bound of the
                # atoms' distance: it leaves no image to try for nearly every pair.
                reach = MIN_DISTANCE_ANGSTROM / thickness[k]
                low[k] = math.ceil(-reach - d[k])
                high[k] = math.floor(reach - d[k])
                if low[k] > high[k]:
                    near = False
                    break
            if not near:
                continue
            for n0 in range(low[0], high[0] + 1):
                for n1 in range(low[1], high[1] + 1):
                    for n2 in range(low[2], high[2] + 1):
                        if i == j and n0 == 0 and n1 == 0 and n2 == 0:
                            continue
                        u, v, w = d[0] + n0, d[1] + n1, d[2] + n2
                        x = u * lattice[0, 0] + v * lattice[1, 0] + w * lattice[2, 0]
                        y = u * lattice[0, 1] + v * lattice[1, 1] + w * lattice[2, 1]
                        z = u * lattice[0, 2] + v * lattice[1, 2] + w * lattice[2, 2]
                        distance = math.sqrt(x * x + y * y + z * z)
                        if distance < best:
                            best, site, other = distance, i, j
    return site, other, best
