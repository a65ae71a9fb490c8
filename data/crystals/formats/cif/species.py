"""Reads type symbols, labels and formulas of a CIF file as elements, or refuses them by name.

A text that could mean two elements is decided by the file's formula and by nothing else. Called by `reader.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from data.crystals.crystal import BadCrystalError
from data.crystals.elements import MAX_ATOMIC_NUMBER, SYMBOLS

NUMBERS = {symbol: z for z, symbol in SYMBOLS.items()} | {"D": 1, "T": 1}
_ISOTOPES = {"D": "deuterium", "T": "tritium"}
# Atoms of molecules are named after their place, a Greek letter, or the atom they are bound to: CA, HO1, CN2.
_NAMED_AFTER_OTHERS, _OTHERS = set("CHNOPS"), set("ABGDEZH" + "BCFHINOPS")
_TYPE = re.compile(r"(\d{1,3})?([A-Za-z]+)(?:0|\d*\.?\d*[+-]|[+-]\d*\.?\d*)?")
_LABEL = re.compile(r"([A-Za-z]+)(.*)", re.DOTALL)
# Names of what is no atom. X, M and Q are no elements either and need no line here.
_NO_ATOM = {"va", "vac", "wat", "water", "du", "dum", "dummy", "cent", "void", "h2o", "oh2", "nh", "nh4", "cn", "lp"}


@dataclass(frozen=True)
class Species:
    """Holds what a text of the file says of an atom.

    Attributes:
        number: atomic number.
        note: what was done beyond copying, or "".
    """

    number: int
    note: str = ""


def species_of(symbol: str | None, label: str | None, formula: set[int] | None) -> Species:
    """Tells the element of a site.

    Args:
        symbol: its type symbol (`Fe3+`, `13C`), if given.
        label: its label (`Fe1`, `O2A`), if given.
        formula: atomic numbers in the formula of the file, or None where it has none.

    Raises:
        BadCrystalError: it is no element, could be several, is one beyond `MAX_ATOMIC_NUMBER`, or symbol and label
            name different ones and no formula decides.
    """
    whose = f"site {label}" if label else "a site without a label"
    if symbol is None:
        if label is None:
            raise BadCrystalError("a site has neither a type symbol nor a label that could tell its element")
        numbers, note = _numbers_of_label(label)
        text, kind = label, "label"
    elif symbol == label:
        numbers, note = _numbers_of_label(symbol)
        text, kind = symbol, "type symbol"
    else:
        numbers, note = _numbers_of_type(symbol)
        if note == _LOOSE and label is None:  # files without labels may have them in the place of type symbols
            numbers, note = _numbers_of_label(symbol)
        text, kind = symbol, "type symbol"
    if not numbers:
        raise BadCrystalError(f"{whose}: its {kind} {text!r} names no element")
    if len(numbers) > 1 or note == _LOOSE:
        fitting = [z for z in numbers if formula is not None and z in formula]
        if len(fitting) != 1:
            candidates = " or ".join(SYMBOLS[z] for z in numbers)
            why = "the file has no formula to decide" if formula is None else "the file's formula does not decide"
            raise BadCrystalError(
                f"{whose}: its {kind} {text!r} is not clearly an element (perhaps {candidates}?), and {why}"
            )
        numbers, note = tuple(fitting), f"{kind} {text!r} is read as {SYMBOLS[fitting[0]]}, as the formula has it"
    number = numbers[0]
    if number > MAX_ATOMIC_NUMBER:
        raise BadCrystalError(
            f"unknown element {SYMBOLS[number]} (Z = {number}) at {whose}: CHGNet knows Z = 1 to {MAX_ATOMIC_NUMBER}"
        )
    if symbol is not None and label is not None and symbol != label:
        note = note or _label_against(symbol, label, number, formula)
    return Species(number, note)


_LOOSE = "loose"  # a reading that only a formula can confirm


@lru_cache(4096)
def _numbers_of_type(symbol: str) -> tuple[tuple[int, ...], str]:
    """Lists the atomic numbers that a type symbol can mean, with a note."""
    match = _TYPE.fullmatch(symbol)
    if match is None:
        return _numbers_of_label(symbol)[0], _LOOSE
    mass, letters = match.groups()
    if letters.lower() in _NO_ATOM:
        return (), ""
    if letters in NUMBERS:
        if mass is not None:
            return (NUMBERS[letters],), f"isotope {mass}{letters} is read as {letters}"
        if letters in _ISOTOPES:
            return (1,), f"{_ISOTOPES[letters]} is read as hydrogen"
        return (NUMBERS[letters],), ""
    return _numbers_of_letters(letters)


@lru_cache(16384)
def _numbers_of_label(label: str) -> tuple[tuple[int, ...], str]:
    """Lists the atomic numbers that a label can mean, with a note."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return (), ""
    letters = match[1]
    if letters.lower() in _NO_ATOM or label.lower() in _NO_ATOM:
        return (), ""
    if letters == "T":  # tritium, or the tetrahedral site of a zeolite
        return (1,), _LOOSE
    if letters == "D":
        return (1,), "deuterium is read as hydrogen"
    if letters in NUMBERS:
        return (NUMBERS[letters],), ""
    # Letters that follow an element may belong to a name: Na(1)A is no doubt, OW1 is one.
    return _numbers_of_letters(letters)


def _numbers_of_letters(letters: str) -> tuple[tuple[int, ...], str]:
    """Lists the atomic numbers that letters other than a symbol can mean: `FE`, `fe`, `CA`, `OW`, `Cal`."""
    first, second = letters[:1].upper(), letters[1:2].lower()
    candidates = []
    if second and first + second in NUMBERS:
        candidates.append(NUMBERS[first + second])
    if first in NUMBERS:
        candidates.append(NUMBERS[first])
    candidates = list(dict.fromkeys(candidates))
    symbol = first + second
    # FE can only be iron, but CO and CA may be carbons.
    may_be_two = first in _NAMED_AFTER_OTHERS and second.upper() in _OTHERS
    if len(letters) == 2 and symbol in NUMBERS and not may_be_two:
        return (NUMBERS[symbol],), f"{letters!r} is read as {symbol}"
    if len(letters) == 1 and candidates:
        return tuple(candidates), f"{letters!r} is read as {SYMBOLS[candidates[0]]}"
    return tuple(candidates), _LOOSE


def _label_against(symbol: str, label: str, number: int, formula: set[int] | None) -> str:
    """Notes that a label names another element than the type symbol, which rules if the formula has it."""
    match = _LABEL.fullmatch(label)
    letters = match.group(1) if match else ""
    other = NUMBERS.get(letters)
    if other is None or other == number or letters in "BCDT":  # sites are so called whatever is there
        return ""
    if formula is None or number not in formula or other in formula:
        raise BadCrystalError(
            f"site {label}: its type symbol {symbol!r} is {SYMBOLS[number]}, its label says {letters}, and no formula "
            "of the file decides"
        )
    return f"sites called {letters} are {SYMBOLS[number]} by type symbol and formula"


_TOKEN = re.compile(r"\s*(?:([A-Z][a-z]?)|(\d+\.?\d*|\.\d+)|([(\[{])|([)\]}])|([,.*·•∙⋅;])|(n(?![a-z])))")
_CHARGE = re.compile(r"(?<=[\s)])(?:\d*[+-]|[+-]\d*)(?=[\s,;)\]]|$)")
_MARKUP = re.compile(r"\^[^^]*\^|~|['\"]")


@lru_cache(4096)
def read_formula(text: str) -> dict[int, float] | None:
    """Reads a formula as amounts by atomic number; None for a text that is none.

    Reads sums (`C2 H6 O`), groups (`Mg (O H)2`), parts with a factor in front (`2(Cl 1-), 0.5(H2 O)`,
    `CuSO4.5H2O`, `·` and `*` alike), charges set apart, and D and T as hydrogen.
    """
    text = _CHARGE.sub(" ", _MARKUP.sub("", text)).strip()
    stack: list[tuple[dict[int, float], float]] = []
    total: dict[int, float] = {}
    part: dict[int, float] = {}
    factor, at, last = 1.0, 0, None  # last: the amounts that a number behind them multiplies
    fresh = True  # at the begin of a part, where a number is its factor

    def add(into: dict[int, float], amounts: dict[int, float], times: float) -> None:
        for z, amount in amounts.items():
            into[z] = into.get(z, 0.0) + amount * times

    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        symbol, number, opened, closed, dot, polymer = match.groups()
        at = match.end()
        if number is not None and not fresh and last is None:
            return None
        if last is not None:
            add(part, last, float(number) if number is not None else 1.0)
            last = None
            if number is not None:
                continue
        if symbol is not None:
            if symbol not in NUMBERS:
                return None
            last, fresh = {NUMBERS[symbol]: 1.0}, False
        elif number is not None:
            factor, fresh = float(number), False
            if match.end() < len(text) and text[match.end()] in ")]},;":
                return None
        elif opened is not None:
            stack.append((part, factor))
            part, factor, fresh = {}, 1.0, True
        elif closed is not None:
            if not stack or not part:
                return None
            inner: dict[int, float] = {}
            add(inner, part, factor)
            part, factor = stack.pop()
            last, fresh = inner, False
        elif dot is not None:
            if stack:
                return None
            add(total, part, factor)
            part, factor, fresh = {}, 1.0, True
        elif polymer is not None and not part:
            return None
    if stack:
        return None
    if last is not None:
        add(part, last, 1.0)
    add(total, part, factor)
    total = {z: amount for z, amount in total.items() if amount > 0}
    return total or None


def read_formula_sum(text: str) -> list[dict[int, float]]:
    """Lists what a formula can mean: as it is spelled, and where all is upper case (`SI O2`) one element a word."""
    readings = []
    if (exact := read_formula(text)) is not None:
        readings.append(exact)
    words = [re.fullmatch(r"([A-Z]{1,2})(\d*\.?\d*)", word) for word in text.strip(" '\"").split()]
    if all(words) and any(len(word[1]) == 2 for word in words if word):
        amounts: dict[int, float] = {}
        for word in words:
            assert word is not None
            z = NUMBERS.get(word[1].capitalize())
            if z is None:
                return readings
            amounts[z] = amounts.get(z, 0.0) + float(word[2] or 1)
        readings.append(amounts)
    return readings


def format_amounts(amounts: dict[int, float]) -> str:
    """Writes a formula for messages: `Na4 Cl4`."""
    return " ".join(f"{SYMBOLS[z]}{'' if abs(n - 1) < 1e-9 else f'{n:.6g}'}" for z, n in amounts.items())
