"""Tells the elements of a formula, and the chemical families of a compound of them."""

from __future__ import annotations

import re

from data.crystals.elements import ATOMIC_NUMBERS

# Nonmetals and metalloids by falling electronegativity (Pauling): the first one of a formula names the compound.
_ANIONS = {
    "F": "fluorides", "O": "oxides", "Cl": "chlorides", "N": "nitrides", "Br": "bromides", "I": "iodides",
    "S": "sulfides", "Se": "selenides", "C": "carbides", "H": "hydrides", "P": "phosphides", "As": "arsenides",
    "Te": "tellurides", "Sb": "antimonides", "B": "borides", "Bi": "bismuthides", "Si": "silicides",
    "Ge": "germanides",
}  # fmt: skip
_WIDER = {
    "halides": {"fluorides", "chlorides", "bromides", "iodides"},
    "chalcogenides": {"oxides", "sulfides", "selenides", "tellurides"},
    "pnictides": {"nitrides", "phosphides", "arsenides", "antimonides", "bismuthides"},
}
NONMETALS = set("H He B C N O F Ne Si P S Cl Ar Ge As Se Br Kr Sb Te I Xe At Rn".split())
FAMILIES_NOTE = (
    "A compound is named by its most electronegative nonmetal or metalloid, or bismuth: a sulfate is an oxide. "
    "Halides, chalcogenides (oxides included) and pnictides are those together; compounds with a lanthanide (La to Lu) "
    "or actinide count there too; intermetallics are of two or more metals and nothing else."
)


def elements_of(formula: str) -> frozenset[str]:
    """Symbols of the elements in a formula, such as `Ca(NO3)2`."""
    symbols = ["H" if symbol in ("D", "T") else symbol for symbol in re.findall(r"[A-Z][a-z]?", formula)]
    return frozenset(symbol for symbol in symbols if symbol in ATOMIC_NUMBERS)


def families(elements: frozenset[str]) -> list[str]:
    """Chemical families of a compound of these elements; see `FAMILIES_NOTE`."""
    numbers = {ATOMIC_NUMBERS[symbol] for symbol in elements}
    names = [name for name, first, last in (("lanthanides", 57, 71), ("actinides", 89, 103))
             if any(first <= number <= last for number in numbers)]  # fmt: skip
    if len(elements) == 1:
        return ["elements", *names]
    anion = next((name for symbol, name in _ANIONS.items() if symbol in elements), None)
    if anion:
        names += [anion, *(wider for wider, members in _WIDER.items() if anion in members)]
    if elements and not elements & NONMETALS:
        names.append("intermetallics")
    return names
