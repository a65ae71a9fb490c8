"""Reads element symbols as atomic numbers, and says what a symbol is that is no element."""

from __future__ import annotations

import re

MAX_ATOMIC_NUMBER = 94  # CHGNet embeds H (1) to Pu (94)

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr "
    "Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta "
    "W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu"
)
# Elements that no model here knows.
HEAVIER = tuple("Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og".split())
# What programs write where there is no atom, or an atom of no stated element.
_NO_ELEMENTS = {
    "va": "a vacancy",
    "vac": "a vacancy",
    "vacancy": "a vacancy",
    "x": "a dummy atom or vacancy",
    "q": "a dummy atom",
    "m": "a metal that is not named",
    "ln": "a lanthanide that is not named",
    "du": "a dummy atom",
    "xx": "a dummy atom",
}

SYMBOL_NUMBERS = {symbol: z for z, symbol in enumerate(_SYMBOLS.split(), start=1)}
SYMBOLS = dict(enumerate((*SYMBOL_NUMBERS, *HEAVIER), start=1))
# Deuterium and tritium are hydrogen here, as they are for pymatgen.
ATOMIC_NUMBERS = SYMBOL_NUMBERS | {"D": 1, "T": 1}

HYDROGEN_NOTE = "deuterium and tritium are read as hydrogen"


class SymbolError(ValueError):
    """A symbol is no element that a model could know; the message says what it is instead."""


def read_symbol(symbol: str) -> tuple[int, str]:
    """Reads a symbol as an atomic number.

    Args:
        symbol: as written, without spaces, charge or number of a site: `Fe`, `D`, `13C`.

    Returns:
        The atomic number, and a note on what was read as something else, or "".

    Raises:
        SymbolError: a vacancy, a dummy, an element beyond Z = 94, or no element at all.
    """
    if number := SYMBOL_NUMBERS.get(symbol):
        return number, ""
    if symbol in ("D", "T"):
        return 1, HYDROGEN_NOTE
    isotope = re.fullmatch(r"\d{1,3}([A-Z][a-z]?)", symbol)
    if isotope and (number := SYMBOL_NUMBERS.get(isotope[1])):
        return number, f"isotopes are read as their element: {symbol} as {isotope[1]}"
    bare = re.sub(r"[\d+-]+$", "", symbol)
    if kind := _NO_ELEMENTS.get(bare.lower()):
        raise SymbolError(f"{symbol!r} is no element but {kind}: leave out what is no atom, and name every atom")
    if bare in HEAVIER:
        raise SymbolError(f"unknown element {symbol}: CHGNet knows Z = 1 to {MAX_ATOMIC_NUMBER}, H to Pu")
    capitalised = symbol.capitalize()
    hint = f" (write {capitalised} for it, if that is meant)" if capitalised in SYMBOL_NUMBERS else ""
    raise SymbolError(f"{symbol!r} is no element{hint}: expected one of H to Pu, Z = 1 to {MAX_ATOMIC_NUMBER}")
