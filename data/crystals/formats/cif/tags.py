"""Collects the items of one block of a CIF file by name, however it is spelled. Called by `reader.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gemmi import cif

from data.crystals.crystal import BadCrystalError

_READ = (
    "_cell_", "_atom_site_", "_symmetry_", "_space_group_", "_chemical_formula_", "_chemical_name_",
    "_exptl_crystal_density_",
)  # fmt: skip
_MAX_ROWS = 50_000


@dataclass(frozen=True)
class Tags:
    """Values by name; names are in lower case with `.` as `_`, so that CIF 1 and CIF 2 names are the same.

    Attributes:
        name: of the block.
        values: of each item; text that is not given (`?`, `.`, empty) is None.
    """

    name: str
    values: dict[str, list[str | None]]

    def text(self, *names: str) -> str | None:
        """The first value given under one of these names."""
        return next(iter(self.texts(*names)), None)

    def texts(self, *names: str) -> list[str]:
        """All values given under these names, without repeats."""
        values = (value for name in names for value in self.values.get(name.lower(), ()) if value is not None)
        return list(dict.fromkeys(values))

    def positive(self, name: str) -> float | None:
        """Reads a number above zero; None for anything else."""
        number = number_of(self.text(name))
        return number if number is not None and number > 0 else None

    def column(self, name: str, length: int) -> list[str | None] | None:
        """The values of a loop's column, None where it is missing or empty.

        Raises:
            BadCrystalError: the loop has `length` rows and this is no column of it.
        """
        values = self.values.get(name.lower())
        if values is None or all(value is None for value in values):
            return None
        if len(values) != length:
            raise BadCrystalError(f"{name} has {len(values)} values; expected one for each of the {length} sites")
        return values


def number_of(text: str | None) -> float | None:
    """The number of a text such as `0.123(4)`, None where it is none."""
    if text is None:
        return None
    number = cif.as_number(text.strip())
    return number if math.isfinite(number) else None


def read_tags(block: cif.Block) -> Tags:
    """The items of a block that this reader reads.

    Raises:
        BadCrystalError: one name has several values that differ.
    """
    values: dict[str, list[str | None]] = {}
    items: Iterable[Any] = block  # of type cif.Item; gemmi's stubs say object
    for item in items:
        names = item.loop.tags if item.loop is not None else [item.pair[0]] if item.pair is not None else []
        keys = [name.lower().replace(".", "_") for name in names]
        if not any(key.startswith(_READ) for key in keys):
            continue  # reflections, by the million
        if item.loop is not None and item.loop.length() > _MAX_ROWS:
            raise BadCrystalError(f"the loop of {names[0]} has {item.loop.length()} rows; at most {_MAX_ROWS} are read")
        cells = item.loop.values if item.loop is not None else [item.pair[1]]
        for k, (name, key) in enumerate(zip(names, keys, strict=True)):
            texts = [_plain(cell) for cell in cells[k :: len(names)]]
            if "" in cells[k :: len(names)]:
                raise BadCrystalError(f"{name} has no value")
            if key in values and any(texts) and any(values[key]) and values[key] != texts:
                raise BadCrystalError(f"{name} is there twice, with different values")
            if key not in values or any(texts):
                values[key] = texts
    return Tags(block.name, values)


def _plain(cell: str) -> str | None:
    if cell in ("", "?", "."):
        return None
    text = cif.as_string(cell).strip() if cell[:1] in "'\";" else cell
    return None if text in ("", "?", ".") else text
