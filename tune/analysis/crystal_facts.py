"""What is known of predicted crystals beside the prediction: elements, chemical family, atoms, symmetry, a picture.

Elements and families come from the formula; atoms, symmetry and pictures from the structures of the sweep's task,
which is opened again as the sweep did.
"""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from html import escape
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from data.crystals.rows import RawChunk, Rows
from data.errors import UserError
from tune.records.options import load_options
from tune.runs import SweepRun

SYMPREC = 0.1  # Angstrom: that of the Materials Project's own space groups, for relaxed structures
_ALONE = 4000  # crystals up to which this process is enough; others take seconds to start
_CHUNK = 1000  # rows that a process gets at a time

_SYSTEMS = {2: "triclinic", 15: "monoclinic", 74: "orthorhombic", 142: "tetragonal", 167: "trigonal", 194: "hexagonal",
            230: "cubic"}  # fmt: skip
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
_NONMETALS = set("H He B C N O F Ne Si P S Cl Ar Ge As Se Br Kr Sb Te I Xe At Rn".split())
FAMILIES_TOLD = (
    "A compound is named by its most electronegative nonmetal or metalloid, or bismuth: a sulfate is an oxide. "
    "Halides, chalcogenides (oxides included) and pnictides are those together; compounds with a lanthanide (La to Lu) "
    "or actinide count there too; intermetallics are of two or more metals and nothing else."
)


class FactsError(ValueError):
    """Why nothing is known of the structures, as a sentence for the reader."""


def elements_of(formula: str) -> frozenset[str]:
    """Symbols of the elements in a formula, such as `Ca(NO3)2`."""
    found = ["H" if symbol in ("D", "T") else symbol for symbol in re.findall(r"[A-Z][a-z]?", formula)]
    return frozenset(symbol for symbol in found if symbol in ATOMIC_NUMBERS)


def families(elements: frozenset[str]) -> list[str]:
    """Chemical families of a compound of these elements; see `FAMILIES_TOLD`."""
    numbers = {ATOMIC_NUMBERS[symbol] for symbol in elements}
    found = [name for name, first, last in (("lanthanides", 57, 71), ("actinides", 89, 103))
             if any(first <= number <= last for number in numbers)]  # fmt: skip
    if len(elements) == 1:
        return ["elements", *found]
    named = next((name for symbol, name in _ANIONS.items() if symbol in elements), None)
    if named:
        found += [named, *(wider for wider, members in _WIDER.items() if named in members)]
    if elements and not elements & _NONMETALS:
        found.append("intermetallics")
    return found


def crystal_system(space_group: int) -> str:
    """Crystal system of a space group's number."""
    return next(name for last, name in _SYSTEMS.items() if space_group <= last)


def predicted_rows(run: SweepRun, ids: Iterable[str]) -> Rows:
    """The rows of a sweep's task that it predicted, in the order of the file.

    The task is opened as the sweep did; of an average, as any of its members did.

    Raises:
        FactsError: the task has no structures, cannot be opened any more, or is not what it was.
    """
    folders = [run.address]
    for member in run.results.get("members", []):
        beside = run.address.rpartition("/")[0]
        folders += [member["address"], f"{beside}/{member['address'].rpartition('/')[2]}"]
    reasons = []
    for folder in dict.fromkeys(folders):
        storage, _, name = folder.rpartition("/")
        try:
            _, rows = load_options(storage or ".", name).open_task()
        except (UserError, OSError) as problem:
            reasons.append(str(problem))
            continue
        if rows.sha256 != run.data_sha256:
            reasons.append(f"the rows of {folder} are not those that were predicted (another SHA-256)")
        elif rows.format == "composition":
            raise FactsError("The task has compositions only, so that nothing is known of structures")
        else:
            wanted = set(ids)
            return rows.select([k for k, one in enumerate(rows.ids) if one in wanted], rows.sha256)
    many = f" ({len(reasons)} sweeps were tried)" if len(reasons) > 1 else ""
    raise FactsError(f"The structures cannot be opened any more{many}: {reasons[-1].rstrip('.')}")


def crystal_facts(rows: Rows) -> pd.DataFrame:
    """Number of atoms and symmetry of every row that can be read.

    Space groups are spglib's at a tolerance of `SYMPREC`; progress is shown on the terminal where it takes long.

    Returns:
        Indexed by id: n_atoms, space_group (`Fm-3m (225)`) and crystal_system; missing where spglib finds none.
    """
    starts = range(0, len(rows), _CHUNK)
    chunks = (rows.chunk(start, start + _CHUNK) for start in starts)
    if len(rows) <= _ALONE:
        parts = [_facts_of(chunk) for chunk in chunks]
    else:
        # Not forked: threads of libraries that are loaded here would be lost half-way.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            running = pool.map(_facts_of, chunks)
            parts = list(track(running, "symmetry of crystals", len(starts), console=Console(stderr=True)))
    table = pd.DataFrame(chain.from_iterable(parts), columns=["id", "n_atoms", "space_group", "crystal_system"])
    return table.drop_duplicates("id").set_index("id")


def _facts_of(chunk: RawChunk) -> list[tuple[str, int, str | None, str | None]]:
    import spglib

    found: list[tuple[str, int, str | None, str | None]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*OLD_ERROR_HANDLING", DeprecationWarning)  # spglib 2's, on every call
        for one, crystal in zip(chunk.ids, chunk.crystals(), strict=True):
            if isinstance(crystal, BadCrystalError):
                continue
            cell: Any = (crystal.lattice, crystal.frac_coords, crystal.numbers)
            group = spglib.get_symmetry_dataset(cell, SYMPREC)
            symmetry = (
                (None, None)
                if group is None
                else (f"{group.international} ({group.number})", crystal_system(group.number))
            )
            found.append((one, len(crystal.numbers), *symmetry))
    return found


def crystals_of(rows: Rows, ids: Iterable[str]) -> dict[str, Crystal]:
    """The crystals of some ids, as far as they can be read."""
    wanted = set(ids)
    few = rows.select([k for k, one in enumerate(rows.ids) if one in wanted], rows.sha256)
    crystals = few.chunk(0, len(few)).crystals()
    found = zip(few.ids, crystals, strict=True)
    return {one: crystal for one, crystal in found if not isinstance(crystal, BadCrystalError)}


@cache
def _look(number: int) -> tuple[float, str, str]:
    """Radius (Angstrom), fill, and colour of the letters of an element, as Jmol has them."""
    from pymatgen.core import Element
    from pymatviz.colors import ELEM_COLORS_JMOL

    red, green, blue = (float(part) for part in ELEM_COLORS_JMOL.get(SYMBOLS[number], (0.6, 0.6, 0.6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some elements have no radius
        radius = Element.from_Z(number).atomic_radius
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    fill = "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
    return float(radius or 1.5), fill, "#fff" if dark else "#000"


def picture(crystal: Crystal, size: int = 104) -> str:
    """A unit cell seen almost along its a axis, c upwards, as SVG; atoms on its faces are drawn on both sides.

    Args:
        crystal: what to draw.
        size: of the square picture, in pixels.
    """
    lattice = crystal.lattice
    up = lattice[2] / np.linalg.norm(lattice[2])
    front = lattice[0] - (lattice[0] @ up) * up
    front /= np.linalg.norm(front)
    view = front + 0.35 * np.cross(up, front) + 0.25 * up  # towards the eye
    view /= np.linalg.norm(view)
    right = np.cross(up, view)
    right /= np.linalg.norm(right)
    axes = np.stack([right, -np.cross(view, right), view], axis=1)  # the screen's y points down

    inside = crystal.frac_coords % 1.0
    inside[inside > 0.999] = 0.0
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    shifts = corners if len(inside) <= 40 else corners[:1]
    images = (inside[:, None] + shifts).reshape(-1, 3)
    numbers = np.repeat(crystal.numbers, len(shifts))
    shown = (images < 1.001).all(axis=1)
    atoms, numbers = images[shown] @ lattice @ axes, numbers[shown]
    box = corners @ lattice @ axes

    margin = 1.1
    low = np.minimum(atoms.min(axis=0), box.min(axis=0))[:2] - margin
    high = np.maximum(atoms.max(axis=0), box.max(axis=0))[:2] + margin
    scale = size / (high - low).max()
    offset = (size - (high - low) * scale) / 2 - low * scale

    edges = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(corners[a] - corners[b]).sum() == 1]
    lines = [
        (min(box[a, 2], box[b, 2]), _line(box[a, :2] * scale + offset, box[b, :2] * scale + offset, "#8a8a8a", 0.8))
        for a, b in edges
    ]
    for position, number in zip(atoms, numbers, strict=True):
        (x, y), (radius, fill, ink) = position[:2] * scale + offset, _look(int(number))
        r = (0.3 + 0.3 * radius) * scale  # small ones larger than they are, to be seen
        ball = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{fill}" stroke="#333" stroke-width=".6"/>'
        if r > 5:
            ball += (
                f'<text x="{x:.1f}" y="{y + 0.34 * r:.1f}" fill="{ink}" font-size="{r:.1f}">{SYMBOLS[number]}</text>'
            )
        lines.append((position[2], ball))
    for a, b in _bonds(atoms, numbers):
        # A little behind the farther atom's centre, so that the balls cover its ends.
        ends = atoms[a, :2] * scale + offset, atoms[b, :2] * scale + offset
        lines.append((min(atoms[a, 2], atoms[b, 2]) - 1e-3, _line(*ends, "#b5b5b5", max(1.2, 0.16 * scale))))
    formula = escape(" ".join(sorted({SYMBOLS[number] for number in crystal.numbers.tolist()})))
    drawn = "".join(text for _, text in sorted(lines))
    return (
        f'<svg class="crystal" viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" '
        f'aria-label="unit cell of {formula}" text-anchor="middle">{drawn}</svg>'
    )


def _line(start: np.ndarray, end: np.ndarray, colour: str, width: float) -> str:
    x1, y1, x2, y2 = (f"{value:.1f}" for value in (*start, *end))
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{colour}" stroke-width="{width:.1f}"/>'


def _bonds(atoms: np.ndarray, numbers: np.ndarray) -> list[tuple[int, int]]:
    """Drawn atoms that are at most 1.2 times the sum of their radii apart, one of them a nonmetal."""
    radii = np.array([_look(int(number))[0] for number in numbers])
    nonmetal = np.array([SYMBOLS[number] in _NONMETALS for number in numbers])
    apart = np.linalg.norm(atoms[:, None] - atoms[None], axis=-1)
    near = (apart < 1.2 * (radii[:, None] + radii)) & (nonmetal[:, None] | nonmetal) & (apart > 0.1)
    return [(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(near)), strict=True)]
