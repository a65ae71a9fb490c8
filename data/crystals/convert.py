"""Rows -> graphs, one chunk at a time: what each actor of `data/crystals/graph_cache.py` runs."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from math import gcd

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.elements import SYMBOLS
from data.crystals.graphs import Graph, convert
from data.crystals.quality import check_crystal
from data.crystals.rows import RawChunk


def convert_chunk(
    chunk: RawChunk, cutoff_angstrom: float
) -> tuple[list[str | None], list[Graph | str], list[tuple[str, ...]]]:
    """Parse, check and convert rows one by one.

    Returns:
        For each row its reduced formula, its graph and the notes of its reader; or None, the reason why it was
        rejected, and no notes.
    """
    formulas: list[str | None] = []
    graphs: list[Graph | str] = []
    notes: list[tuple[str, ...]] = []
    for row in chunk.read():
        try:
            if isinstance(row, BadCrystalError):
                raise row
            check_crystal(row.crystal)
            graphs.append(convert(row.crystal, cutoff_angstrom))
            formulas.append(reduced_formula(row.crystal))
            notes.append(row.notes)
        except BadCrystalError as problem:
            graphs.append(str(problem))
            formulas.append(None)
            notes.append(())
    return formulas, graphs, notes


def cell_formula(crystal: Crystal) -> str:
    """Formula of the whole cell, such as Fe4O6."""
    counts = sorted(Counter(crystal.numbers.tolist()).items())
    return "".join(f"{SYMBOLS[number]}{count}" for number, count in counts)


def reduced_formula(crystal: Crystal) -> str:
    """Formula in pymatgen's order with the greatest common divisor of the amounts taken out."""
    counts = sorted(Counter(crystal.numbers.tolist()).items())
    elements, amounts = zip(*counts, strict=True)
    divisor = gcd(*amounts)
    return _formula(elements, tuple(amount // divisor for amount in amounts))


@cache
def _formula(elements: tuple[int, ...], amounts: tuple[int, ...]) -> str:
    from pymatgen.core import Composition, Element

    composition = Composition({Element.from_Z(z): n for z, n in zip(elements, amounts, strict=True)})
    with warnings.catch_warnings():
        # Elements are put in the order of electronegativity, and a noble gas without one gets a warning.
        warnings.simplefilter("ignore", UserWarning)
        return composition.reduced_formula
