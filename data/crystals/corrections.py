"""Energy corrections of the Materials Project: what its labels of two times hold, and how they differ.

DFT energies of oxides and other compounds of anions are shifted by fitted amounts before formation energies are made
of them, and those of transition metal oxides and fluorides, computed with a Hubbard U, onto the scale of the others.
CHGNet was trained on energies with the corrections of 2020 (Wang et al., Sci. Rep. 11, 15496 (2021)); the formation
energies of Matbench are of 2018 and hold the earlier ones (Jain et al., Phys. Rev. B 84, 045115 (2011), with terms for
oxides, peroxides, superoxides and sulfides). Taking the difference out of CHGNet's energies puts them on Matbench's
scale. Taking out all of 2020's leaves the +U shift in the labels alone: that makes predictions worse.

All numbers are pymatgen's own, with every anion corrected, as published. Later versions of pymatgen spare atoms of less
charge than -1, such as an azide's; CHGNet's labels (2022) are older than that. Which atoms are anions depends on
oxidation states, guessed from the composition, which takes most of the time and is kept; which oxide or sulfide it is
depends on the structure.
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from data.crystals.graphs import Graphs

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

CORRECTIONS_VERSION = 1  # raise it whenever a correction would come out different

# Unless it is the most electronegative element, the oxidation state decides; oxygen and sulfur go by the structure.
_TOLD_BY_OXIDATION_STATE = frozenset({"Br", "I", "Se", "Si", "Sb", "Te", "H", "N", "F", "Cl"})


def mp2020_corrections(graphs: Graphs, which: np.ndarray) -> np.ndarray:
    """What the Materials Project has added to energies since 2020, were these crystals its own calculations.

    Its choice of U is assumed: Co, Cr, Fe, Mn, Mo, Ni, V and W have one where oxygen or fluorine is the most
    electronegative element.

    Args:
        graphs: of all rows.
        which: positions of those to correct, int64, shape (n,).

    Returns:
        eV/atom, float64, shape (n,); NaN for a graph without atoms, a rejected row.
    """
    return _both(graphs, which)[:, 0]


def mp2020_minus_legacy(graphs: Graphs, which: np.ndarray) -> np.ndarray:
    """What the corrections of 2020 add beyond those before: subtracted, CHGNet's energies are on Matbench's scale.

    Args and shapes are those of `mp2020_corrections`.
    """
    corrections = _both(graphs, which)
    return corrections[:, 0] - corrections[:, 1]


def corrections_of_structure(structure: Structure) -> tuple[float, float]:
    """The corrections of 2020 and those before them, eV/atom, of a structure of plain elements."""
    from pymatgen.analysis.structure_analyzer import oxide_type, sulfide_type
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    composition = structure.composition
    if len(composition) == 1:  # neither scheme corrects a crystal of one element; the earlier one replaces gases
        return 0.0, 0.0
    symbols = {element.symbol for element in composition}
    with warnings.catch_warnings():
        # Of noble gases without electronegativity, and of oxidation states that nothing balances: pymatgen's way of
        # dealing with them is what we want.
        warnings.simplefilter("ignore")
        mp2020, legacy = _schemes()
        # pymatgen's test for what has a U, the same expression on the same composition.
        most_electronegative = sorted(composition.elements, key=lambda element: element.X)[-1].symbol
        unknown = (symbols - {most_electronegative}) & _TOLD_BY_OXIDATION_STATE
        with_u = mp2020.u_settings.get(most_electronegative, {})
        entry = ComputedStructureEntry(
            structure,
            0.0,
            parameters={
                "run_type": "GGA",
                "hubbards": {symbol: with_u[symbol] for symbol in symbols if symbol in with_u},
            },
            data={"oxidation_states": _oxidation_states(composition) if unknown else {}},
        )
        if "S" in symbols:  # once, not once a scheme; None, for a sulfate, must not be taken for unknown
            entry.data["sulfide_type"] = sulfide_type(structure) or "sulfate"
        energy_legacy = sum(adjustment.value for adjustment in legacy.get_adjustments(entry))
        if "O" in symbols:
            # The earlier scheme counts the bonded oxygen atoms, for which it needs the structure itself.
            entry.data["oxide_type"] = oxide_type(structure, 1.05)
        energy_mp2020 = sum(adjustment.value for adjustment in mp2020.get_adjustments(entry))
    return energy_mp2020 / len(structure), energy_legacy / len(structure)


def _both(graphs: Graphs, which: np.ndarray) -> np.ndarray:
    """`corrections_of_structure` of graphs; float64, shape (n, 2)."""
    from pymatgen.core import Structure

    corrections = np.full((len(which), 2), np.nan)
    for row, k in enumerate(which.tolist()):
        atoms = slice(graphs.atom_start[k], graphs.atom_start[k + 1])
        if atoms.stop > atoms.start:
            numbers, frac_coords = graphs.numbers[atoms].tolist(), graphs.frac_coords[atoms].astype(np.float64)
            corrections[row] = corrections_of_structure(
                Structure(graphs.lattices[k].astype(float), numbers, frac_coords)
            )
    return corrections


@cache
def _schemes() -> tuple[Any, Any]:
    """The two schemes of pymatgen, without the test of which pseudopotentials were used."""
    from pymatgen.entries.compatibility import (
        MaterialsProject2020Compatibility,
        MaterialsProjectCompatibility,
        PotcarCorrection,
    )

    legacy = MaterialsProjectCompatibility()
    legacy.corrections = [
        correction for correction in legacy.corrections if not isinstance(correction, PotcarCorrection)
    ]
    return MaterialsProject2020Compatibility(check_potcar=False, strict_anions="no_check"), legacy


def _oxidation_states(composition: Composition) -> dict[str, float]:
    """The most likely ones by element, says pymatgen; empty where it finds none or the formula is too long."""
    amounts = [(element.symbol, int(n)) for element, n in composition.items()]
    divisor = gcd(*(n for _, n in amounts))
    return _guessed(tuple((symbol, n // divisor) for symbol, n in amounts))


@lru_cache(maxsize=100_000)
def _guessed(amounts: tuple[tuple[str, int], ...]) -> dict[str, float]:
    from pymatgen.core import Composition

    try:
        return (Composition(dict(amounts)).oxi_state_guesses(max_sites=-20) or ({},))[0]
    except ValueError:  # more than 20 atoms
        return {}
