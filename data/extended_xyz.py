"""An extended XYZ file of one frame -> a crystal; files of many frames are read by `data/readers.py`."""

from __future__ import annotations

import numpy as np

from data.crystal import BadCrystalError, Crystal, ReadCrystal, not_periodic, number_at
from data.elements import MAX_ATOMIC_NUMBER
from data.text_files import count, number, text_lines

_PLAIN = "species:S:1:pos:R:3"


def read_extended_xyz(content: bytes) -> ReadCrystal:
    """Read one frame with a lattice; what its second line means is ASE's to say.

    Args:
        content: of the file, not packed.

    Raises:
        BadCrystalError: there is no lattice, it is not periodic in all directions, there are several frames, or an atom
            has no element or position.
    """
    from ase.io.extxyz import key_val_str_to_dict

    lines = text_lines(content)
    n_atoms = count(lines[0].strip())
    if n_atoms is None or len(lines) < 2:
        raise BadCrystalError(f"line 1: {lines[0][:60]!r} is not the number of atoms")
    try:
        facts = key_val_str_to_dict(lines[1])
        lattice = np.array(facts["Lattice"], dtype=np.float64).T  # ASE has the vectors in columns here
    except KeyError:
        raise BadCrystalError('no Lattice="..." in line 2: a molecule, and no crystal') from None
    except Exception as error:  # noqa: BLE001 - ASE's parser raises of every kind
        raise BadCrystalError(f"line 2 is not one of extended XYZ: {error}") from None
    pbc = np.ravel(facts.get("pbc", True))
    if lattice.shape != (3, 3) or pbc.dtype != bool or len(pbc) not in (1, 3):
        raise BadCrystalError(f"line 2: Lattice and pbc are not nine numbers and three of T and F: {lines[1][:200]!r}")
    if not pbc.all():
        raise BadCrystalError(not_periodic(np.broadcast_to(pbc, 3).tolist()))
    rows = [line.split() for line in lines[2 : 2 + n_atoms]]
    if len(rows) < n_atoms or not all(rows):
        raise BadCrystalError(f"it has {sum(map(bool, rows))} lines of atoms for {n_atoms} atoms")
    if n_atoms == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    if more := next((line for line in lines[2 + n_atoms :] if line.strip()), None):
        raise BadCrystalError(
            f"{more[:60]!r} follows the {n_atoms} atoms: several frames, or too many lines; expected one structure"
        )
    species, position = _columns(str(facts.get("Properties", _PLAIN)))
    numbers, positions, notes = [], [], []
    for k, row in enumerate(rows):
        values = [number(word) for word in row[position : position + 3]]
        if len(values) != 3 or None in values or species >= len(row):
            raise BadCrystalError(
                f"line {k + 3}: {' '.join(row)[:100]!r} has no element or no position of three numbers"
            )
        z, note = _element(row[species], k)
        numbers.append(z)
        positions.append(values)
        notes += [note] if note else []
    try:
        frac_coords = np.linalg.solve(lattice.T, np.array(positions, dtype=np.float64).T).T
    except np.linalg.LinAlgError:
        raise BadCrystalError(f"singular lattice: {lattice.tolist()}") from None
    return ReadCrystal(Crystal(np.array(numbers, dtype=np.uint8), frac_coords, lattice), tuple(dict.fromkeys(notes)))


def _columns(properties: str) -> tuple[int, int]:
    """Which columns hold the element and the first coordinate, by `name:type:count` of each property."""
    words = properties.split(":")
    columns: dict[str, int] = {}
    at = 0
    for name, width in zip(words[::3], words[2::3], strict=False):
        columns[name.lower()] = at
        at += count(width) or 1
    species = next((columns[name] for name in ("species", "symbols", "z", "numbers") if name in columns), None)
    if species is None or "pos" not in columns or len(words) % 3:
        raise BadCrystalError(f"line 2: Properties={properties} names no species or no pos")
    return species, columns["pos"]


def _element(word: str, site: int) -> tuple[int, str]:
    """The element of an atom, by its symbol or its atomic number."""
    if (number_of := count(word)) is not None and 1 <= number_of <= MAX_ATOMIC_NUMBER:
        return number_of, ""
    return number_at(word, site)
