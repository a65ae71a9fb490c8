"""Reads a frame of extended XYZ; `data/crystals/layouts/ase_files.py` cuts files of many frames into such."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal, fractional, not_periodic, number_at
from data.crystals.elements import MAX_ATOMIC_NUMBER
from data.crystals.formats.text_files import count, number, text_lines

_PLAIN = "species:S:1:pos:R:3"


def read_extended_xyz(content: bytes) -> ReadCrystal:
    """Reads one frame with a lattice; what its second line means is ASE's to say.

    Args:
        content: of the file, not packed.

    Raises:
        BadCrystalError: there is no lattice, it is not periodic in all directions, there are several frames, or an atom
            has no element or position.
    """
    lines = text_lines(content)
    n_atoms = count(lines[0].strip())
    if n_atoms is None or len(lines) < 2:
        raise BadCrystalError(f"line 1: {lines[0][:60]!r} is not the number of atoms")
    facts = frame_facts(lines[1])
    lattice = _lattice(facts, lines[1])
    rows = [line.split() for line in lines[2 : 2 + n_atoms]]
    if len(rows) < n_atoms or not all(rows):
        raise BadCrystalError(f"it has {sum(map(bool, rows))} lines of atoms for {n_atoms} atoms")
    if n_atoms == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    if next_line := next((line for line in lines[2 + n_atoms :] if line.strip()), None):
        raise BadCrystalError(
            f"{next_line[:60]!r} follows the {n_atoms} atoms: several frames, or too many lines; expected one structure"
        )
    species, position = _columns(str(facts.get("Properties", _PLAIN)))
    numbers, positions, notes = [], [], []
    for k, row in enumerate(rows):
        values = [number(word) for word in row[position : position + 3]]
        if len(values) != 3 or None in values or max(species) >= len(row):
            raise BadCrystalError(
                f"line {k + 3}: {' '.join(row)[:100]!r} has no element or no position of three numbers"
            )
        elements = [_element(row[column], k) for column in species]
        if len({z for z, _ in elements}) > 1:
            raise BadCrystalError(
                f"line {k + 3}: {' '.join(row)[:100]!r} names two elements, {row[species[0]]} and another"
            )
        numbers.append(elements[0][0])
        notes.append(elements[0][1])
        positions.append(values)
    frac_coords = fractional(np.array(positions, dtype=np.float64), lattice)
    crystal = Crystal(np.array(numbers, dtype=np.uint8), frac_coords, lattice)
    return ReadCrystal(crystal, tuple(dict.fromkeys(note for note in notes if note)))


def frame_facts(line: str) -> dict[str, Any]:
    """Reads the second line of a frame, as ASE does, into what it says by its keys.

    Raises:
        BadCrystalError: ASE cannot read it.
    """
    from ase.io.extxyz import key_val_str_to_dict

    try:
        return key_val_str_to_dict(line)
    except Exception as error:  # noqa: BLE001 - ASE's parser raises of every kind
        raise BadCrystalError(f"line 2 is not one of extended XYZ: {error}") from None


def _lattice(facts: dict[str, Any], line: str) -> np.ndarray:
    """Takes the lattice vectors, rows in Angstrom, of a frame that is periodic along each of them."""
    if "Lattice" not in facts:
        raise BadCrystalError('no crystal: line 2 has no Lattice="..." of a cell')
    try:
        lattice = np.array(facts["Lattice"], dtype=np.float64).T  # ASE has the vectors in columns here
    except (TypeError, ValueError) as error:
        raise BadCrystalError(f"line 2 is not one of extended XYZ: {error}") from None
    pbc = np.ravel(facts.get("pbc", True))
    if lattice.shape != (3, 3) or pbc.dtype != bool or len(pbc) not in (1, 3):
        raise BadCrystalError(f"line 2: Lattice and pbc are not nine numbers and three of T and F: {line[:200]!r}")
    if not pbc.all():
        raise BadCrystalError(not_periodic(np.broadcast_to(pbc, 3).tolist()))
    return lattice


def _columns(properties: str) -> tuple[list[int], int]:
    """Finds the columns that hold the element, as symbol or number or both, and the first coordinate.

    Args:
        properties: `name:type:count` of each property, joined by colons.
    """
    words = properties.split(":")
    names, widths = [name.lower() for name in words[::3]], [count(width) for width in words[2::3]]
    if len(words) % 3 or not all(widths) or len(set(names)) < len(names):
        raise BadCrystalError(f"line 2: Properties={properties} is not name:type:count of each property")
    starts = dict(zip(names, np.cumsum([0, *widths]).tolist(), strict=False))
    species = [starts[name] for name in ("species", "symbols", "z", "numbers") if name in starts]
    if not species or "pos" not in starts:
        raise BadCrystalError(f"line 2: Properties={properties} names no species or no pos")
    if widths[names.index("pos")] != 3:
        raise BadCrystalError(f"line 2: Properties={properties}: expected pos:R:3")
    return species, starts["pos"]


def _element(word: str, site: int) -> tuple[int, str]:
    """Reads the element of an atom, by its symbol or its atomic number, and a note or ""."""
    atomic_number = count(word)
    if atomic_number is not None and 1 <= atomic_number <= MAX_ATOMIC_NUMBER:
        return atomic_number, ""
    return number_at(word, site)
