"""What is measured on, and how: sets of structures, and pairs of measurements that take turns."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from pymatgen.core import Structure

from benchmarks.stock import faster_converter
from data.crystals.crystal import Crystal, crystal_from_structure
from data.crystals.graphs import Graphs, convert, stack
from data.crystals.task_table import DEMO
from data.tasks import open_task
from models.crystals.chgnet.network import cutoffs

SHARED_FILE = Path(__file__).parents[2] / "shared" / "data" / "mp_e_form_subset.json.gz"
ATOM_CUTOFF, BOND_CUTOFF = cutoffs("0.3.0")
DISPLACEMENT_ANGSTROM = 0.05
LARGE_CELLS = 200  # how many of the cells are enlarged
UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}  # of times, in seconds; any other unit is not a time


class BenchmarkError(RuntimeError):
    """Both sides did not compute the same, so that their times cannot be compared."""


@dataclass(frozen=True, eq=False)
class StructureSet:
    """Structures, and the graphs that each side makes of them, made when they are first asked for.

    Attributes:
        name: one letter.
        description: of what they are.
        structures: as pymatgen has them.
        labels: formation energy of the cell that each was made of, eV/atom, float64, shape (n,).
        converter: stock's.
        folder: for files of the measurements.
        device: on which both sides compute what a network does.
    """

    name: str
    description: str
    structures: list[Structure]
    labels: np.ndarray
    converter: CrystalGraphConverter
    folder: Path
    device: torch.device
    _parts: dict[int, StructureSet] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.structures)

    @cached_property
    def crystals(self) -> list[Crystal]:
        """Flat arrays."""
        return [crystal_from_structure(structure) for structure in self.structures]

    @cached_property
    def texts(self) -> list[bytes]:
        """JSON of each structure, as it is in a Matbench file."""
        return [json.dumps(structure.as_dict()).encode() for structure in self.structures]

    @cached_property
    def graphs(self) -> Graphs:
        """Ours."""
        return stack([convert(crystal, ATOM_CUTOFF) for crystal in self.crystals])

    @cached_property
    def stock_graphs(self) -> list[CrystalGraph]:
        """Stock chgnet's."""
        return [self.converter(structure) for structure in self.structures]

    def part(self, most: int) -> StructureSet:
        """At most so many of the structures, spread evenly over the set."""
        if most >= len(self):
            return self
        if most not in self._parts:
            which = np.linspace(0, len(self) - 1, most).astype(int)
            structures = [self.structures[k] for k in which]
            self._parts[most] = StructureSet(
                self.name,
                self.description,
                structures,
                self.labels[which],
                self.converter,
                self.folder,
                self.device,
            )
        return self._parts[most]


def structure_sets(
    most: int | None, folder: Path, device: torch.device
) -> tuple[dict[str, StructureSet], dict[str, float]]:
    """The three sets by name, and microseconds a structure of each of stock's two conversion algorithms.

    Args:
        most: at most so many structures in each set; None for all.
        folder: for files of the measurements.
        device: for the networks.
    """
    real = SHARED_FILE.exists()
    _, rows = open_task(str(SHARED_FILE) if real else DEMO.name, download_dir=SHARED_FILE.parent)
    cells, kept = [], []
    for k, crystal in enumerate(rows.chunk(0, len(rows)).crystals()):
        # Stock refuses atoms without a neighbour, for which we raise the cutoff.
        if isinstance(crystal, Crystal) and convert(crystal, ATOM_CUTOFF).cutoff_angstrom == ATOM_CUTOFF:
            cells.append(Structure(crystal.lattice, crystal.numbers, crystal.frac_coords))
            kept.append(k)
    labels = rows.targets[kept]
    converter, algorithms = faster_converter(cells[:100])

    a = "real cells" if real else "cells of the embedded demo"
    every = StructureSet("A", a, cells, labels, converter, folder, device).part(most or len(cells))
    few = every.part(LARGE_CELLS)
    rng = np.random.default_rng(0)
    large = [structure.make_supercell((2, 2, 1), in_place=False) for structure in few.structures]
    displaced = [_displaced(_of_twenty_atoms(structure), rng) for structure in few.structures]
    c = f"supercells of some of A, every atom displaced by about {DISPLACEMENT_ANGSTROM} Angstrom: no symmetry"
    sets = [
        every,
        StructureSet("B", "2x2x1 supercells of some of A", large, few.labels, converter, folder, device),
        StructureSet("C", c, displaced, few.labels, converter, folder, device),
    ]
    return {one.name: one for one in sets}, algorithms


def _of_twenty_atoms(structure: Structure) -> Structure:
    """A supercell of 20 to 40 atoms: the shortest axis is doubled until there are enough."""
    while len(structure) < 20:
        scale = [1, 1, 1]
        scale[int(np.argmin(structure.lattice.abc))] = 2
        structure = structure.make_supercell(scale, in_place=False)
    return structure


def _displaced(structure: Structure, rng: np.random.Generator) -> Structure:
    """Every coordinate displaced by Gaussian noise."""
    coords = structure.cart_coords + rng.normal(scale=DISPLACEMENT_ANGSTROM, size=(len(structure), 3))
    return Structure(structure.lattice, structure.species, coords, coords_are_cartesian=True)


def described(cases: StructureSet) -> str:
    """What the set is, in one line."""
    graphs = cases.graphs
    n_angles = sum(len(graph.bond_graph) for graph in cases.part(LARGE_CELLS).stock_graphs)
    return (
        f"{len(cases)} {cases.description}; on average {len(graphs.numbers) / len(cases):.1f} atoms, "
        f"{2 * len(graphs.bond_atoms) / len(cases):.0f} directed edges, "
        f"{n_angles / len(cases.part(LARGE_CELLS)):.0f} angles"
    )


@dataclass(frozen=True)
class Sides:
    """The two sides of a comparison.

    Attributes:
        stock, ours: do the work once and return its result. Where the unit is not a time, or the row says so,
            the result is itself the measured number.
        check: given both results, refuses those that differ (BenchmarkError) and returns what it saw, as fields
            of the row.
    """

    stock: Callable[[], Any]
    ours: Callable[[], Any]
    check: Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One piece of work that is compared, on one or several sets of structures.

    Attributes:
        name: what is done.
        sides: made from a set, when it is this row's turn.
        unit: of the numbers, for one structure; of a whole run if `whole_run`.
        sets: letters of the sets.
        most: structures of a set at most, where the work takes long; by letter.
        whole_run: each side is a whole run of some seconds that takes its own time and is not warmed up.
        of_network: a network does most of it, so that it is worth a GPU.
    """

    name: str
    sides: Callable[[StructureSet], Sides]
    unit: str
    sets: str = "A"
    most: dict[str, int] = field(default_factory=dict)
    whole_run: bool = False
    of_network: bool = False


def measure(work: Work, cases: StructureSet, repeats: int) -> dict[str, Any]:
    """Let both sides do the work in turns, stock first.

    The first turn warms up and is checked. The ratio is the median of those of the pairs, which stood under
    the same load.

    Raises:
        BenchmarkError: the sides did not compute the same.
    """
    cases = cases.part(work.most.get(cases.name, len(cases)))
    sides = work.sides(cases)
    is_time = work.unit in UNITS and not work.whole_run
    pairs: list[tuple[float, float]] = []
    seen: dict[str, Any] = {}
    for turn in range(min(repeats, 2) if work.whole_run else repeats + is_time):
        stock, stock_result = _measured(sides.stock, is_time)
        ours, our_result = _measured(sides.ours, is_time)
        if turn == 0:
            seen = sides.check(stock_result, our_result)
        del stock_result, our_result  # freed here, not within the next time
        if turn or not is_time:
            pairs.append((stock, ours))
    share = UNITS.get(work.unit, 1.0) / (1 if work.whole_run else len(cases))
    return {
        "work": work.name,
        "structures": cases.name,
        "stock": median(stock for stock, _ in pairs) * share,
        "ours": median(ours for _, ours in pairs) * share,
        "ratio": median(stock / ours for stock, ours in pairs),
        "ratios": [stock / ours for stock, ours in pairs],
        "n": len(cases),
        "unit": work.unit,
        **seen,
    }


def _measured(do: Callable[[], Any], is_time: bool) -> tuple[float, Any]:
    """Seconds and result; or the result twice, where it is the number."""
    gc.collect()
    gc.disable()  # a collection adds its time to whatever runs
    try:
        began = time.perf_counter()
        result = do()
        seconds = time.perf_counter() - began
    finally:
        gc.enable()
    return (seconds if is_time else float(result)), result
