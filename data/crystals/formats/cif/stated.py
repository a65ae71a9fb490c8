"""Lists the space groups that a CIF file can mean by its operators, symbols, names and numbers.

Called by `reader.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.crystals.crystal import BadCrystalError
from data.crystals.formats.cif.settings import (
    code_of,
    from_hall,
    of_table,
    setting,
    settings_of_name,
    settings_of_number,
)
from data.crystals.formats.cif.symmetry import IDENTITY, Symmetry, fits_cell, group_number, read_operators
from data.crystals.formats.cif.tags import Tags, number_of

_OPERATORS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
_NAMES = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group_name_H-M",
    "_space_group_name_H-M_full",
    "_space_group_name_H-M_ref",
    "_symmetry_space_group_name_H-M_alt",
)
_HALL = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
_NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number", "_symmetry_space_group_IT_number")
_CODES = ("_space_group_IT_coordinate_system_code",)


@dataclass(frozen=True)
class Stated:
    """Holds what a file states of its symmetry.

    Attributes:
        candidates: the groups that it can mean.
        source: what says so, for messages.
        is_given: False where the file says nothing and P 1 is tried.
        is_assumed: whether a convention chose the setting, so that distances must be sensible.
        is_magnetic: whether the operators are of a magnetic group; multiplicities may be those of another cell then.
        rivals: groups that the file names beside its operators and that are not theirs.
        contradiction: how operators and name disagree.
        notes: of what was left aside.
    """

    candidates: tuple[Symmetry, ...]
    source: str
    is_given: bool = True
    is_assumed: bool = False
    is_magnetic: bool = False
    rivals: tuple[Symmetry, ...] = ()
    contradiction: str = ""
    notes: tuple[str, ...] = ()


def stated_symmetry(tags: Tags, lattice: np.ndarray) -> Stated:
    """Lists the groups that a file can mean.

    Raises:
        BadCrystalError: its operators are no group, its name is unknown, or it contradicts itself.
    """
    named = _named(tags, lattice)
    if (operators := _magnetic_operators(tags)) is not None:
        # Names beside them are those of the group without magnetism, often in another cell.
        return Stated((operators,), "its magnetic operators", is_magnetic=True)
    if lists := [read_operators(tuple(texts)) for name in _OPERATORS if (texts := tags.texts(name))]:
        if not all(_same_operators(lists[0], other) for other in lists[1:]):
            raise BadCrystalError(f"its symmetry operators differ: {' and '.join(_OPERATORS)} are not the same group")
        return _with_operators(lists[0], named, lattice)
    if named.problem:
        raise BadCrystalError(named.problem)
    if not named.source:
        if magnetic := tags.text("_space_group_magn_name_BNS", "_space_group_magn_name_OG"):
            raise BadCrystalError(f"the magnetic group {magnetic!r} is given without its operators")
        note = "the file says nothing of symmetry and is read as P 1"
        return Stated((IDENTITY,), "nothing", is_given=False, notes=(note,))
    return Stated(named.candidates, named.source, is_assumed=named.is_assumed, notes=named.notes)


def _magnetic_operators(tags: Tags) -> Symmetry | None:
    texts = tags.texts("_space_group_symop_magn_operation_xyz")
    centrings = tags.texts("_space_group_symop_magn_centering_xyz")
    if not texts:
        return None
    return read_operators(tuple(map(_without_time, texts)), tuple(map(_without_time, centrings)))


def _without_time(text: str) -> str:
    """Takes the last part, +1 or -1, off a magnetic operator."""
    parts = text.split(",")
    return ",".join(parts[:3]) if len(parts) == 4 and parts[3].strip() in ("+1", "-1", "1") else text


@dataclass(frozen=True)
class _Named:
    """Holds what Hall symbol, names and number say together."""

    candidates: tuple[Symmetry, ...] = ()
    numbers: frozenset[int] = frozenset()
    source: str = ""
    is_assumed: bool = False
    problem: str = ""
    is_number_only: bool = False
    notes: tuple[str, ...] = ()


def _named(tags: Tags, lattice: np.ndarray) -> _Named:
    """Compares names and number of the group with one another, then with the Hall symbol."""
    unknown: list[str] = []
    numbers = _numbers(tags, unknown)
    settings, quoted = _settings(tags, unknown)
    if len(numbers) > 1:
        return _Named(problem=f"it has the space-group numbers {sorted(numbers)}", source="its numbers")
    of_number = f" and the number {next(iter(numbers))}" if numbers else ""
    if settings is not None and numbers:
        settings = [k for k in settings if setting(k).number in numbers]
    if settings is not None and not settings:
        return _Named(problem=f"its space-group names {quoted}{of_number} contradict each other", source=quoted)
    halls = tags.texts(*_HALL) or [name for name in tags.texts(*_NAMES) if name.startswith("-")]
    hall = next((symmetry for text in halls if (symmetry := from_hall(text)) is not None), None)
    if hall is not None:
        allowed = {setting(k).number for k in settings} if settings is not None else numbers
        if allowed and group_number(hall, lattice) not in allowed:
            return _Named(problem=f"{hall.name} contradicts {quoted or 'its number'}{of_number}", source=hall.name)
        return _by_hall(hall, settings or [], quoted, lattice, unknown)
    unknown += [f"the Hall symbol {text!r}" for text in halls]
    if settings is not None:
        return _by_settings(settings, f"its space-group name {quoted}", tags, lattice, unknown)
    if numbers:
        number = next(iter(numbers))
        source = f"its space-group number {number}"
        return _by_settings(settings_of_number(number), source, tags, lattice, unknown, is_number_only=True)
    if unknown:
        return _Named(problem=f"{unknown[0]} is unknown, and nothing else gives the symmetry", source=unknown[0])
    return _Named()


def _numbers(tags: Tags, unknown: list[str]) -> set[int]:
    """Lists the space-group numbers that a file gives; adds to `unknown` what is none."""
    numbers = set()
    for text in tags.texts(*_NUMBERS):
        number = number_of(text)
        if number is not None and number in range(1, 231):
            numbers.add(int(number))
        else:
            unknown.append(f"the space-group number {text!r}")
    return numbers


def _settings(tags: Tags, unknown: list[str]) -> tuple[list[int] | None, str]:
    """Lists the positions of the settings that all names allow, and the names; None where no name is known."""
    settings: list[int] | None = None
    names = []
    for name in tags.texts(*_NAMES):
        meanings = settings_of_name(name)
        if not meanings:
            unknown.append(f"the space-group name {name!r}")
            continue
        names.append(repr(name))
        settings = [k for k in meanings if settings is None or k in settings]
    return settings, " and ".join(names)


def _by_hall(hall: Symmetry, settings: list[int], quoted: str, lattice: np.ndarray, unknown: list[str]) -> _Named:
    """The group of a Hall symbol; a name of another setting is a second opinion, and the rest of the file decides."""
    candidates = [hall]
    named = [of_table(k) for k in settings]
    if not any(_same_operators(hall, other) for other in named):
        candidates += [other for other in named if fits_cell(other, lattice)]
    source = hall.name + (f" and its name {quoted}" if len(candidates) > 1 else "")
    number = group_number(hall, lattice)
    numbers = frozenset() if number is None else frozenset({number})
    return _Named(tuple(candidates), numbers, source, notes=_unknown(unknown))


def _by_settings(
    settings: Sequence[int],
    source: str,
    tags: Tags,
    lattice: np.ndarray,
    unknown: list[str],
    is_number_only: bool = False,
) -> _Named:
    """The settings that the cell can have.

    A short name means its first orientation that the cell can have; the origin stays open. A number says nothing of
    the orientation.
    """
    if (code := tags.text(*_CODES)) is not None:
        coded = [k for k in settings if code_of(k, code)]
        unknown += [] if coded else [f"the setting {code!r}"]
        settings = coded or settings
    possible = [k for k in settings if fits_cell(of_table(k), lattice)] or settings
    chosen = [k for k in possible if is_number_only or setting(k).hm == setting(possible[0]).hm]
    return _Named(
        candidates=tuple(of_table(k) for k in chosen),
        numbers=frozenset(setting(k).number for k in settings),
        source=source,
        is_assumed=len(chosen) < len(possible),
        is_number_only=is_number_only,
        notes=_unknown(unknown),
    )


def _unknown(texts: list[str]) -> tuple[str, ...]:
    return tuple(f"{text} is unknown and left aside" for text in texts)


def _with_operators(operators: Symmetry, named: _Named, lattice: np.ndarray) -> Stated:
    """The operators rule; what else the file says is held against them."""
    if not named.source:
        return Stated((operators,), "its operators", notes=named.notes)
    if named.problem:
        return Stated((operators,), "its operators", notes=(f"{named.problem}; its operators are used",))
    number = group_number(operators, lattice)
    if any(_same_operators(operators, candidate) for candidate in named.candidates):
        return Stated((operators,), "its operators", notes=named.notes)
    contradiction = f"its operators are those of group number {number}, not of {named.source}"
    if number in named.numbers:
        # Another setting of the same group: the operators say which, if distances do not say otherwise.
        note = f"its operators are those of another setting than {named.source}, and are used"
        notes = named.notes if named.is_number_only else (*named.notes, note)
        return Stated((operators,), "its operators", is_assumed=True, notes=notes)
    return Stated(
        (operators,), "its operators", rivals=named.candidates, contradiction=contradiction, notes=named.notes
    )


def _same_operators(symmetry: Symmetry, other: Symmetry) -> bool:
    if len(symmetry) != len(other):
        return False
    return set(symmetry.codes.tolist()) == set(other.codes.tolist())
