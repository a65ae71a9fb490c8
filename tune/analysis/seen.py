"""Which test crystals pretraining has seen, as a file of ids or of structures tells.

A crystal counts as seen if its id is listed, or if pymatgen's StructureMatcher (primitive cells, scaled to the same
volume, its default tolerances) finds it equal to any of the structures with its reduced formula.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.crystals.convert import reduced_formula
from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.formats.structure_files import structure_file_format
from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.rows import RawChunk, Rows
from data.errors import UserError
from data.stores.places import expanded
from data.task import TaskError
from data.tasks import read_ids
from tune.analysis.crystal_facts import FactsError, predicted_rows
from tune.analysis.ranking import Section


class SeenError(UserError, ValueError):
    """A file of what was seen that cannot be read; the message says why and what is expected."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What pretraining has seen.

    Attributes:
        source: the file or folder it was read from.
        ids: of test crystals.
        crystals: by reduced formula.
        n_unreadable: structures that could not be read.
    """

    source: str
    ids: set[str]
    crystals: dict[str, list[Crystal]]
    n_unreadable: int


def read_seen(source: str) -> Seen:
    """Read what pretraining has seen.

    Args:
        source: a text file of ids, one a line, `#` begins a comment; a JSON file, gzipped or not, of structures in
            Matbench's layout, whose index counts as ids where it is text; or a folder of CIF and POSCAR files.

    Raises:
        SeenError: there is nothing, or nothing of that kind, to read.
    """
    path = expanded(source)
    if not path.exists():
        raise SeenError(f"--contamination {source}: there is no such file or folder")
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file() and structure_file_format(one.name))
        names = [one.name for one in files]
        chunks = [RawChunk(0, [name], [name], [file.read_bytes()], "structure_file")
                  for name, file in zip(names, files, strict=True)]  # fmt: skip
        return _with_crystals(source, set(), chunks)
    if path.name.lower().endswith((".json", ".json.gz")):
        try:
            table = read_matbench_file(path)
        except TaskError as problem:
            raise SeenError(f"--contamination {problem}") from None
        ids = {one for one in table.index if isinstance(one, str)}
        if table.inputs == "compositions":
            raise SeenError(
                f"--contamination {source} has formulas and no structures: give structures or a list of ids"
            )
        spans = [table.buffer[a:b] for a, b in table.spans.tolist()]
        return _with_crystals(source, ids, [RawChunk(0, table.names, table.names, spans, table.format)])
    try:
        return Seen(source, read_ids(path), {}, 0)
    except TaskError as problem:
        raise SeenError(f"--contamination: {problem}") from None


def seen_ids(section: Section, seen: Seen) -> tuple[set[str], set[str]]:
    """Test ids of a section that are listed, and others that equal a structure.

    Raises:
        SeenError: structures are given, and those of the section's runs cannot be opened.
    """
    table = section.places[0].entry.table
    listed = set(table["id"]) & seen.ids
    rest = table[~table["id"].isin(listed) & table["composition"].isin(list(seen.crystals))]
    if rest.empty:
        return listed, set()
    formula = dict(zip(rest["id"], rest["composition"], strict=True))
    rows = _rows(section, formula)
    equal = set()
    # One by one, for there may be many, and in order: a gzip file is unpacked again as it is read.
    for position, one in enumerate(rows.ids):
        crystal = next(rows.chunk(position, position + 1).crystals())
        if not isinstance(crystal, BadCrystalError) and _matches(crystal, seen.crystals[formula[one]]):
            equal.add(one)
    return listed, equal


def _with_crystals(source: str, ids: set[str], chunks: Sequence[RawChunk]) -> Seen:
    by_formula: dict[str, list[Crystal]] = {}
    unreadable = 0
    for chunk in chunks:
        for crystal in chunk.crystals():
            if isinstance(crystal, BadCrystalError):
                unreadable += 1
            else:
                by_formula.setdefault(reduced_formula(crystal), []).append(crystal)
    if not by_formula:
        raise SeenError(f"--contamination {source} has no structure that can be read, of {unreadable}")
    return Seen(source, ids, by_formula, unreadable)


def _rows(section: Section, ids: Iterable[str]) -> Rows:
    """Some rows of a section's task, by way of any of its sweeps."""
    reasons = []
    for run in section.runs:
        try:
            return predicted_rows(run, ids)
        except FactsError as problem:
            reasons.append(f"{run.name}: {problem}")
    raise SeenError(f"structures of {section.task['name']} are needed, or a list of ids instead. {'; '.join(reasons)}")


def _matches(crystal: Crystal, others: Sequence[Crystal]) -> bool:
    """Whether a crystal equals any of others with its reduced formula."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(primitive_cell=True, scale=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements without a radius
        one, *rest = (Structure(c.lattice, c.numbers.tolist(), c.frac_coords) for c in (crystal, *others))
        return any(matcher.fit(one, other) for other in rest)
