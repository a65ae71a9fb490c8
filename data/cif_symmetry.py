"""Turns operators, Hall symbols, names and numbers into space groups.

A name that several settings share (`F d -3 m` has two origins) gives several candidates; `data/cif.py` lets the rest
of the file decide.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, lru_cache

import gemmi
import numpy as np

from data.crystal import BadCrystalError

MAX_OPERATORS = 4_000  # the largest space group has 192, a supercell's multiples of that


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A space group in one setting.

    Attributes:
        name: what messages call it.
        rotations: int64, shape (n, 3, 3).
        translations: float64, shape (n, 3), in [0, 1).
        number: of the space-group type, 1 to 230, or None where the setting is in no table (see `group_number`).
    """

    name: str
    rotations: np.ndarray
    translations: np.ndarray
    number: int | None

    def __len__(self) -> int:
        """Number of operators, centring included."""
        return len(self.rotations)

    @cached_property
    def codes(self) -> np.ndarray:
        """Numbers the operators, see `operator_codes`."""
        return operator_codes(self.rotations, self.translations)


IDENTITY = Symmetry("P 1", np.eye(3, dtype=np.int64)[None], np.zeros((1, 3)), 1)

_DENOMINATOR = 720_720  # a multiple of 1 to 16: translations of supercells have such

_TERM = re.compile(r"([+-]?)(?:(\d+\.?\d*|\.\d+)(?:/(\d+))?\*?([xyz])?|([xyz])(?:/(\d+))?)")


@lru_cache(65536)
def _parse_operator(text: str) -> tuple[tuple[int, ...], tuple[Fraction, Fraction, Fraction]] | None:
    """Rotation (nine whole numbers) and translation of `x+1/2, -y, z`; None where it is none."""
    parts = "".join(text.split()).lower().strip("'\"").split(",")
    if len(parts) != 3:
        return None
    rotation, translation = [], []
    for part in parts:
        row, shift, at = {"x": 0, "y": 0, "z": 0}, Fraction(0), 0
        if not part:
            return None
        while at < len(part):
            match = _TERM.match(part, at)
            if match is None or (at and not match[1]):
                return None
            at = match.end()
            sign = -1 if match[1] == "-" else 1
            if match[5]:
                if match[6]:
                    return None
                row[match[5]] += sign
                continue
            if match[3] is not None and int(match[3]) == 0:
                return None
            value = Fraction(match[2]) / int(match[3] or 1)
            if match[4]:
                if value.denominator != 1:
                    return None
                row[match[4]] += sign * int(value)
            else:
                # Decimals are rounded fractions: 0.3333 is a third.
                near = value.limit_denominator(24)
                shift += sign * (near if abs(near - value) < Fraction(1, 1000) else value)
        rotation += [row["x"], row["y"], row["z"]]
        translation.append(shift % 1)
    return tuple(rotation), (translation[0], translation[1], translation[2])


@lru_cache(512)
def read_operators(texts: tuple[str, ...], centrings: tuple[str, ...] = ()) -> Symmetry:
    """The group of these operators, each combined with each centring translation.

    Raises:
        BadCrystalError: a text is no operator, or they are not a group.
    """
    if len(texts) * max(1, len(centrings)) > MAX_OPERATORS:
        raise BadCrystalError(f"it has {len(texts)} symmetry operators; no crystal that can be used has so many")
    parsed: dict[tuple[tuple[int, ...], tuple[Fraction, Fraction, Fraction]], str] = {}
    for text in texts:
        operator = _parse_operator(text)
        if operator is None:
            raise BadCrystalError(f"{text!r} is no symmetry operator; expected one such as 'x+1/2, -y, z'")
        parsed[operator] = text
    for text in centrings:
        operator = _parse_operator(text)
        if operator is None:
            raise BadCrystalError(f"{text!r} is no centring operator; expected one such as 'x+1/2, y+1/2, z'")
        for rotation, shift in list(parsed):
            if operator[0] == (1, 0, 0, 0, 1, 0, 0, 0, 1):
                moved = tuple((a + b) % 1 for a, b in zip(shift, operator[1], strict=True))
                parsed.setdefault((rotation, (moved[0], moved[1], moved[2])), text)
    rotations = np.array([operator[0] for operator in parsed], dtype=np.int64).reshape(-1, 3, 3)
    translations = np.array([[float(t) for t in operator[1]] for operator in parsed])
    _check_group(rotations, translations, list(parsed.values()))
    symmetry = Symmetry("its operators", rotations, translations, None)
    table = _table_entry(symmetry)
    name = f"its operators ({table.xhm()})" if table else "its operators"
    return Symmetry(name, rotations, translations, table.number if table else None)


def _check_group(rotations: np.ndarray, translations: np.ndarray, texts: Sequence[str]) -> None:
    """Refuse operators whose products are not all among them."""
    if wrong := [texts[k] for k in range(len(texts)) if round(np.linalg.det(rotations[k])) not in (1, -1)]:
        raise BadCrystalError(f"{wrong[0]!r} is no symmetry operator: it does not keep volumes")
    members = operator_codes(rotations, translations)
    step = max(1, 50_000 // len(texts))
    for start in range(0, len(texts), step):
        some = slice(start, start + step)
        moved = np.einsum("iab,jb->ija", rotations[some], translations) + translations[some, None]
        products = operator_codes((rotations[some, None] @ rotations).reshape(-1, 3, 3), moved.reshape(-1, 3))
        missing = np.flatnonzero(~np.isin(products, members))
        if len(missing):
            k, j = divmod(int(missing[0]), len(texts))
            raise BadCrystalError(
                f"its {len(texts)} symmetry operators are not a group: {texts[start + k]!r} times {texts[j]!r} is not "
                "among them"
            )


def operator_codes(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Gives each operator a number, uint64, the same where they differ by whole translations."""
    shifts = np.rint(translations * _DENOMINATOR).astype(np.int64) % _DENOMINATOR
    codes = np.zeros(len(rotations), dtype=np.uint64)
    for column in np.concatenate([rotations.reshape(-1, 9), shifts], axis=1).T:
        codes = codes * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64)
        codes ^= codes >> np.uint64(29)
    return codes


def _table_entry(symmetry: Symmetry) -> gemmi.SpaceGroup | None:
    """The tabulated setting with exactly these operators."""
    shifts = symmetry.translations * gemmi.Op.DEN
    if np.abs(shifts - np.rint(shifts)).max() > 1e-6:
        return None
    operators = []
    for rotation, shift in zip(symmetry.rotations, np.rint(shifts).astype(int), strict=True):
        operator = gemmi.Op()
        operator.rot = (rotation * gemmi.Op.DEN).tolist()
        operator.tran = shift.tolist()
        operators.append(operator)
    return gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operators))


def group_number(symmetry: Symmetry, lattice: np.ndarray) -> int | None:
    """Number of the space-group type, 1 to 230, whatever the setting; None where it cannot be told."""
    if symmetry.number is not None:
        return symmetry.number
    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it is going to report errors
        try:
            kind = spglib.get_spacegroup_type_from_symmetry(
                symmetry.rotations, symmetry.translations, lattice=lattice, symprec=1e-3
            )
        except spglib.error.SpglibError:
            return None
    return None if kind is None else int(kind.number)


@cache
def of_table(index: int) -> Symmetry:
    """The group at a position of the table."""
    entry = _table()[index]
    return _of_group_ops(entry.operations(), entry.xhm(), entry.number)


def _of_group_ops(group: gemmi.GroupOps, name: str, number: int | None) -> Symmetry:
    operators = list(group)
    rotations = np.array([operator.rot for operator in operators], dtype=np.int64) // gemmi.Op.DEN
    translations = np.array([operator.tran for operator in operators], dtype=np.float64) / gemmi.Op.DEN % 1.0
    return Symmetry(name, rotations, translations, number)


@cache
def _table() -> list[gemmi.SpaceGroup]:
    return list(gemmi.spacegroup_table())


@lru_cache(1024)
def from_hall(symbol: str) -> Symmetry | None:
    """The group of a Hall symbol, None where it is none."""
    text = " ".join(symbol.replace("_", " ").split())
    try:
        group = gemmi.symops_from_hall(text)
    except (RuntimeError, ValueError):
        return None
    if len(group) > 192:
        return None
    symmetry = _of_group_ops(group, f"the Hall symbol {symbol!r}", None)
    table = _table_entry(symmetry)
    return Symmetry(symmetry.name, symmetry.rotations, symmetry.translations, table.number if table else None)


_ORIGIN = {"s": "1", "z": "2"}  # in names of the ICSD: origin at the highest symmetry, or at a centre
_SUFFIX = re.compile(r"(?::|\(?(?:origin(?:choice)?|choice|o)[:=]?)(-?[a-c]?[1-6]|[hrsz]|hr|rh)\)?$")


def _key(name: str) -> str:
    """Takes off a Hermann-Mauguin name what is only layout: case, blanks, underscores, marks of subscripts."""
    text = re.sub(r"[\s_'\"\\{}$~]", "", name.lower())
    return re.sub(r"(?<=[2346])\(([1-5])\)", r"\1", text)


@cache
def _names() -> dict[str, list[int]]:
    """Positions in the table of all settings that a name can mean, the conventional one first."""
    full: dict[str, list[int]] = {}
    others: dict[str, list[int]] = {}
    for position, entry in enumerate(_table()):
        full.setdefault(_key(entry.hm), []).append(position)
        words = entry.hm.split()
        spellings = []
        if entry.number >= 195:  # F m 3 m: old symbols of the cubic groups have no bar on the 3
            spellings.append(entry.hm.replace("-3", "3", 1))
        if 3 <= entry.number <= 15:
            spellings.append(" ".join(word for word in words if word != "1"))
        if entry.number in (39, 41, 64, 67, 68):  # renamed in 1992: C m c e for C m c a
            axis = "ABC".index(words[0]) + 1
            spellings.append(" ".join([*words[:axis], "e", *words[axis + 1 :]]))
        if entry.ext == "H":
            spellings.append("H" + entry.hm[1:])
        for spelling in spellings:
            others.setdefault(_key(spelling), []).append(position)
    return others | full


@cache
def _full_names() -> dict[str, list[int]]:
    """Lists the positions of full names, such as `P 21/n 21/m 21/a`, which spglib has."""
    import spglib

    positions = {(entry.number, entry.hall): k for k, entry in reversed(list(enumerate(_table())))}
    names: dict[str, list[int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it is going to report errors
        kinds = [spglib.get_spacegroup_type(k) for k in range(1, 531)]
    for kind in kinds:
        if kind is None:
            continue
        entry = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(kind.hall_symbol))
        if entry is not None:
            names.setdefault(_key(kind.international_full), []).append(positions[entry.number, entry.hall])
    return names


@lru_cache(1024)
def settings_of_name(name: str) -> tuple[int, ...]:
    """Positions of the settings that a Hermann-Mauguin name can mean, () for a name that is none."""
    return _settings_in(_names(), _key(name)) or _settings_in(_full_names(), _key(name))


def _settings_in(names: dict[str, list[int]], key: str) -> tuple[int, ...]:
    if key in names:
        return tuple(names[key])
    if (match := _SUFFIX.search(key)) is not None:
        base, code = key[: match.start()], match[1]
    else:
        base, code = key[:-1], key[-1:]
        if code not in ("h", "r", "s", "z"):
            return ()
    return tuple(k for k in names.get(base, ()) if code_of(k, code))


def code_of(position: int, code: str) -> bool:
    """Says whether a setting has this code: an origin, H or R, or the axes and cell choice."""
    entry = _table()[position]
    code = _ORIGIN.get(code.lower(), code.lower()).strip()
    if code in ("hr", "rh"):
        return entry.ext in ("H", "R")
    if entry.ext in ("1", "2", "H", "R"):
        return code in (entry.ext.lower(), entry.ext.lower() + entry.qualifier, entry.qualifier + entry.ext.lower())
    return code == entry.qualifier or (code == "1" and entry.number >= 16 and entry.is_reference_setting())


def settings_of_number(number: int) -> tuple[int, ...]:
    """Positions of all settings of a space-group type."""
    return tuple(k for k, entry in enumerate(_table()) if entry.number == number)


def fits_cell(symmetry: Symmetry, lattice: np.ndarray, tolerance: float) -> bool:
    """Says whether every rotation keeps lengths and angles of the cell, to this part of its lengths."""
    return misfit(symmetry, lattice) <= tolerance


def misfit(symmetry: Symmetry, lattice: np.ndarray) -> float:
    """Measures how far a cell is from having the symmetry: the largest change of a lattice vector's length or angle.

    A length counts in parts of itself, an angle in radian.
    """
    metric = lattice @ lattice.T
    length = np.sqrt(np.diag(metric))
    # x' = R x keeps distances when R^T G R = G.
    moved = np.einsum("nki,kl,nlj->nij", symmetry.rotations, metric, symmetry.rotations)
    return float(np.abs((moved - metric) / np.outer(length, length)).max())


def setting(position: int) -> gemmi.SpaceGroup:
    """The entry of gemmi's table."""
    return _table()[position]
