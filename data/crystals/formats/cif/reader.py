"""Reads a CIF file into a crystal, or says why not; what the file leaves open is never guessed.

The file's own words decide: operators, else Hall symbol, else names and number of the space group. Where they leave
several crystals (a name with two origins), those that disagree with the file's formula, Z, density, multiplicities or
with sensible distances are dropped, and more than one or none left is refused. Called by `structure_files.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gemmi.cif
import numpy as np

from data.crystals.contacts import closest_contact
from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal
from data.crystals.formats.cif.content import Content, Verdict, compare, read_content
from data.crystals.formats.cif.orbits import Cell, expand, same_atoms
from data.crystals.formats.cif.sites import Sites, read_sites
from data.crystals.formats.cif.species import format_amounts
from data.crystals.formats.cif.stated import Stated, stated_symmetry
from data.crystals.formats.cif.symmetry import MAX_MISFIT, Symmetry, fits_cell, misfit
from data.crystals.formats.cif.tags import Tags, number_of, read_tags

NOTED_MISFIT = 1e-3  # of at most `MAX_MISFIT`
# Real contacts in parts of the sum of the covalent radii: 0.7 for X-ray's short O-H, 0.9 and more for others.
SENSIBLE_CONTACT, IMPOSSIBLE_CONTACT = 0.7, 0.5
# An item whose value is several words without quotes, which no CIF file may have: `_name F m -3 m`.
_UNQUOTED = re.compile(
    r"^([ \t]*_\S+)[ \t]+([^\s'\"_;#\[\]$][^\s'\"#]*(?:[ \t]+[^\s'\"_#][^\s'\"#]*)+)[ \t]*(?=#|\r?$)", re.M
)
_END_MARKS = b"\x00\x1a"  # behind the last line: DOS's end of a file, and zeros of one that was cut to whole blocks
_MAX_BLOCKS = 1000
_MAX_BYTES, _MAX_HAND_WRITTEN_BYTES = 50_000_000, 1_000_000
_POSITIONS = ("fract_x", "cartn_x", "label", "type_symbol")
_CELL = [f"_cell_length_{x}" for x in "abc"] + [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]


def read_cif(content: bytes) -> ReadCrystal:
    """Read the one crystal of a CIF file.

    Atoms come in the order of the file's sites, the equivalents of one together. The lattice stands as pymatgen's
    `Lattice.from_parameters` puts it: c along z, a in the plane of x and z.

    Raises:
        BadCrystalError: the file is broken, holds no crystal or several, is disordered or modulated, lacks atoms,
            contradicts itself, or leaves open which crystal it means.
    """
    text, notes = _decode(content)
    tags, block_notes = _structure_block(text)
    notes += block_notes
    _refuse_modulated(tags)
    lattice, cell_notes = _read_lattice(tags)
    facts = read_content(tags)
    sites = read_sites(tags, facts.elements)
    stated = stated_symmetry(tags, lattice)
    notes += [*cell_notes, *facts.notes, *sites.notes, *stated.notes]
    reading = _decide(stated, sites, facts, lattice)
    notes += [*reading.cell.notes, *reading.verdict.notes]
    crystal = Crystal(reading.cell.numbers, reading.cell.frac_coords, lattice)
    return ReadCrystal(crystal, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Reading:
    """One crystal that a file could mean."""

    symmetry: Symmetry
    cell: Cell
    verdict: Verdict


def _decode(content: bytes) -> tuple[str, list[str]]:
    """The text of a file, with a note where it is not UTF-8."""
    if len(content) > _MAX_BYTES:
        raise BadCrystalError(f"the file has {len(content) / 1e6:.0f} MB; no crystal that can be used has so many")
    if not content.strip():
        raise BadCrystalError("the file is empty")
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16"), ["the file is in UTF-16"]
        return content.rstrip(_END_MARKS).decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return content.decode("latin-1"), ["the file is not in UTF-8 and is read as Latin-1"]


def _structure_block(text: str) -> tuple[Tags, list[str]]:
    """The block with the atoms, and notes."""
    notes = []
    try:
        document = _parse(text)
    except (ValueError, RuntimeError) as error:
        quoted, n_values = _UNQUOTED.subn(r"\1 '\2'", text[:_MAX_HAND_WRITTEN_BYTES])
        try:
            if not n_values or len(text) > _MAX_HAND_WRITTEN_BYTES:
                raise
            document = _parse(quoted)
        except (ValueError, RuntimeError):
            raise BadCrystalError(f"not a valid CIF file: {_syntax_error(str(error), text)}") from None
        notes.append(f"values with blanks and without quotes are read as if quoted ({n_values})")
    if len(document) > _MAX_BLOCKS:
        raise BadCrystalError(f"it has {len(document)} data blocks; at most {_MAX_BLOCKS} are read")
    blocks = [read_tags(block) for block in document]
    if not blocks:
        raise BadCrystalError("the file has no data")
    with_atoms = [tags for tags in blocks if any(f"_atom_site_{name}" in tags.values for name in _POSITIONS)]
    structures = [tags for tags in with_atoms if _CELL[0] in tags.values]
    if len(structures) > 1:
        names = ", ".join(tags.name for tags in structures[:5])
        raise BadCrystalError(
            f"it holds {len(structures)} structures ({names}{', ...' if len(structures) > 5 else ''}): "
            "put each into a file of its own"
        )
    if not structures:
        if with_atoms:
            raise BadCrystalError(f"block {with_atoms[0].name} has atoms and no cell (_cell_length_a)")
        raise BadCrystalError("no atoms in it (_atom_site_fract_x)")
    return structures[0], notes


def _parse(text: str) -> gemmi.cif.Document:
    return gemmi.cif.read_string(text, check_level=0)  # items that are there twice: `read_tags` looks at them


def _syntax_error(message: str, text: str) -> str:
    """The parser's message with its position in words: `data:3:0(15): ...`, `data:3 in data_a: ...`."""
    match = re.match(r"\w+:(\d+)(?::(\d+)\(\d+\))?(?: in (\S+))?: *(.*)", message, re.DOTALL)
    if match is None:
        return message.removeprefix("data: ")
    line, _, block, reason = match.groups()
    lines = text.splitlines()
    at = lines[min(int(line), len(lines)) - 1].strip() if lines else ""
    return f"line {line}{f' of {block}' if block else ''}: {' '.join(reason.split())} at {at[:60]!r}"


def _refuse_modulated(tags: Tags) -> None:
    dimension = tags.positive("_cell_modulation_dimension")
    if dimension or any("_ssg_" in name and tags.texts(name) for name in tags.values):
        raise BadCrystalError("it is a modulated structure, which no periodic cell holds")


def _read_lattice(tags: Tags) -> tuple[np.ndarray, list[str]]:
    """Lattice vectors in rows, Angstrom, and notes."""
    values = []
    for name in _CELL:
        text = tags.text(name)
        number = number_of(text)
        if number is None:
            raise BadCrystalError(f"{name} is {text!r}, not a number" if text else f"{name} is missing")
        values.append(number)
    if not all(0 < length < 1e4 for length in values[:3]):
        raise BadCrystalError(f"cell lengths {values[:3]} are not all above 0 and below 10000 Angstrom")
    if not all(0 < angle < 180 for angle in values[3:]):
        raise BadCrystalError(f"cell angles {values[3:]} are not all between 0 and 180 degrees")
    a, b, c = values[:3]
    cos, sin = np.cos(np.radians(values[3:])), np.sin(np.radians(values[3:]))
    cos_gamma_star = (cos[0] * cos[1] - cos[2]) / (sin[0] * sin[1])
    if abs(cos_gamma_star) >= 1:
        raise BadCrystalError(f"no cell has the angles {values[3:]} degrees")
    gamma_star = np.arccos(cos_gamma_star)
    lattice = np.array(
        [
            [a * sin[1], 0.0, a * cos[1]],
            [-b * sin[0] * np.cos(gamma_star), b * sin[0] * np.sin(gamma_star), b * cos[0]],
            [0.0, 0.0, c],
        ]
    )
    volume, stated_volume = float(np.linalg.det(lattice)), tags.positive("_cell_volume")
    notes = []
    if stated_volume is not None and abs(volume / stated_volume - 1) > 2e-3:
        message = (
            f"_cell_volume is {stated_volume:g}, but the cell's lengths and angles give {volume:.6g} cubic Angstrom"
        )
        if abs(volume / stated_volume - 1) > 2e-2:
            raise BadCrystalError(message)
        notes.append(message)
    return lattice, notes


def _decide(stated: Stated, sites: Sites, facts: Content, lattice: np.ndarray) -> _Reading:
    """The one reading that the file leaves."""
    readings, reasons = [], []
    for symmetry in stated.candidates:
        try:
            readings.append(_read(symmetry, stated, sites, facts, lattice))
        except BadCrystalError as error:
            reasons.append(str(error))
    if not readings:
        raise BadCrystalError(reasons[0])
    if len(readings) > 1 or stated.is_assumed:
        contacts = [
            closest_contact(Crystal(reading.cell.numbers, reading.cell.frac_coords, lattice)) for reading in readings
        ]
        if max(contacts) < IMPOSSIBLE_CONTACT:
            raise BadCrystalError(f"atoms are too near one another in every setting that {stated.source} can mean")
        if max(contacts) >= SENSIBLE_CONTACT:
            pairs = zip(readings, contacts, strict=True)
            readings = [reading for reading, contact in pairs if contact >= IMPOSSIBLE_CONTACT]
    reading = readings[0]
    for other in readings[1:]:
        if not same_atoms(reading.cell, other.cell, lattice):
            settings = [f"{r.symmetry.name} ({len(r.cell.numbers)} atoms)" for r in (reading, other)]
            raise BadCrystalError(f"{stated.source} can mean {' or '.join(settings)}, and nothing in the file decides")
    if len(stated.candidates) > 1:
        reading.verdict.notes.append(f"{stated.source} is read as {reading.symmetry.name}, the one that fits the file")
    _compare_with_rivals(reading, stated, sites, facts, lattice)
    return reading


def _read(symmetry: Symmetry, stated: Stated, sites: Sites, facts: Content, lattice: np.ndarray) -> _Reading:
    """The crystal with this symmetry; BadCrystalError where it is none, or not the one that the file describes."""
    off = misfit(symmetry, lattice)
    if off > MAX_MISFIT:
        raise BadCrystalError(f"a cell with {_cell_text(lattice)} cannot have {symmetry.name}")
    cell = expand(sites.labels, sites.numbers, sites.frac_coords, symmetry, lattice)
    verdict = compare(facts, cell.numbers, lattice, stated.is_given)
    if off > NOTED_MISFIT:
        verdict.notes.append(f"the cell misses {symmetry.name} by {off:.2g} of its lengths")
    if cell.incomplete and not verdict.confirmed:
        verdict.against.append(f"sites {', '.join(cell.repeated[:5])} are equivalents of others, which lack some")
    stated_multiplicities = sites.multiplicities
    if stated_multiplicities is not None:
        orders = len(symmetry) / np.maximum(cell.multiplicities, 1)
        compared = (cell.multiplicities > 0) & (stated_multiplicities > 0)
        fits = (stated_multiplicities == cell.multiplicities)[compared].all() or (stated_multiplicities == orders)[
            compared
        ].all()
        if stated.is_magnetic:
            fits = fits or np.ptp((stated_multiplicities / np.maximum(cell.multiplicities, 1))[compared]) < 1e-6
        if not fits and not verdict.confirmed:
            k = int(np.flatnonzero(compared & (stated_multiplicities != cell.multiplicities))[0])
            verdict.against.append(
                f"site {sites.labels[k]} has multiplicity {stated_multiplicities[k]:g} in the file, but "
                f"{cell.multiplicities[k]} in {symmetry.name}"
            )
    if verdict.against:
        reason = verdict.against[0]
        raise BadCrystalError(
            f"no symmetry is given, and {reason}" if not stated.is_given else f"{reason} (in {symmetry.name})"
        )
    return _Reading(symmetry, cell, verdict)


def _compare_with_rivals(reading: _Reading, stated: Stated, sites: Sites, facts: Content, lattice: np.ndarray) -> None:
    """Refuse operators that are not those of the group that the file names.

    They are kept where the named group gives the same crystal, or the file's content says that they are right.
    """
    possible = [symmetry for symmetry in stated.rivals if fits_cell(symmetry, lattice)]
    for symmetry in possible:
        try:
            rival = _read(symmetry, stated, sites, facts, lattice)
        except BadCrystalError as error:
            if not reading.verdict.confirmed:
                raise BadCrystalError(f"{stated.contradiction}, with which {error}") from None
            continue
        if not same_atoms(reading.cell, rival.cell, lattice):
            raise BadCrystalError(
                f"{stated.contradiction}: with the operators the cell has {format_amounts(_counts(reading.cell))}, "
                f"with {symmetry.name} {format_amounts(_counts(rival.cell))}"
            )
    if stated.rivals:
        reading.verdict.notes.append(f"{stated.contradiction}; the atoms are those of the operators")


def _cell_text(lattice: np.ndarray) -> str:
    lengths = np.sqrt((lattice * lattice).sum(1))
    cos = [lattice[i] @ lattice[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    angles = np.degrees(np.arccos(cos))
    return f"lengths {', '.join(f'{x:.5g}' for x in lengths)} and angles {', '.join(f'{x:.5g}' for x in angles)}"


def _counts(cell: Cell) -> dict[int, float]:
    kinds, amounts = np.unique(cell.numbers, return_counts=True)
    return {int(z): float(n) for z, n in zip(kinds, amounts, strict=True)}
