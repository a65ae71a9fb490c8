"""What a CIF file states about its symmetry, as the groups that it can mean. Called by `data/cif.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.cif_symmetry import (
    IDENTITY,
    Symmetry,
    code_of,
    fits_cell,
    from_hall,
    group_number,
    of_table,
    read_operators,
    setting,
    settings_of_name,
    settings_of_number,
)
from data.cif_tags import Tags, number_of
from data.crystal import BadCrystalError

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
FIT = 1e-2  # part of the cell's lengths by which it may miss a setting


@dataclass(frozen=True)
class Stated:
    """The symmetry of a file.

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
    """The groups that a file can mean.

    Raises:
        BadCrystalError: its operators are no group, its name is unknown, or it contradicts itself.
    """
    named = _named(tags, lattice)
    if (operators := _magnetic_operators(tags)) is not None:
        # Names beside them are those of the group without magnetism, often in another cell.
        return Stated((operators,), "its magnetic operators", is_magnetic=True)
    if texts := next((cells for name in _OPERATORS if (cells := tags.texts(name))), None):
        return _with_operators(read_operators(tuple(texts)), named, lattice)
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
    """A magnetic operator without its last part, +1 or -1."""
    parts = text.split(",")
    return ",".join(parts[:3]) if len(parts) == 4 and parts[3].strip() in ("+1", "-1", "1") else text


@dataclass(frozen=True)
class _Named:
    """What Hall symbol, names and number say together."""

    candidates: tuple[Symmetry, ...] = ()
    numbers: frozenset[int] = frozenset()
    source: str = ""
    is_assumed: bool = False
    problem: str = ""
    notes: tuple[str, ...] = ()


def _named(tags: Tags, lattice: np.ndarray) -> _Named:
    names, halls = tags.texts(*_NAMES), tags.texts(*_HALL)
    numbers: set[int] = set()
    unknown: list[str] = []
    for text in tags.texts(*_NUMBERS):
        number = number_of(text)
        if number is not None and number in range(1, 231):
            numbers.add(int(number))
        else:
            unknown.append(f"the space-group number {text!r}")
    if len(numbers) > 1:
        return _Named(problem=f"it has the space-group numbers {sorted(numbers)}", source="its numbers")
    settings: set[int] | None = None
    order: list[int] = []
    resolved = []
    for name in names:
        meanings = settings_of_name(name)
        if not meanings:
            hall = from_hall(name)
            unknown.append(f"the space-group name {name!r}")
            if hall is not None and not halls and not name.strip().upper().startswith("P 1"):
                unknown.pop()
                halls = [name]
            continue
        resolved.append(name)
        order = order or list(meanings)
        settings = set(meanings) if settings is None else settings & set(meanings)
    if settings is not None and numbers:
        settings = {k for k in settings if setting(k).number in numbers}
    quoted = " and ".join(repr(name) for name in resolved)
    of_number = f" and the number {next(iter(numbers))}" if numbers else ""
    if settings is not None and not settings:
        return _Named(problem=f"its space-group names {quoted}{of_number} contradict each other", source=quoted)
    symmetries = [(text, from_hall(text)) for text in halls]
    unknown += [f"the Hall symbol {text!r}" for text, symmetry in symmetries if symmetry is None]
    found = [symmetry for _, symmetry in symmetries if symmetry is not None]
    if found:
        kinds = {group_number(symmetry, lattice) for symmetry in found}
        allowed = {setting(k).number for k in settings} if settings is not None else numbers
        if len(kinds) > 1 or (allowed and not kinds <= allowed):
            return _Named(
                problem=f"its Hall symbol {halls[0]!r} contradicts {quoted or 'its number'}{of_number}",
                source=f"its Hall symbol {halls[0]!r}",
                numbers=frozenset(allowed),
            )
        return _Named(
            tuple(found), frozenset(k for k in kinds if k), f"its Hall symbol {halls[0]!r}", notes=_unknown(unknown)
        )
    assumed, names_settings = False, settings is not None
    source = f"its space-group name {quoted}"
    if settings is None:
        if not numbers:
            if unknown:
                return _Named(
                    problem=f"{unknown[0]} is unknown, and nothing else gives the symmetry", source=unknown[0]
                )
            return _Named()
        number = next(iter(numbers))
        order = list(settings_of_number(number))
        settings = set(order)
        source = f"its space-group number {number}"
    codes = tags.texts(*_CODES)
    if codes and (fitting := {k for k in settings if code_of(k, codes[0])}):
        settings = fitting
    possible = [k for k in order if k in settings]
    numbers_of = frozenset(setting(k).number for k in possible)
    fitting_cell = [k for k in possible if fits_cell(of_table(k), lattice, FIT)] or possible
    # A short name means its first orientation that the cell can have; the origin stays open. A number says nothing of
    # the orientation.
    chosen = [k for k in fitting_cell if not names_settings or setting(k).hm == setting(fitting_cell[0]).hm]
    assumed = assumed or len(chosen) < len(fitting_cell)
    return _Named(tuple(of_table(k) for k in chosen), numbers_of, source, assumed, notes=_unknown(unknown))


def _unknown(texts: list[str]) -> tuple[str, ...]:
    return tuple(f"{text} is unknown and left aside" for text in texts)


def _with_operators(operators: Symmetry, named: _Named, lattice: np.ndarray) -> Stated:
    """The operators rule; what else the file says is held against them."""
    if not named.source:
        return Stated((operators,), "its operators", notes=named.notes)
    if named.problem:
        return Stated((operators,), "its operators", notes=(f"{named.problem}; its operators are used",))
    number = group_number(operators, lattice)
    same_setting = any(_same_operators(operators, one) for one in named.candidates)
    if same_setting:
        return Stated((operators,), "its operators", notes=named.notes)
    contradiction = f"its operators are those of group number {number}, not of {named.source}"
    if number in named.numbers:
        # Another setting of the same group: the operators say which, if distances do not say otherwise.
        return Stated((operators,), "its operators", is_assumed=True, notes=named.notes)
    return Stated(
        (operators,), "its operators", rivals=named.candidates, contradiction=contradiction, notes=named.notes
    )


def _same_operators(one: Symmetry, other: Symmetry) -> bool:
    if len(one) != len(other):
        return False
    return set(one.codes.tolist()) == set(other.codes.tolist())
