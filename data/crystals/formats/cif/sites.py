"""Reads the sites of a CIF file, and refuses what says that an atom is missing or only partly there.

Called by `reader.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from data.crystals.crystal import BadCrystalError
from data.crystals.formats.cif.orbits import MAX_ATOMS
from data.crystals.formats.cif.species import species_of
from data.crystals.formats.cif.tags import Tags, number_of

_OCCUPANCY_ROUNDING = 1e-3
_WATER = re.compile(r"O[HW]|O\d+[HW]|W(at)?\d*$|H2O|Aq|O\(?W|O\(?H", re.IGNORECASE)

_NAMES = ("_chemical_name_systematic", "_chemical_name_common", "_chemical_name_mineral")
_HYDROGENS = re.compile(r"(?<!an)(?<!de)hydrate|hydrox|hydrid|ammonium", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of an asymmetric unit.

    Attributes:
        labels: what messages call each.
        numbers: atomic numbers, uint8, shape (n_sites,).
        frac_coords: float64, shape (n_sites, 3).
        multiplicities: atoms of each site in the cell as the file says, 0 where it does not; None where it never does.
        notes: of what was read as something else.
    """

    labels: list[str]
    numbers: np.ndarray
    frac_coords: np.ndarray
    multiplicities: np.ndarray | None
    notes: tuple[str, ...]


def read_sites(tags: Tags, formula: set[int] | None) -> Sites:
    """Reads the loop of sites.

    Args:
        tags: the file's block.
        formula: atomic numbers in its formula, None where it has none.

    Raises:
        BadCrystalError: a site is no atom, is one partly, has no position, or says that hydrogens are missing.
    """
    axes = _axes(tags)
    n_sites = len(axes[0])
    columns = {
        name: tags.column(f"_atom_site_{name}", n_sites) or [None] * n_sites
        for name in ("type_symbol", "label", "occupancy", "disorder_group", "calc_flag", "attached_hydrogens")
    }
    labels: list[str] = []
    vacant = np.zeros(n_sites, dtype=bool)
    notes: list[str] = []
    numbers = np.empty(n_sites, dtype=np.uint8)
    frac_coords = np.empty((n_sites, 3))
    for k in range(n_sites):
        symbol, label = columns["type_symbol"][k], columns["label"][k]
        name = label or f"{symbol or 'without a name'} (row {k + 1})"
        labels.append(name)
        vacant[k] = _is_vacant(name, {key: column[k] for key, column in columns.items()}, notes)
        if vacant[k] and formula is None:
            raise BadCrystalError(f"site {name} has the occupancy 0, and no formula says that it is empty")
        species = species_of(symbol, label, formula)
        numbers[k] = species.number
        if species.note:
            notes.append(species.note)
        for axis, texts in enumerate(axes):
            number = number_of(texts[k])
            if number is None or abs(number) > 1e3:
                raise BadCrystalError(f"site {name} has no position along {'xyz'[axis]}: {texts[k] or '?'!r}")
            frac_coords[k, axis] = number
    _refuse_two_disorder_groups(labels, columns["disorder_group"])
    if vacant.any():
        notes.append(f"{vacant.sum()} sites of occupancy 0 are left out, such as {labels[int(np.argmax(vacant))]}")
        labels = [label for label, empty in zip(labels, vacant, strict=True) if not empty]
        numbers, frac_coords = numbers[~vacant], frac_coords[~vacant]
        if not labels:
            raise BadCrystalError("all sites have the occupancy 0")
    if formula is None and 1 not in numbers:
        water = [f"site {name} is called water or hydroxyl" for name in labels if _is_water(name, numbers, labels)]
        water += [f"its name {name!r} tells of hydrogens" for name in tags.texts(*_NAMES) if _HYDROGENS.search(name)]
        if water:
            raise BadCrystalError(
                f"{water[0]}, and the file has neither hydrogens nor a formula to say that none are missing"
            )
    multiplicities = _multiplicities(tags, n_sites)
    multiplicities = None if multiplicities is None else multiplicities[~vacant]
    return Sites(labels, numbers, frac_coords, multiplicities, tuple(dict.fromkeys(notes)))


def _axes(tags: Tags) -> list[list[str | None]]:
    """Gives the texts of all sites' coordinates along each of the three axes."""
    axes = [tags.values.get(f"_atom_site_fract_{x}", []) for x in "xyz"]
    counts = [len(texts) for texts in axes]
    if min(counts) == 0:
        if "_atom_site_cartn_x" in tags.values:
            raise BadCrystalError("its atoms have Cartesian positions only; expected _atom_site_fract_x, _y and _z")
        raise BadCrystalError("its atoms have no positions (_atom_site_fract_x, _y and _z)")
    if len(set(counts)) > 1:
        raise BadCrystalError("it has {}, {} and {} coordinates along the axes".format(*counts))
    if counts[0] > MAX_ATOMS:
        raise BadCrystalError(f"it lists {counts[0]} sites; at most {MAX_ATOMS} atoms are read")
    return axes


def _is_water(name: str, numbers: np.ndarray, labels: list[str]) -> bool:
    return numbers[labels.index(name)] == 8 and _WATER.match(name) is not None


def _is_vacant(name: str, site: dict[str, str | None], notes: list[str]) -> bool:
    """Says whether a site has the occupancy 0, and refuses one that is a part of an atom."""
    if (text := site["occupancy"]) is not None:
        occupancy = number_of(text)
        if occupancy is None:
            raise BadCrystalError(f"site {name} has the occupancy {text!r}, not a number")
        if occupancy > 1 + _OCCUPANCY_ROUNDING:
            raise BadCrystalError(f"site {name} has an occupancy above 1: {text}")
        if occupancy == 0:
            return True
        if occupancy < 1 - _OCCUPANCY_ROUNDING:
            raise BadCrystalError(f"disordered structure: site {name} has the occupancy {text}")
        if occupancy != 1:
            notes.append(f"occupancy {text} is read as 1")
    if site["calc_flag"] == "dum":
        raise BadCrystalError(f"site {name} is a dummy, not an atom (_atom_site_calc_flag dum)")
    attached = number_of(site["attached_hydrogens"])
    if attached:
        raise BadCrystalError(f"{attached:g} hydrogens attached to site {name} have no positions")
    return False


def _refuse_two_disorder_groups(labels: list[str], groups: list[str | None]) -> None:
    named = {group: label for label, group in zip(labels, groups, strict=True) if group not in (None, "0")}
    if len(named) > 1 or any((group or "").startswith("-") for group in named):
        raise BadCrystalError(
            f"disordered structure: sites are in the disorder groups {', '.join(map(str, named))}, "
            f"such as {', '.join(list(named.values())[:3])}"
        )


def _multiplicities(tags: Tags, n_sites: int) -> np.ndarray | None:
    for name in ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity"):
        column = tags.column(name, n_sites)
        if column is not None:
            return np.array([number_of(text) or 0.0 for text in column])
    return None
