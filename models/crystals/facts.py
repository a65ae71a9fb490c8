"""What is known of crystals beside their predictions. What each function and constant is for: `FamilyFacts`.

Elements and chemical families come from the formula; atoms, symmetry and pictures from the structures. Pages of
finished sweeps import this module, so that it imports neither torch nor Ray.
"""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from html import escape
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.progress import track

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.rows import RawChunk, Rows
from models.crystals.cell_picture import cell_picture
from models.crystals.chemical_families import FAMILIES_NOTE, elements_of, families
from models.crystals.seen import read_seen as read_seen
from models.family import Column, FactsError

if TYPE_CHECKING:
    import plotly.graph_objects as go

OPENED = "structure"
GROUP_HEAD = "formula"
PRETRAINED = "a CHGNet that was pretrained on Materials Project data"
TRUST = (
    "the crystal's elements or environments, or the way from the untrained baseline's prediction, are more than 3 "
    "times what is usual on validation"
)
SYMPREC = 0.1  # Angstrom: that of the Materials Project's own space groups, for relaxed structures
_ALONE = 4000  # crystals up to which this process is enough; others take seconds to start
_CHUNK = 1000  # rows that a process gets at a time
_SYSTEMS = {2: "triclinic", 15: "monoclinic", 74: "orthorhombic", 142: "tetragonal", 167: "trigonal", 194: "hexagonal",
            230: "cubic"}  # fmt: skip
_MOST_ELEMENTS = 94
_REFERENCE = (
    "@article{deng2023chgnet, title={CHGNet as a pretrained universal neural network potential for charge-informed "
    "atomistic modelling}, author={Deng, Bowen and Zhong, Peichen and Jun, KyuJung and Riebesell, Janosh and Han, "
    "Kevin and Bartel, Christopher J. and Ceder, Gerbrand}, journal={Nature Machine Intelligence}, volume={5}, "
    "pages={1031--1041}, year={2023}}"
)
_BUILT_ON_CHGNET = ("chgnet", "gaussian_process")


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _periodic_table(means: pd.DataFrame, axis: str) -> go.Figure:
    """Mean error of the crystals that hold an element, on the periodic table."""
    import numpy as np
    from pymatviz import ptable_heatmap

    figure = ptable_heatmap(
        means["error"],
        colorscale="viridis",
        fmt=lambda value: f"{value:.2g}" if np.isfinite(value) else "",
        nan_color="#F3F3F3",
        hover_data={str(name): _counted(n, "crystal") for name, n in means["n"].items()},
        colorbar={
            "title": axis,
            "tickformat": ".2~g",
            "orientation": "h",
            "thickness": 12,
            "len": 0.42,
            "x": 0.38,
            "y": 0.76,
        },
        gap=3,
        font_size=13,
    )
    return figure.update_layout(height=500, width=900)


COLUMNS = (
    Column(
        "elements",
        "category",
        title="By element",
        phrase="compounds with {}",
        several="elements",
        head="element",
        share="contain {}",
        note="The mean of the crystals that hold the element; how many they are shows on touching it, and in the "
        "table.",
        figure=_periodic_table,
    ),
    Column("families", "category", title="By chemical family", several="families", note=FAMILIES_NOTE),
    Column(
        "n_elements",
        "number",
        title="By number of elements",
        phrase="compounds of {}",
        several="numbers of elements",
        ranges=tuple((n, _counted(n, "element")) for n in range(_MOST_ELEMENTS + 1)),
    ),
    Column(
        "n_atoms",
        "number",
        title="By number of atoms",
        phrase="cells of {} atoms",
        several="sizes",
        list_head="atoms",
        opened=True,
        ranges=(
            *((2, "1 or 2"), (4, "3 or 4"), (6, "5 or 6"), (9, "7 to 9"), (12, "10 to 12"), (16, "13 to 16")),
            *((24, "17 to 24"), (40, "25 to 40"), (80, "41 to 80"), (float("inf"), "over 80")),
        ),
    ),
    Column(
        "symmetry",
        "category",
        title="By crystal system and space group",
        phrase="{} crystals",
        several="crystal systems",
        opened=True,
        note=f"Space groups by spglib at a tolerance of {SYMPREC} Angstrom.",
    ),
    Column(
        "space_group",
        "category",
        several="space groups",
        head="space group",
        list_head="space group",
        within="symmetry",
        opened=True,
    ),
    Column(
        "cell",
        "picture",
        list_head="cell",
        opened=True,
        note="Cells are seen almost along a, c upwards; colours are Jmol's, and symbols name the elements.",
    ),
)


def group_html(group: str) -> str:
    """A chemical formula with its amounts set low."""
    return re.sub(r"(?<=[A-Za-z)\]])(\d+(?:\.\d+)?)", r"<sub>\1</sub>", escape(group))


def facts_of_groups(groups: Sequence[str]) -> dict[str, list[Any]]:
    """What the formulas tell."""
    elements = [elements_of(formula) for formula in groups]
    return {
        "elements": [sorted(symbols) for symbols in elements],
        "families": [families(symbols) for symbols in elements],
        "n_elements": [len(symbols) for symbols in elements],
    }


def facts_of_rows(rows: Rows) -> pd.DataFrame:
    """Number of atoms and symmetry of every row that can be read.

    Space groups are spglib's at a tolerance of `SYMPREC`; progress is shown on the terminal where it takes long.

    Returns:
        Indexed by id: n_atoms, space_group (`Fm-3m (225)`) and symmetry, which is the crystal system; missing where
        spglib finds none.

    Raises:
        FactsError: the rows are formulas.
    """
    if rows.format == "composition":
        raise FactsError("The task has compositions only, so that nothing is known of structures")
    starts = range(0, len(rows), _CHUNK)
    chunks = (rows.chunk(start, start + _CHUNK) for start in starts)
    if len(rows) <= _ALONE:
        by_chunk = [_facts_of(chunk) for chunk in chunks]
    else:
        # Not forked: threads of libraries that are loaded here would be lost half-way.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            running = pool.map(_facts_of, chunks)
            by_chunk = list(track(running, "symmetry of crystals", len(starts), console=Console(stderr=True)))
    table = pd.DataFrame(chain.from_iterable(by_chunk), columns=["id", "n_atoms", "space_group", "symmetry"])
    return table.drop_duplicates("id").set_index("id")


def _facts_of(chunk: RawChunk) -> list[tuple[str, int, str | None, str | None]]:
    import spglib

    facts: list[tuple[str, int, str | None, str | None]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*OLD_ERROR_HANDLING", DeprecationWarning)  # spglib 2's, on every call
        for name, crystal in zip(chunk.ids, chunk.crystals(), strict=True):
            if isinstance(crystal, BadCrystalError):
                continue
            cell: Any = (crystal.lattice, crystal.frac_coords, crystal.numbers)
            symmetry = spglib.get_symmetry_dataset(cell, SYMPREC)
            space_group, system = None, None
            if symmetry is not None:
                space_group = f"{symmetry.international} ({symmetry.number})"
                system = crystal_system(symmetry.number)
            facts.append((name, len(crystal.numbers), space_group, system))
    return facts


def crystal_system(space_group: int) -> str:
    """Crystal system of a space group's number."""
    return next(name for last, name in _SYSTEMS.items() if space_group <= last)


def pictures(rows: Rows, ids: Iterable[str]) -> dict[str, str]:
    """Unit cells as SVG."""
    return {name: cell_picture(crystal) for name, crystal in crystals_of(rows, ids).items()}


def crystals_of(rows: Rows, ids: Iterable[str]) -> dict[str, Crystal]:
    """The crystals of some ids, as far as they can be read."""
    names = set(ids)
    few = rows.select([k for k, name in enumerate(rows.ids) if name in names], rows.sha256)
    crystals = zip(few.ids, few.chunk(0, len(few)).crystals(), strict=True)
    return {name: crystal for name, crystal in crystals if not isinstance(crystal, BadCrystalError)}


def training_note(configs: Sequence[Mapping[str, Any]]) -> str:
    """How deep networks were trained."""
    depths = sorted({str(config["freeze_depth"]) for config in configs if "freeze_depth" in config})
    return f"with freeze depth {', '.join(depths)}" if depths else ""


def references(model: str, notes: Sequence[str]) -> list[str]:
    """CHGNet's article, where a model reads its features or starts from its weights."""
    return [_REFERENCE] if model in _BUILT_ON_CHGNET or any("CHGNet" in note for note in notes) else []
