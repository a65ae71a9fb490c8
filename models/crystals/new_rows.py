"""New crystals, or formulas, as a trained model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.crystals.compositions import parse_formulas
from data.crystals.convert import cell_formula
from data.crystals.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.crystals.graphs import convert, element_fractions, stack
from data.crystals.quality import check_crystal
from models.crystals.chgnet.network import cutoffs
from models.crystals.rows import CrystalRows
from models.crystals.trust import Trust, described
from models.model import Model

if TYPE_CHECKING:
    from pymatgen.core import Structure


def new_rows(
    model: Model,
    about: Mapping[str, str],
    trust: Trust | None,
    crystals: Sequence[Structure | Crystal | str],
    device: str,
) -> CrystalRows:
    """New crystals as a model reads them, with what its trust is judged by.

    Args:
        model: of the registry.
        about: facts that are kept with the trained model, `weights` among them where it has some.
        trust: that judges its predictions.
        crystals: structures, or for a model that reads compositions also formulas.
        device: to describe crystals on.

    Raises:
        BadCrystalError: one that cannot be predicted; the message names its position.
    """
    if not crystals:
        return CrystalRows(np.empty((0, 94), np.float32), np.empty(0, np.int32))
    if model.reads == "compositions":
        return _rows_of_compositions(crystals)
    rows = _rows_of_structures(crystals, cutoffs(about.get("weights", "0.3.0"))[0])
    return rows if trust is None else described(rows, trust.weights, device)


def _rows_of_structures(crystals: Sequence[Structure | Crystal | str], cutoff: float) -> CrystalRows:
    graphs = []
    for position, structure in enumerate(crystals):
        if isinstance(structure, str):
            raise BadCrystalError(f"structure {position}: {structure!r} is a formula; this model reads structures")
        try:
            crystal = structure if isinstance(structure, Crystal) else crystal_from_structure(structure)
            check_crystal(crystal)
            graphs.append(convert(crystal, cutoff))
        except BadCrystalError as problem:
            raise BadCrystalError(f"structure {position}: {problem}") from None
    together = stack(graphs)
    return CrystalRows(element_fractions(together), together.atoms_per_graph, together)


def _formula(crystal: Structure | Crystal | str) -> str:
    if isinstance(crystal, Crystal):
        return cell_formula(crystal)
    return crystal if isinstance(crystal, str) else crystal.composition.formula.replace(" ", "")


def _rows_of_compositions(crystals: Sequence[Structure | Crystal | str]) -> CrystalRows:
    compositions = parse_formulas([_formula(crystal) for crystal in crystals])
    for position, reason in enumerate(compositions.reasons):
        if reason is not None:
            raise BadCrystalError(f"composition {position}: {reason}")
    return CrystalRows(compositions.fractions, compositions.n_atoms)
