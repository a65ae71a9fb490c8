"""Reads the structure of the last ionic step in VASP's vasprun.xml."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from data.crystals.crystal import BadCrystalError, ReadCrystal, crystal_of
from data.crystals.formats.text_files import count, number

_LARGE = {"calculation", "dos", "eigenvalues", "projected", "scstep", "dielectricfunction", "dynmat"}


def read_vasprun(content: bytes) -> ReadCrystal:
    """Reads the last structure that VASP has computed.

    Args:
        content: of the file, not packed.

    Raises:
        BadCrystalError: the file is cut (the run has not ended, or was killed), or has no ionic step.
    """
    symbols: list[str] = []
    step: ElementTree.Element | None = None
    try:
        for element in _elements(content):
            if element.tag == "atominfo":
                symbols = _symbols(element)
            elif element.tag == "calculation" and (structure := element.find("structure")) is not None:
                step = structure
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter of an unknown encoding
        raise BadCrystalError(f"the file is cut or damaged, as that of a run that has not ended is: {error}") from None
    if step is None or not symbols:
        raise BadCrystalError("no structure of an ionic step in it")
    lattice = _vectors(step, "crystal/varray[@name='basis']")
    return crystal_of(symbols, _vectors(step, "varray[@name='positions']"), lattice)


def _elements(content: bytes) -> Iterator[ElementTree.Element]:
    """Every element as it ends; what is large and no structure is let go at once."""
    for _, element in ElementTree.iterparse(io.BytesIO(content)):
        yield element
        if element.tag in _LARGE:
            element.clear()


def _symbols(atominfo: ElementTree.Element) -> list[str]:
    """The element of each atom: the one that its potential is of, for VASP cuts some symbols (`r` for Zr)."""
    types = [[c.text or "" for c in row] for row in atominfo.findall("array[@name='atomtypes']/set/rc")]
    atoms = [[c.text or "" for c in row] for row in atominfo.findall("array[@name='atoms']/set/rc")]
    potentials = [row[-1].split() for row in types]  # such as PAW_PBE Zr_sv 04Jan2005
    symbols = []
    for row in atoms:
        symbol, kind = row[0].strip(), row[-1].strip()
        words = potentials[which - 1] if (which := count(kind)) and which <= len(potentials) else []
        name = next((word.split("_")[0] for word in words[1:2]), symbol)
        if not name.endswith(symbol):
            raise BadCrystalError(f"an atom is {symbol!r}, and its potential {' '.join(words)!r}")
        symbols.append(name)
    return symbols


def _vectors(structure: ElementTree.Element, path: str) -> np.ndarray:
    rows = [[number(word) for word in (v.text or "").split()] for v in structure.findall(f"{path}/v")]
    if any(len(row) != 3 or None in row for row in rows):
        raise BadCrystalError(f"{path}: a row is not three numbers")
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
