"""Reads a chemical formula as amounts of its elements; what has two meanings is refused, never guessed.

Called by `data/crystals/compositions.py` for the rows of a table. The formulas of CIF files, which have charges and
parts of their own, are read by `data/crystals/formats/cif/species.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from data.crystals.elements import HEAVIER, SYMBOL_NUMBERS

_ELEMENTS = frozenset((*SYMBOL_NUMBERS, *HEAVIER))
_ISOTOPES = ("D", "T")
# Words for a missing or infinite number that would be read as sodium mononitride and its like.
_WORDS = {"nan", "n/a", "<na>", "none", "null", "inf", "-inf", "infinity", "unknown"}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_TOKEN = re.compile(rf"([A-Z][a-z]?)|({_NUMBER})|([(\[{{])|([)\]}}])")
_SIMPLE = re.compile(r"(?:[A-Z][a-z]?(?:[1-9][0-9]*(?:\.[0-9]+)?|0\.[0-9]+)? ?)+")
_SIMPLE_PARTS = re.compile(r"([A-Z][a-z]?)([0-9.]*)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}

_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile(
    r"[₀-₉]+(?:\.[₀-₉]+)?"  # Fe₂O₃
    rf"|<sub>({_NUMBER})</sub>"  # Fe<sub>2</sub>O<sub>3</sub>
    rf"|\$_(?:\{{({_NUMBER})\}}|([0-9]))\$"  # Fe$_2$O$_{{3}}$
    rf"|_(?:\{{({_NUMBER})\}}|({_NUMBER}))"  # Fe_2O_{3}
)
_PHASE = re.compile(r"[\u0391-\u03c9]'?-")  # a Greek letter, as before -Fe2O3
_SEPARATORS = re.compile(r"\s*[·•⋅∙・･*\u2217]\s*|\s+\.\s*|\.\s+")  # the last two: a dot with a space beside it
_WATER_AFTER_DOT = re.compile(r"(?<=[A-Za-z0-9)\]}])\.(?=(?:[0-9]+(?:\.[0-9]+)?)?\s*[HD]2O$)")
# Molecules that are written behind a dot with their number. Unlike of water, nothing is assumed of them.
_MOLECULE_AFTER_DOT = re.compile(
    r"(?:[1-9][0-9]*|[)\]}])\.[0-9]+\(?(?:NH3|HCl|HBr|HF|HNO3|H2SO4|H2O2|CO2|SO2|SO3|SiO2|Al2O3|P2O5|B2O3"
    r"|CH3OH|C2H5OH|CH4O|C2H6O)(?=$|[.)])"
)
_DECIMAL_BELOW_1 = re.compile(r"(?<![0-9.])0\.[0-9]+")
_ZERO_FOR_O = re.compile(r"[A-Z][a-z]?[2-4]0[345]")
_MAX_LENGTH = 1000


class FormulaError(ValueError):
    """A text is no formula, or could be two; the message says why and what is expected."""


def element_amounts(text: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """Read a formula such as Fe2O3, Li0.5CoO2, Ca3(PO4)2, K4[Fe(CN)6] or CuSO4·5H2O.

    Spaces between elements are no part of it (`Fe2 O3`, as in a CIF). A dot before water is a hydrate's: CuSO4.5H2O
    is CuSO4 and five H2O. Charges, unknowns (`2-x`), phases by words, percentages by weight, doping and mixtures are
    refused.

    Args:
        text: one formula.

    Returns:
        Amounts by symbol (H to Og, in the order of their first appearance; deuterium and tritium count as H), each
        above 0 and finite; and sentences on what was read in a way that the user should know.

    Raises:
        FormulaError: `text` is no formula, or could be read in two ways.
    """
    formula = text.strip()
    if len(formula) <= _MAX_LENGTH and _SIMPLE.fullmatch(formula):
        amounts = _simple_amounts(formula)
        if amounts is not None:
            return amounts, ()
    return _Reading(formula).amounts()


def _simple_amounts(formula: str) -> dict[str, float] | None:
    """Amounts of a formula without brackets, spaces and doubts; None where there are any."""
    if _is_word(formula) or _ZERO_FOR_O.fullmatch(formula) or _dot_has_two_meanings(formula):
        return None
    amounts: dict[str, float] = {}
    for symbol, number in _SIMPLE_PARTS.findall(formula):
        if symbol not in _ELEMENTS:
            return None
        amounts[symbol] = amounts.get(symbol, 0.0) + (float(number) if number else 1.0)
    return amounts if all(0 < amount < float("inf") for amount in amounts.values()) else None


def _is_word(text: str) -> bool:
    """Whether a cell holds a word for a missing or infinite number; InF, so written, is indium fluoride."""
    return text.lower() in _WORDS and text != "InF"


def _dot_has_two_meanings(formula: str) -> bool:
    if "." not in formula:
        return False
    return bool(_WATER_AFTER_DOT.search(formula) or _MOLECULE_AFTER_DOT.search(formula))


class _Reading:
    """One formula on its way from text to amounts, with the notes that come up."""

    def __init__(self, formula: str) -> None:
        self.text = formula
        self.notes: list[str] = []

    def error(self, reason: str) -> FormulaError:
        excerpt = self.text if len(self.text) <= 100 else f"{self.text[:100]}..."
        return FormulaError(f"{excerpt!r} is not a formula: {reason}; expected one such as Fe2O3 or Li0.5CoO2")

    def note(self, kind: str, parts: Sequence[str] = ()) -> None:
        self.notes.append(f"{kind}: {self.text}" + (f" is {' and '.join(parts)}" if parts else ""))

    def amounts(self) -> tuple[dict[str, float], tuple[str, ...]]:
        if not self.text:
            raise FormulaError("the formula is missing")
        if _is_word(self.text):
            raise FormulaError(f"the formula is missing: the cell holds the word {self.text!r}")
        if len(self.text) > _MAX_LENGTH:
            raise self.error(f"it has {len(self.text)} characters, more than {_MAX_LENGTH}")
        parts = [self._without_spaces(part) for part in self._parts(self._plain(self.text))]
        amounts: dict[str, float] = {}
        for part in parts:
            for symbol, amount in self._part_amounts(part).items():
                amounts[symbol] = amounts.get(symbol, 0.0) + amount
        for symbol in _ISOTOPES:
            if symbol in amounts:
                amounts["H"] = amounts.get("H", 0.0) + amounts.pop(symbol)
                self.note("deuterium and tritium are read as hydrogen")
        if 0 in amounts.values():
            amounts = {symbol: amount for symbol, amount in amounts.items() if amount}
            self.note("elements with the amount 0 are left out")
        total = sum(amounts.values())
        if not 0 < total < float("inf"):
            raise self.error(f"it has {total:g} atoms")
        return amounts, tuple(self.notes)

    def _plain(self, formula: str) -> str:
        """Takes off subscripts and the Greek letter of a phase."""
        if phase := _PHASE.match(formula):
            formula = formula[phase.end() :]
            self.note("a Greek letter before a formula names a phase and is left out")

        def digits(match: re.Match[str]) -> str:
            before, after = formula[: match.start()][-1:], formula[match.end() :][:1]
            if before in tuple("0123456789.") or after in tuple("0123456789."):
                raise self.error(f"a subscript stands beside another number at {formula[match.start() :]!r}")
            return next((group for group in match.groups() if group), match[0].translate(_SUBSCRIPTS))

        plain = _SUBSCRIPT.sub(digits, formula)
        if plain != formula:
            self.note("subscripts are read as amounts")
        return plain

    def _parts(self, formula: str) -> list[str]:
        """Splits a hydrate, or a compound of several parts, at its dots."""
        parts = _SEPARATORS.split(formula)
        if len(parts) > 1:
            self.note("a dot or star joins the parts of a compound", parts)
        elif "." in formula:
            parts = self._parts_at_full_stops(formula)
        if not all(parts):
            raise self.error("nothing stands on one side of a dot")
        return parts

    def _parts_at_full_stops(self, formula: str) -> list[str]:
        """Splits at full stops, which may be decimal points too."""
        dry, *water = _WATER_AFTER_DOT.split(formula)
        if water:
            # In CaSO40.5H2O, Al2O3.2SiO2.2H2O and Na0.33CoO2.1.3H2O nobody can tell which digits belong to what.
            if len(water) > 1 or re.search(r"0$", dry) or "." in _DECIMAL_BELOW_1.sub("", dry):
                raise self.error("which of its dots are decimal points is not clear; write · before the water")
            self.note("a dot before water is that of a hydrate", [dry, *water])
            return [dry, *water]
        parts = re.split(r"\.(?=[A-Z(\[{])", formula)
        dotted = any("." in _DECIMAL_BELOW_1.sub("", part) for part in parts)
        if dotted and (len(parts) > 1 or formula[0].isdigit() or _MOLECULE_AFTER_DOT.search(formula)):
            raise self.error("a dot in it may be a decimal point or stand between two parts; write · between parts")
        if match := re.search(r"[A-Za-z)\]}]\.[0-9]", formula):
            raise self.error(
                f"{match[0]!r} may be an amount or begin another part; write 0{match[0][1:]} for an amount and "
                f"·{match[0][2:]} for a part"
            )
        if len(parts) > 1:
            self.note("a dot or star joins the parts of a compound", parts)
        return parts

    def _without_spaces(self, part: str) -> str:
        tokens = part.split()
        if len(tokens) == 1:
            return part.strip()
        alone = all(re.fullmatch(rf"[A-Z][a-z]?|{_NUMBER}", token) for token in tokens)
        for before, token in pairwise(tokens):
            if token[0] in ".0123456789" and not (alone and before[-1].isalpha()):
                raise self.error(f"a space before {token!r} may end an amount or a part; write · between parts")
            if token[0] in _CLOSING and token[-1] in _CLOSING.values():
                raise self.error(f"{token!r} behind a space may be the name of a phase")
        return "".join(tokens)

    def _part_amounts(self, part: str) -> dict[str, float]:
        """Amounts of one part, such as 5H2O."""
        tokens = self._tokens(part)
        factor = 1.0
        if len(tokens) > 1 and isinstance(tokens[0], float):
            factor = tokens.pop(0)  # type: ignore[assignment]
        levels: list[tuple[str, dict[str, float]]] = [("", {})]
        k = 0
        while k < len(tokens):
            token = tokens[k]
            number = tokens[k + 1] if k + 1 < len(tokens) else None
            amount = number if isinstance(number, float) else 1.0
            if isinstance(token, float):
                raise self.error(f"the number {token:g} follows no element")
            if token in _CLOSING:
                levels.append((token, {}))
                k += 1
                continue
            if token in _CLOSING.values():
                opening, inner = levels.pop()
                if _CLOSING.get(opening) != token:
                    raise self.error(f"its brackets do not match at {token!r}")
                if not inner:
                    raise self.error("a pair of brackets is empty")
                bare = tokens[k - 2] == opening
                if bare and number is None and k > 2:
                    raise self.error(f"({tokens[k - 1]}) at its end may be the name of a phase")
            else:
                if token not in _ELEMENTS and token not in _ISOTOPES:
                    raise self.error(self._unknown(token))
                inner = {token: 1.0}
            outer = levels[-1][1]
            for symbol, inside in inner.items():
                outer[symbol] = outer.get(symbol, 0.0) + inside * amount
            k += 2 if isinstance(number, float) else 1
        if len(levels) > 1:
            raise self.error(f"a bracket {levels[-1][0]!r} is not closed")
        amounts = levels[0][1]
        if not amounts:
            raise self.error("it names no element")
        return amounts if factor == 1.0 else {symbol: factor * amount for symbol, amount in amounts.items()}

    def _tokens(self, part: str) -> list[str | float]:
        """Symbols, brackets, and amounts as numbers."""
        tokens: list[str | float] = []
        position = 0
        while position < len(part):
            match = _TOKEN.match(part, position)
            if match is None:
                hint = " (symbols begin with a capital)" if part[position].islower() and not tokens else ""
                hint = " (the decimal point is a dot)" if part[position] == "," else hint
                raise self.error(f"it cannot be read from {part[position : position + 20]!r} on{hint}")
            if match[2] is None:
                tokens.append(match[0])
            else:
                tokens.append(self._number(match[0]))
            position = match.end()
        if _ZERO_FOR_O.fullmatch(part):
            raise self.error(f"{part} may have a zero where the letter O is meant")
        return tokens

    def _number(self, number: str) -> float:
        if re.match(r"0[0-9]|0$", number):
            raise self.error(f"an amount is {number}: perhaps the letter O is meant; an amount of nothing is 0.0")
        return float(number)

    def _unknown(self, symbol: str) -> str:
        if self.text.isupper() or self.text.islower():
            return f"there is no element {symbol}; symbols are written as in Fe, with one capital"
        return f"there is no element {symbol}"
