"""Finds the settings of space groups that a Hall symbol, a name or a number can mean, in gemmi's table.

A name that several settings share (`F d -3 m` has two origins) gives several; `reader.py` lets the rest of the file
decide.
"""

from __future__ import annotations

import re
import warnings
from functools import cache, lru_cache

import gemmi
import numpy as np

from data.crystals.formats.cif.symmetry import Symmetry, table_entry


@cache
def of_table(index: int) -> Symmetry:
    """The group at a position of the table."""
    entry = _table()[index]
    return _of_group_ops(entry.operations(), entry.xhm(), entry.number)


def _of_group_ops(group: gemmi.GroupOps, name: str, number: int | None) -> Symmetry:
    operators = list(group)
    rotations = np.array([operator.rot for operator in operators], dtype=np.int64) // gemmi.Op.DEN
    translations = np.array([operator.tran for operator in operators], dtype=np.float64) / gemmi.Op.DEN % 1.0
    return Symmetry(name, rotations, translations, number)


@cache
def _table() -> list[gemmi.SpaceGroup]:
    return list(gemmi.spacegroup_table())


@lru_cache(1024)
def from_hall(symbol: str) -> Symmetry | None:
    """The group of a Hall symbol, None where it is none."""
    text = " ".join(symbol.replace("_", " ").split())
    try:
        group = gemmi.symops_from_hall(text)
    except (RuntimeError, ValueError):
        return None
    if len(group) > 192:
        return None
    symmetry = _of_group_ops(group, f"the Hall symbol {symbol!r}", None)
    table = table_entry(symmetry)
    return Symmetry(symmetry.name, symmetry.rotations, symmetry.translations, table.number if table else None)


_ORIGIN = {"s": "1", "z": "2"}  # in names of the ICSD: origin at the highest symmetry, or at a centre
_SUFFIX = re.compile(r"(?::|\(?(?:origin(?:choice)?|choice|o)[:=]?)(-?[a-c]?[1-6]|[hrsz]|hr|rh)\)?$")


def _key(name: str) -> str:
    """Takes off a Hermann-Mauguin name what is only layout: case, blanks, underscores, marks of subscripts."""
    text = re.sub(r"[\s_'\"\\{}$~]", "", name.lower())
    return re.sub(r"(?<=[2346])\(([1-5])\)", r"\1", text)


@cache
def _names() -> dict[str, list[int]]:
    """Positions in the table of all settings that a name can mean, the conventional one first."""
    full: dict[str, list[int]] = {}
    short_names: dict[str, list[int]] = {}
    for position, entry in enumerate(_table()):
        full.setdefault(_key(entry.hm), []).append(position)
        words = entry.hm.split()
        spellings = []
        if entry.number >= 195:  # F m 3 m: old symbols of the cubic groups have no bar on the 3
            spellings.append(entry.hm.replace("-3", "3", 1))
        if 3 <= entry.number <= 15:
            spellings.append(" ".join(word for word in words if word != "1"))
        if entry.number in (39, 41, 64, 67, 68):  # renamed in 1992: C m c e for C m c a
            axis = "ABC".index(words[0]) + 1
            spellings.append(" ".join([*words[:axis], "e", *words[axis + 1 :]]))
        if entry.ext == "H":
            spellings.append("H" + entry.hm[1:])
        for spelling in spellings:
            short_names.setdefault(_key(spelling), []).append(position)
    return short_names | full


@cache
def _full_names() -> dict[str, list[int]]:
    """Lists the positions of full names, such as `P 21/n 21/m 21/a`, which spglib has."""
    import spglib

    positions = {(entry.number, entry.hall): k for k, entry in reversed(list(enumerate(_table())))}
    names: dict[str, list[int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it is going to report errors
        kinds = [spglib.get_spacegroup_type(k) for k in range(1, 531)]
    for kind in kinds:
        if kind is None:
            continue
        entry = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(kind.hall_symbol))
        if entry is not None:
            names.setdefault(_key(kind.international_full), []).append(positions[entry.number, entry.hall])
    return names


@lru_cache(1024)
def settings_of_name(name: str) -> tuple[int, ...]:
    """Positions of the settings that a Hermann-Mauguin name can mean, () for a name that is none."""
    return _settings_in(_names(), _key(name)) or _settings_in(_full_names(), _key(name))


def _settings_in(names: dict[str, list[int]], key: str) -> tuple[int, ...]:
    if key in names:
        return tuple(names[key])
    if (match := _SUFFIX.search(key)) is not None:
        base, code = key[: match.start()], match[1]
    else:
        base, code = key[:-1], key[-1:]
        if code not in ("h", "r", "s", "z"):
            return ()
    return tuple(k for k in names.get(base, ()) if code_of(k, code))


def code_of(position: int, code: str) -> bool:
    """Says whether a setting has this code: an origin, H or R, or the axes and cell choice."""
    entry = _table()[position]
    code = _ORIGIN.get(code.lower(), code.lower()).strip()
    if code in ("hr", "rh"):
        return entry.ext in ("H", "R")
    if entry.ext in ("1", "2", "H", "R"):
        return code in (entry.ext.lower(), entry.ext.lower() + entry.qualifier, entry.qualifier + entry.ext.lower())
    return code == entry.qualifier or (code == "1" and entry.number >= 16 and entry.is_reference_setting())


def settings_of_number(number: int) -> tuple[int, ...]:
    """Positions of all settings of a space-group type."""
    return tuple(k for k, entry in enumerate(_table()) if entry.number == number)


def setting(position: int) -> gemmi.SpaceGroup:
    """The entry of gemmi's table."""
    return _table()[position]
