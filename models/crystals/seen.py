"""Crystals that pretraining has seen, as a file or folder of structures tells.

A crystal equals a structure if pymatgen's StructureMatcher (primitive cells, scaled to the same volume, its default
tolerances) says so; only structures of its reduced formula are asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from data.crystals.convert import reduced_formula
from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.formats.structure_files import structure_file_format
from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.rows import RawChunk, Rows
from data.stores.places import expanded
from data.task import TaskError
from models.family import FactsError


@dataclass(frozen=True, eq=False)
class SeenCrystals:
    """What pretraining has seen; see `SeenExamples`.

    Attributes:
        ids: by which the file names its structures.
        crystals: by reduced formula.
        n_unreadable: structures that could not be read.
    """

    ids: set[str]
    crystals: dict[str, list[Crystal]]
    n_unreadable: int

    @property
    def groups(self) -> Collection[str]:
        """Reduced formulas."""
        return self.crystals.keys()

    def equal_ids(self, rows: Rows, groups: Mapping[str, str]) -> set[str]:
        """Ids of the rows that equal a structure, given the reduced formula of each id.

        Raises:
            FactsError: the rows are formulas.
        """
        if rows.format == "composition":
            raise FactsError("The task has compositions only, so that nothing is known of structures")
        equal = set()
        # One by one, for there may be many, and in order: a gzip file is unpacked again as it is read.
        for position, name in enumerate(rows.ids):
            crystal = next(rows.chunk(position, position + 1).crystals())
            if not isinstance(crystal, BadCrystalError) and _equals_any(crystal, self.crystals[groups[name]]):
                equal.add(name)
        return equal


def read_seen(source: str) -> SeenCrystals | None:
    """The crystals of a file or folder of structures.

    It is a JSON file in Matbench's layout, gzipped or not, or a folder of structure files. The index of the former
    counts as ids where it is text.

    Returns:
        None for any other file.

    Raises:
        FactsError: there is nothing of that kind to read.
    """
    path = expanded(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and structure_file_format(file.name))
        names = [file.name for file in files]
        chunks = [RawChunk(0, [name], [name], [file.read_bytes()], "structure_file")
                  for name, file in zip(names, files, strict=True)]  # fmt: skip
        return _read_crystals(source, set(), chunks)
    if not path.name.lower().endswith((".json", ".json.gz")):
        return None
    try:
        table = read_matbench_file(path)
    except TaskError as problem:
        raise FactsError(str(problem)) from None
    if table.inputs == "compositions":
        raise FactsError(f"{source} has formulas and no structures: give structures or a list of ids")
    ids = {name for name in table.index if isinstance(name, str)}
    spans = [table.buffer[a:b] for a, b in table.spans.tolist()]
    return _read_crystals(source, ids, [RawChunk(0, table.names, table.names, spans, table.format)])


def _read_crystals(source: str, ids: set[str], chunks: Sequence[RawChunk]) -> SeenCrystals:
    by_formula: dict[str, list[Crystal]] = {}
    n_unreadable = 0
    for chunk in chunks:
        for crystal in chunk.crystals():
            if isinstance(crystal, BadCrystalError):
                n_unreadable += 1
            else:
                by_formula.setdefault(reduced_formula(crystal), []).append(crystal)
    if not by_formula:
        raise FactsError(f"{source} has no structure that can be read, of {n_unreadable}")
    return SeenCrystals(ids, by_formula, n_unreadable)


def _equals_any(crystal: Crystal, candidates: Sequence[Crystal]) -> bool:
    """Whether a crystal equals any of others with its reduced formula."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(primitive_cell=True, scale=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without a radius
        structure, *rest = (Structure(c.lattice, c.numbers.tolist(), c.frac_coords) for c in (crystal, *candidates))
        return any(matcher.fit(structure, other) for other in rest)
