"""Reads VASP's POSCAR and CONTCAR: everything stated in the file is used, and nothing is guessed.

The format is that of https://www.vasp.at/wiki/index.php/POSCAR, with what programs write into it: names of POTCAR
files for elements, comments behind numbers, element labels behind positions.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal, fractional
from data.crystals.elements import ATOMIC_NUMBERS, SymbolError, read_symbol
from data.crystals.formats.text_files import count, number, text_lines

_SITE_LABEL = re.compile(r"([A-Z][a-z]?)[\d.]*[+-]?")  # Na, Na1, Na+, Fe3+
_NUMBERED = re.compile(r"([A-Z][a-z]?)(?:\d{1,2}|\d?[+-]|[+-]\d)")  # Fe1 and Fe2 of one element, Na+, O2-
_FLAGS = {"t", "f", ".true.", ".false.", "true", "false", ".t.", ".f."}


def read_poscar(content: bytes) -> ReadCrystal:
    """Read a POSCAR of VASP 5 or later, or one whose positions have element names behind them.

    Args:
        content: of the file, not packed.

    Raises:
        BadCrystalError: the elements are not named, a number is missing or none, the counts of atoms do not agree with
            the positions, or there is more in the file than one structure and its velocities.
    """
    lines = [re.split("[!#]", line, maxsplit=1)[0].split() for line in text_lines(content)]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) < 8:
        raise BadCrystalError(f"it has {len(lines)} lines; a POSCAR has 8 at least")
    stated = np.array([_numbers(lines, k, "a lattice vector") for k in (2, 3, 4)])
    scale = _scale(lines[1], stated)
    symbols, counts, at = _species(lines)
    selective = at < len(lines) and lines[at][:1] and lines[at][0][0] in "sS"
    at += bool(selective)
    mode = lines[at][0] if at < len(lines) and lines[at] else "nothing"
    if mode[0] not in "cCkKdDfF":
        raise BadCrystalError(f"line {at + 1}: {mode!r} where 'Direct' or 'Cartesian' is expected")
    first, n_atoms = at + 1, sum(counts)
    rows = lines[first : first + n_atoms]
    n_positions = next((k for k, row in enumerate(rows) if not row or number(row[0]) is None), len(rows))
    if n_positions < n_atoms:
        rest = " ".join(rows[n_positions]) if n_positions < len(rows) else ""
        then = f": line {first + n_positions + 1}, {rest!r}, is none" if rest else ""
        raise BadCrystalError(f"it has {n_positions} positions for {n_atoms} atoms{then}")
    if n_atoms == 0:
        raise BadCrystalError("empty structure: it has no atoms")
    positions = np.array([_numbers(lines, k, "a position") for k in range(first, first + n_atoms)])
    labels = [_label(row[3:], bool(selective)) for row in rows]
    numbers, notes = _elements(symbols, counts, labels, first)
    _check_rest(lines, first + n_atoms)
    lattice = stated * scale
    if mode[0] in "cCkK":
        positions = fractional(positions * scale, lattice)
    return ReadCrystal(Crystal(np.array(numbers, dtype=np.uint8), positions, lattice), tuple(dict.fromkeys(notes)))


def _numbers(lines: list[list[str]], at: int, what: str) -> list[float]:
    """The three numbers that a line begins with."""
    words = lines[at]
    values = [number(word) for word in words[:4]]
    if len(values) < 3 or None in values[:3]:
        raise BadCrystalError(f"line {at + 1}: {' '.join(words)!r} is not {what}, three numbers")
    if len(values) == 4 and values[3] is not None:
        raise BadCrystalError(f"line {at + 1}: {' '.join(words)!r} has more than the three numbers of {what}")
    return [value for value in values[:3] if value is not None]


def _scale(words: list[str], lattice: np.ndarray) -> np.ndarray:
    """Reads the factors of x, y and z in lattice vectors and Cartesian positions, shape (3,)."""
    values = []
    for word in words:
        if (value := number(word)) is None:
            break
        values.append(value)
    text = f"line 2: {' '.join(words)!r} is not a scale factor"
    if len(values) == 3:
        if min(values) <= 0:
            raise BadCrystalError(f"{text}: three factors, of x, y and z, must all be positive")
        return np.array(values)
    if len(values) != 1 or values[0] == 0:
        raise BadCrystalError(f"{text}: expected one number other than 0, or three positive ones")
    if values[0] > 0:
        return np.full(3, values[0])
    volume = abs(np.linalg.det(lattice))  # a negative factor is the volume of the cell
    if not volume > 0:
        raise BadCrystalError(f"singular lattice: {lattice.tolist()}")
    return np.full(3, (-values[0] / volume) ** (1 / 3))


def _species(lines: list[list[str]]) -> tuple[list[str], list[int], int]:
    """The names of the species (none: []), how many atoms each has, and the index of the next line.

    VASP breaks both lines after twenty entries.
    """
    at = 5
    symbols: list[str] = []
    while at < len(lines) and lines[at] and count(lines[at][0]) is None:
        if number(lines[at][0]) is not None:
            raise BadCrystalError(f"line {at + 1}: {' '.join(lines[at])!r} are not counts of atoms, whole numbers")
        symbols += lines[at]
        at += 1
        if at - 5 > 10:
            raise BadCrystalError("line 7: no counts of atoms behind the names of the elements")
    counts: list[int] = []
    while (
        at < len(lines) and lines[at] and count(lines[at][0]) is not None and (not counts or len(counts) < len(symbols))
    ):
        for word in lines[at]:
            if (value := count(word)) is None:
                break  # a comment
            counts.append(value)
        at += 1
    if not counts or (symbols and len(symbols) != len(counts)):
        raise BadCrystalError(
            f"{len(counts)} counts of atoms ({counts}) for {len(symbols)} species ({' '.join(symbols)})"
        )
    return symbols, counts, at


def _label(words: list[str], selective: bool) -> str:
    """The element that the words behind a position name; "" for none."""
    flags = len(words) >= 3 and all(word.lower() in _FLAGS for word in words[:3])
    if selective and not flags:
        raise BadCrystalError(
            f"selective dynamics, and a position with {' '.join(words)!r} behind it; expected three flags, T or F"
        )
    words = words[3:] if flags else words
    label = _SITE_LABEL.fullmatch(words[0]) if words else None
    return label[1] if label and label[1] in ATOMIC_NUMBERS else ""


def _elements(symbols: list[str], counts: list[int], labels: list[str], first: int) -> tuple[list[int], list[str]]:
    """The atomic number of each atom, and notes."""
    notes = []
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    blocks = [labels[a:b] for a, b in pairwise(starts)]
    if not symbols:
        if not all(labels) or any(len(set(block)) != 1 for block in blocks if block):
            raise BadCrystalError(
                "the elements are not named (a POSCAR of VASP 4): put their symbols in a line before the counts"
            )
        symbols = [block[0] if block else "H" for block in blocks]
        notes.append("elements are named behind the positions only")
    numbers: list[int] = []
    for symbol, n_atoms, block, start in zip(symbols, counts, blocks, starts, strict=False):
        potential = symbol.split("/", 1)[0]  # VASP writes a hash of the POTCAR behind it
        bare = potential.split("_", 1)[0]
        if numbered := _NUMBERED.fullmatch(bare):
            notes.append(f"numbers and charges of species are left out: {bare} is read as {numbered[1]}")
            potential = bare = numbered[1]
        try:
            z, note = read_symbol(bare)
        except SymbolError as error:
            raise BadCrystalError(f"species {symbol!r}: {error}") from None
        for k, label in enumerate(block, start=first + start + 1):
            if label and ATOMIC_NUMBERS[label] != z:
                raise BadCrystalError(f"line {k}: the position is labelled {label}, and the counts make it {bare}")
        notes += [note] if note else []
        notes += [f"names of potentials are read as their element: {potential} as {bare}"] if bare != potential else []
        notes += [f"a species without atoms is left out: {symbol}"] if not n_atoms else []
        numbers += [z] * n_atoms
    return numbers, notes


def _check_rest(lines: list[list[str]], at: int) -> None:
    """Check that nothing but velocities and the state of a molecular dynamics follows the positions."""
    if at < len(lines) and lines[at] and number(lines[at][0]) is not None:
        raise BadCrystalError(f"line {at + 1}: another position, {' '.join(lines[at])!r}, behind those of all atoms")
    for k, words in enumerate(lines[at:], start=at + 1):
        if words and number(words[0]) is None and words[0].lower() != "nan" and words[0][0] not in "cCkKdDlL":
            raise BadCrystalError(
                f"line {k}: {' '.join(words)!r} behind the positions; expected velocities or the end of the file"
            )
