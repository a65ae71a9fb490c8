"""Compares the atoms of a cell with what its CIF file says of them: formula, Z, density and weight.

Called by `reader.py` for every crystal that the file could mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import gemmi
import numpy as np

from data.crystals.contacts import RADII
from data.crystals.formats.cif.species import format_amounts, read_formula, read_formula_sum
from data.crystals.formats.cif.tags import Tags

_BOHR_ANGSTROM = 0.529177
_AMU_PER_A3 = 1.66053906660  # g/cm3
WEIGHTS = np.array([gemmi.Element(z).weight for z in range(119)])
_DENSITY_UNITS = {1.0: "g/cm3", 1e3: "kg/m3", 1e-3: "g/mm3"}
# Twice or half of it comes of a Z that its authors had wrong; 6.7 times of a cell in Bohr.
_MAX_DENSITY_FACTOR = 2.1
# Share of the cell in spheres of the covalent radii: 0.08 in loose molecular crystals, 0.3 to 0.9 in others.
_MIN_FILLING = 0.06


@dataclass(frozen=True)
class Content:
    """Holds what a file says of the content of its cell.

    Attributes:
        formula: its text, "" where none is given or none can be read.
        readings: amounts by atomic number that the text can mean.
        z: formula units in the cell.
        density: g/cm3, computed by the authors.
        weight: of a formula unit, g/mol.
        structural: amounts of the structural formula, where there is a sum beside it.
        notes: of what could not be read.
    """

    formula: str = ""
    readings: tuple[dict[int, float], ...] = ()
    z: float | None = None
    density: float | None = None
    weight: float | None = None
    structural: dict[int, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def elements(self) -> set[int] | None:
        """Atomic numbers in the formula, or None."""
        return {z for reading in self.readings for z in reading} if self.readings else None


@dataclass
class Verdict:
    """Says how a cell compares with what the file says.

    Attributes:
        against: sentences, each on what disagrees.
        confirmed: whether formula and Z, or formula and density, are exactly those of the cell.
        notes: on disagreements that do not touch the crystal.
    """

    against: list[str] = field(default_factory=list)
    confirmed: bool = False
    notes: list[str] = field(default_factory=list)


def read_content(tags: Tags) -> Content:
    """Collects what the file says of its content."""
    notes = []
    total = tags.text("_chemical_formula_sum")
    structural = tags.text("_chemical_formula_structural")
    formula, readings = "", []
    if total:
        formula, readings = total, read_formula_sum(total)
        if not readings:
            notes.append(f"its formula {total!r} cannot be read, so the atoms are not compared with it")
            formula = ""
    else:
        for name in ("structural", "moiety", "iupac"):
            text = tags.text(f"_chemical_formula_{name}")
            if text and (reading := read_formula(text)):
                formula, readings = text, [reading]
                break
    return Content(
        formula=formula,
        readings=tuple(readings),
        z=tags.positive("_cell_formula_units_Z"),
        density=tags.positive("_exptl_crystal_density_diffrn"),
        weight=tags.positive("_chemical_formula_weight"),
        structural=read_formula(structural) if total and structural else None,
        notes=tuple(notes),
    )


def compare(content: Content, numbers: np.ndarray, lattice: np.ndarray, symmetry_is_stated: bool) -> Verdict:
    """Compares the atoms of a cell with what the file says of them.

    Args:
        content: what the file says.
        numbers: atomic numbers of all atoms of the cell.
        lattice: Angstrom, float64, shape (3, 3).
        symmetry_is_stated: False for a file read as P 1 because it says nothing.
    """
    verdict = Verdict()
    volume = abs(float(np.linalg.det(lattice)))
    kinds, amounts = np.unique(numbers, return_counts=True)
    counts = {int(z): float(n) for z, n in zip(kinds, amounts, strict=True)}
    mass = float(WEIGHTS[numbers].sum())
    density = mass * _AMU_PER_A3 / volume
    units = [unit for unit in _DENSITY_UNITS if content.density and abs(unit * density / content.density - 1) <= 0.05]
    dense = None if content.density is None else bool(units)
    what = f"the cell has {format_amounts(counts)}"

    proportional = [factor for reading in content.readings if (factor := _factor(counts, reading)) is not None]
    if content.readings and not proportional:
        verdict.against.append(f"its formula is {content.formula!r}, but {what}")
        return verdict
    if content.z is not None:
        z = content.z
        if content.readings:
            n_atoms = len(numbers)
            fits = any(_is_number_of_units(factor, z, n_atoms) for factor in proportional)
            # pymatgen writes the content of the whole cell as the sum, with the Z of the reduced formula.
            whole = [
                reading
                for reading in content.readings
                if (factor := _factor(counts, reading)) is not None
                and _is_number_of_units(factor, 1, n_atoms)
                and _is_whole_cell(reading, content, z)
            ]
            filled = symmetry_is_stated or dense or _filling(numbers, volume) >= _MIN_FILLING
            if fits or (whole and filled):
                verdict.confirmed = True
            elif dense:
                verdict.notes.append(
                    f"Z = {z:g} does not fit: {what}, {proportional[0]:.4g} times its formula {content.formula!r}, "
                    "as its density says"
                )
            else:
                verdict.against.append(f"its formula is {content.formula!r} with Z = {z:g}, but {what}")
        elif any(abs(n / z - round(n / z)) > 1e-6 for n in counts.values()):
            verdict.against.append(f"Z is {z:g}, but {what}")
    if dense:
        verdict.confirmed = verdict.confirmed or bool(content.readings)
        if units[0] != 1.0:
            verdict.notes.append(
                f"its density {content.density:g} is taken as {_DENSITY_UNITS[units[0]]}, as the cell has it"
            )
    elif content.density is not None:
        message = f"its density is {content.density:g} g/cm3, but {what}, {density:.4g} g/cm3"
        factor = content.density / density
        is_rough = 1 / _MAX_DENSITY_FACTOR <= factor <= _MAX_DENSITY_FACTOR
        if abs(factor * _BOHR_ANGSTROM**3 - 1) <= 0.05:
            message += ": its lengths may be in Bohr"
        (verdict.notes if verdict.confirmed and is_rough else verdict.against).append(message)
    if content.weight is not None and content.z is not None and not content.readings:
        expected = content.weight * content.z
        if abs(mass / expected - 1) > 0.03:
            verdict.against.append(f"its formula weight is {content.weight:g} with Z = {content.z:g}, but {what}")
    return verdict


def _factor(counts: dict[int, float], formula: dict[int, float]) -> float | None:
    """Divides the atoms of a cell by those of a formula; None where they are no multiple of it."""
    if counts.keys() != formula.keys():
        return None
    factor = sum(counts.values()) / sum(formula.values())
    # Amounts of a formula are rounded, but never by an atom.
    fits = all(abs(counts[z] - factor * n) <= min(0.05 + 0.002 * counts[z], 0.45) for z, n in formula.items())
    return factor if fits else None


def _is_number_of_units(factor: float, z: float, n_atoms: int) -> bool:
    """Says whether `factor` formula units are Z of them, to the atom, in a cell of so many atoms."""
    return abs(factor - z) <= 1e-3 * z and abs(factor - z) / factor * n_atoms < 0.5


def _is_whole_cell(reading: dict[int, float], content: Content, z: float) -> bool:
    """Says whether the sum formula can be that of all Z units."""
    if content.structural is not None and content.structural.keys() == reading.keys():
        return all(abs(content.structural[k] * z - n) < 1e-3 * n for k, n in reading.items())
    return all(abs(n / z - round(n / z)) < 1e-6 for n in reading.values())


def _filling(numbers: np.ndarray, volume: float) -> float:
    """Computes the share of the cell within spheres of the covalent radii."""
    return float((4 / 3 * np.pi * RADII[numbers] ** 3).sum()) / volume
