"""Rows of formulas -> fractions of the elements: what a model of compositions reads.

In the flow it stands where graphs stand for structures.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core.composition import Composition, reduce_formula

from data.crystals.elements import ATOMIC_NUMBERS, MAX_ATOMIC_NUMBER
from data.crystals.formulas import FormulaError, element_amounts
from data.crystals.rows import Rows
from data.task import TaskError

_STEP = 1e-8  # amounts are told apart to this, pymatgen's own tolerance
_MAX_ATOMS = 1e6  # no formula means more


@dataclass(frozen=True, eq=False)
class Compositions:
    """Compositions of the rows of a task; row k of every field is row k of the task.

    Attributes:
        fractions: float32, shape (n_rows, 94), atomic fraction of H (column 0) to Pu; each row sums to 1,
            a rejected one is zeros.
        n_atoms: int32, shape (n_rows,), atoms in the formula as written, rounded and at least 1 (1 for
            Fe0.5Ni0.5); 0 for a rejected row.
        formulas: reduced formula, in pymatgen's order with whole amounts (FeNi for Fe0.5Ni0.5), the same
            text for the same composition; None for a rejected row.
        reasons: why a row was rejected, or None.
        notes: of each row, what was read otherwise than it is written (see `ReadCrystal`); mostly ().
    """

    fractions: np.ndarray
    n_atoms: np.ndarray
    formulas: list[str | None]
    reasons: list[str | None]
    notes: list[tuple[str, ...]]


def read_compositions(rows: Rows) -> Compositions:
    """Parse the formulas of a task.

    Raises:
        TaskError: the rows are structures.
    """
    if rows.format != "composition":
        raise TaskError(f"the rows are structures ({rows.format}); expected a task with compositions")
    return parse_formulas([payload.decode() for payload in rows.chunk(0, len(rows)).payloads])


def parse_formulas(texts: Sequence[str]) -> Compositions:
    """Parse formulas such as Fe2O3 or Li0.5CoO2; see `data.crystals.formulas.element_amounts` for what is read.

    In a table that is written in capitals throughout (FE2O3), SIO2 could be SiO2 or of S, I and O: such formulas
    are rejected.
    """
    with warnings.catch_warnings():
        # Elements are put in the order of electronegativity, and a noble gas without one gets a warning.
        warnings.simplefilter("ignore", UserWarning)
        parsed = {text: _parse(text) for text in dict.fromkeys(texts)}
    _reject_capitals(parsed)
    compositions = Compositions(
        fractions=np.zeros((len(texts), MAX_ATOMIC_NUMBER), dtype=np.float32),
        n_atoms=np.zeros(len(texts), dtype=np.int32),
        formulas=[None] * len(texts),
        reasons=[None] * len(texts),
        notes=[()] * len(texts),
    )
    for row, text in enumerate(texts):
        outcome = parsed[text]
        if isinstance(outcome, FormulaError):
            compositions.reasons[row] = str(outcome)
            continue
        amounts, compositions.formulas[row], compositions.notes[row] = outcome
        total = sum(amounts.values())
        compositions.n_atoms[row] = max(1, round(total))
        for number, amount in amounts.items():
            compositions.fractions[row, number - 1] = amount / total
    return compositions


_Parsed = tuple[dict[int, float], str, tuple[str, ...]]  # amounts by atomic number, reduced formula, notes


def _parse(text: str) -> _Parsed | FormulaError:
    try:
        symbols, notes = element_amounts(text)
    except FormulaError as error:
        return error
    if unknown := [symbol for symbol in symbols if symbol not in ATOMIC_NUMBERS]:
        return FormulaError(
            f"{text!r} is not a formula of the elements H to Pu (Z = 1 to {MAX_ATOMIC_NUMBER}): "
            f"it names {', '.join(unknown)}"
        )
    n_atoms = sum(symbols.values())
    if n_atoms > _MAX_ATOMS:
        return FormulaError(f"{text!r} has {n_atoms:.10g} atoms; at most {_MAX_ATOMS:.0f} are read")
    if min(symbols.values()) < _STEP / 2:
        return FormulaError(f"{text!r} has an amount of {min(symbols.values()):g}; amounts from {_STEP:g} on are read")
    # As `Composition.reduced_formula` does, in half its time and for amounts that are not whole too.
    formula, _ = reduce_formula({symbol: round(amount / _STEP) for symbol, amount in symbols.items()})
    amounts = {ATOMIC_NUMBERS[symbol]: amount for symbol, amount in symbols.items()}
    return amounts, Composition.special_formulas.get(formula, formula), notes


def _reject_capitals(parsed: dict[str, _Parsed | FormulaError]) -> None:
    """Reject what could be read otherwise in a table that has no small letter and some formulas that need them."""
    if any(letter.islower() for text in parsed for letter in text):
        return
    needing = [text for text, outcome in parsed.items() if isinstance(outcome, FormulaError) and _capitalised(text)]
    for text, outcome in parsed.items():
        if needing and not isinstance(outcome, FormulaError) and (other := _capitalised(text)):
            parsed[text] = FormulaError(
                f"{text!r} may be {other}: no formula of the table has a small letter, and {needing[0]!r} needs some; "
                "symbols are written as in Fe, with one capital"
            )


def _capitalised(text: str) -> str | None:
    """A formula in capitals with two of them taken as one element's symbol; None where that is no formula."""

    def symbol(match: re.Match[str]) -> str:
        pair = match[0].capitalize()
        return pair if pair in ATOMIC_NUMBERS else match[0]

    other = re.sub(r"[A-Z]{2}", symbol, text)
    if other == text or isinstance(_parse(other), FormulaError):
        return None
    return other
