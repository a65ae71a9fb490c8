"""Reads symmetry operators as a space group, and measures how well a cell fits one. Called by `reader.py`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import gemmi
import numpy as np

from data.crystals.crystal import BadCrystalError

MAX_MISFIT = 1e-2  # part of the cell's lengths by which it may miss its symmetry, as rounding and relaxed cells do
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
    table = table_entry(symmetry)
    name = f"its operators ({table.xhm()})" if table else "its operators"
    return Symmetry(name, rotations, translations, table.number if table else None)


def _check_group(rotations: np.ndarray, translations: np.ndarray, texts: Sequence[str]) -> None:
    """Refuse operators whose products are not all among them."""
    if wrong := [texts[k] for k in range(len(texts)) if round(np.linalg.det(rotations[k])) not in (1, -1)]:
        raise BadCrystalError(f"{wrong[0]!r} is no symmetry operator: it does not keep volumes")
    members = operator_codes(rotations, translations)
    step = max(1, 50_000 // len(texts))
    for start in range(0, len(texts), step):
        block = slice(start, start + step)
        moved = np.einsum("iab,jb->ija", rotations[block], translations) + translations[block, None]
        products = operator_codes((rotations[block, None] @ rotations).reshape(-1, 3, 3), moved.reshape(-1, 3))
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


def table_entry(symmetry: Symmetry) -> gemmi.SpaceGroup | None:
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


def fits_cell(symmetry: Symmetry, lattice: np.ndarray) -> bool:
    """Says whether every rotation keeps lengths and angles of the cell, to `MAX_MISFIT` of its lengths."""
    return misfit(symmetry, lattice) <= MAX_MISFIT


def misfit(symmetry: Symmetry, lattice: np.ndarray) -> float:
    """Measures how far a cell is from having the symmetry: the largest change of a lattice vector's length or angle.

    A length counts in parts of itself, an angle in radian.
    """
    metric = lattice @ lattice.T
    length = np.sqrt(np.diag(metric))
    # x' = R x keeps distances when R^T G R = G.
    moved = np.einsum("nki,kl,nlj->nij", symmetry.rotations, metric, symmetry.rotations)
    return float(np.abs((moved - metric) / np.outer(length, length)).max())
