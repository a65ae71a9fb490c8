"""Reads SHELX's .res files, which AIRSS writes too.

The file is put into the words of a CIF, whose reader expands the symmetry and holds UNIT, LATT, SYMM and the sites'
occupancies against one another. The format is that of https://shelx.uni-goettingen.de/shelxl_html.php.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import gemmi

from data.crystals.crystal import BadCrystalError, ReadCrystal
from data.crystals.formats.cif.reader import read_cif
from data.crystals.formats.text_files import number, text_lines

_CELL = [f"_cell_length_{x}" for x in "abc"] + [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]
_SITE_COLUMNS = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", "symmetry_multiplicity")
# Translations that each number of LATT stands for.
_CENTRINGS = {
    1: [],
    2: ["x+1/2,y+1/2,z+1/2"],
    3: ["x+2/3,y+1/3,z+1/3", "x+1/3,y+2/3,z+2/3"],
    4: ["x,y+1/2,z+1/2", "x+1/2,y,z+1/2", "x+1/2,y+1/2,z"],
    5: ["x,y+1/2,z+1/2"],
    6: ["x+1/2,y,z+1/2"],
    7: ["x+1/2,y+1/2,z"],
}
# Instructions that say nothing of where atoms are. Of others a file may have, all are refused that are no atoms.
_PASSED_OVER = set(
    "TITL ZERR DISP ABIN ACTA AFIX ANIS ANSC ANSR BASF BIND BLOC BOND BUMP CGLS CHIV CONF CONN DAMP DANG DEFS DELU "
    "DFIX EADP EQIV EXTI EXYZ FLAT FMAP FREE GRID HKLF HOPE HTAB ISOR L.S. LAUE LIST MERG MORE MPLA MUST NCSY NEUT "
    "OMIT PLAN PRIG RESI RIGU RTAB SADI SAME SHEL SIMU SIZE SPEC STIR SUMP SWAT TEMP TIME TWIN TWST WGHT WIGL WPDB "
    "XNPD".split()
)


@dataclass
class _Stated:
    """Holds what the instructions before the atoms say."""

    cell: list[float] = field(default_factory=list)
    lattice: int = 0
    operators: list[gemmi.Op] = field(default_factory=lambda: [gemmi.Op("x,y,z")])
    elements: list[str] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)
    free_variables: list[float] = field(default_factory=list)


def read_res(content: bytes) -> ReadCrystal:
    """Reads a .res file, with any symmetry.

    Args:
        content: of the file, not packed.

    Raises:
        BadCrystalError: an instruction that places atoms is not understood or missing, or the crystal is one that
            `data.crystals.formats.cif.reader.read_cif` refuses, such as a disordered one.
    """
    stated = _Stated()
    atoms: list[list[str]] = []
    has_ended = False
    for line in _instructions(content):
        words = line.split()
        word = words[0].upper().split("_")[0]
        if has_ended and word == "CELL":
            raise BadCrystalError("it holds several structures: put each into a file of its own")
        has_ended = has_ended or word == "END" or (word == "HKLF" and bool(atoms))
        if has_ended or word in _PASSED_OVER:
            continue
        if line[0].isspace():
            raise BadCrystalError(
                f"{line!r} begins with a space, as a comment of SHELX's does; remove the line, or the space"
            )
        if word == "PART":
            if words[1:2] != ["0"]:
                raise BadCrystalError(f"disordered structure: {line!r}")
        elif not _state(stated, word, words):
            atoms.append(words)
    if not stated.cell or not stated.elements or not stated.lattice:
        raise BadCrystalError("no CELL, no SFAC or no LATT, which say what the cell, the elements and the symmetry are")
    operators = _all_operators(stated)
    text = ["data_res", *(f"{name} {value!r}" for name, value in zip(_CELL, stated.cell, strict=True))]
    if stated.amounts:
        if len(stated.amounts) != len(stated.elements):
            raise BadCrystalError(f"UNIT has {len(stated.amounts)} amounts for {len(stated.elements)} elements of SFAC")
        amounts = " ".join(f"{e}{n:g}" for e, n in zip(stated.elements, stated.amounts, strict=True) if n)
        text += [f"_chemical_formula_sum '{amounts}'", "_cell_formula_units_Z 1"]
    text += ["loop_", "_space_group_symop_operation_xyz", *(f"'{operator.triplet()}'" for operator in operators)]
    text += ["loop_", *(f"_atom_site_{column}" for column in _SITE_COLUMNS)]
    text += [_site(words, stated, len(operators)) for words in atoms]
    reading = read_cif("\n".join([*text, ""]).encode())
    n_atoms = round(sum(_share(words, stated) for words in atoms) * len(operators))
    if n_atoms != len(reading.crystal.numbers):
        raise BadCrystalError(
            f"disordered structure: by the occupancies of its sites the cell has {n_atoms} atoms, by its symmetry "
            f"{len(reading.crystal.numbers)}"
        )
    return reading


def _instructions(content: bytes) -> list[str]:
    """Lists the lines with text but for comments, each with those that continue it behind a `=`."""
    lines: list[str] = []
    goes_on = False
    for line in text_lines(content):
        text = line.split("!", 1)[0].rstrip()
        if goes_on:
            lines[-1] += " " + text
        elif text and not text.lstrip().upper().startswith("REM"):
            lines.append(text)
        else:
            continue
        goes_on = lines[-1].endswith("=") and not lines[-1].upper().startswith("TITL")
        lines[-1] = lines[-1].rstrip("=") if goes_on else lines[-1]
    return lines


def _state(stated: _Stated, word: str, words: list[str]) -> bool:
    """Takes up an instruction that places atoms; False for any other line."""
    values = [value for value in map(number, words[1:]) if value is not None]
    line = " ".join(words)
    if word in ("CELL", "UNIT", "FVAR") and len(values) != len(words) - 1:
        raise BadCrystalError(f"{line!r}: expected numbers behind {word}")
    if word == "CELL":
        if len(values) != 7 or stated.cell:
            raise BadCrystalError(f"{line!r}: expected one CELL, of a wavelength, three lengths and three angles")
        stated.cell = values[1:]
    elif word == "LATT":
        if len(values) != 1 or abs(values[0]) not in _CENTRINGS or stated.lattice:
            raise BadCrystalError(f"{line!r}: expected one LATT, a number from 1 to 7, negative without inversion")
        stated.lattice = int(values[0])
    elif word == "SYMM":
        try:
            operator = gemmi.Op("".join(words[1:]).lower())
        except (RuntimeError, ValueError):
            operator = None
        if operator is None or abs(operator.det_rot()) != operator.DEN**3:
            raise BadCrystalError(f"{line!r} is no symmetry operator")
        stated.operators.append(operator)
    elif word == "SFAC":
        # Scattering factors may follow an element; otherwise several elements stand in a line.
        stated.elements += words[1:2] if values else words[1:]
    elif word == "UNIT":
        stated.amounts = values
    elif word == "FVAR":
        stated.free_variables += values
    elif word in ("MOVE", "REAP", "FRAG") or word.startswith("+"):
        raise BadCrystalError(f"{line!r}: atoms are moved, are those of a fragment, or stand in another file")
    else:
        return False
    return True


def _all_operators(stated: _Stated) -> list[gemmi.Op]:
    """Lists every operator of the cell: those of SYMM, with inversion and centring as LATT has it."""
    inversions = [gemmi.Op("x,y,z")] + ([gemmi.Op("-x,-y,-z")] if stated.lattice > 0 else [])
    centrings = [gemmi.Op(triplet) for triplet in ("x,y,z", *_CENTRINGS[abs(stated.lattice)])]
    operators = {
        (centring * operator * inversion).wrap().triplet(): None
        for centring in centrings
        for inversion in inversions
        for operator in stated.operators
    }
    return [gemmi.Op(triplet) for triplet in operators]


def _site(words: list[str], stated: _Stated, n_operators: int) -> str:
    """Writes an atom's line as one of a CIF: name, element, position, occupancy and multiplicity."""
    line = " ".join(words)
    values = [number(word) for word in words[1:6]]
    if len(values) < 4 or None in values[:4]:
        raise BadCrystalError(f"{line[:100]!r} is neither an atom nor an instruction that is known")
    index, *coords = (value for value in values[:4] if value is not None)
    if not 1 <= index <= len(stated.elements) or index != int(index):
        raise BadCrystalError(f"{line[:100]!r}: SFAC has {len(stated.elements)} elements, and no number {index:g}")
    for k, value in enumerate(coords):
        if 5 <= value < 15:  # 10 is added to what a refinement keeps as it is
            coords[k] = value - 10
        elif not -5 < value < 5:
            raise BadCrystalError(f"{line[:100]!r}: a coordinate follows a free variable; write its value")
    share = _share(words, stated)
    multiplicity = max(1, round(share * n_operators))  # SHELX counts an atom on a mirror plane by one half
    label = re.sub(r"[^\w]", "", words[0])
    element = stated.elements[int(index) - 1]
    element = element.capitalize() if element.upper() == element else element
    numbers = [*coords, share * n_operators / multiplicity]
    return f"{element}_{label} {element} {' '.join(f'{v:.12g}' for v in numbers)} {multiplicity}"


def _share(words: list[str], stated: _Stated) -> float:
    """Reads the occupancy of an atom, over the number of operators that leave it where it is.

    10 added keeps a value in a refinement; 10 m refers to the free variable m, and -10 m to one minus it.
    """
    if len(words) < 6:
        return 1.0
    value = number(words[5])
    if value is None:
        raise BadCrystalError(f"{' '.join(words)[:100]!r}: the occupancy {words[5]!r} is not a number")
    which = round(value / 10)
    if which in (0, 1):
        return value - 10 * which
    if not 2 <= abs(which) <= len(stated.free_variables):
        raise BadCrystalError(f"{' '.join(words)!r}: {value:g} refers to a free variable that FVAR does not have")
    variable = stated.free_variables[abs(which) - 1]
    return (value - 10 * which) * (variable if which > 0 else variable - 1)
