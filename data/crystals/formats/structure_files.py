"""Reads a structure file of any format as one crystal, for sweeps, the cache and `models/predict.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from data.crystals.contacts import far_apart
from data.crystals.crystal import BadCrystalError, ReadCrystal
from data.crystals.formats.text_files import unpacked

FileFormat = Literal["cif", "poscar", "res", "xyz", "json", "vasprun"]

_PACKED = (".gz", ".bz2", ".xz")
_NAMES: tuple[tuple[str, FileFormat], ...] = (
    ("*.cif", "cif"),
    ("*.mcif", "cif"),
    ("*.res", "res"),
    ("*.xyz", "xyz"),
    ("*.extxyz", "xyz"),
    ("*vasprun*.xml", "vasprun"),
    ("*.json", "json"),
    ("*.vasp", "poscar"),
    ("*.poscar", "poscar"),
    ("*.contcar", "poscar"),
    ("poscar", "poscar"),
    ("contcar", "poscar"),
)
# Names that people make of VASP's: POSCAR_relaxed and POSCAR.mp-1 are structures, poscar_list.csv and POSCAR~ are not.
_LOOSE_NAMES: tuple[tuple[str, FileFormat], ...] = (
    ("*poscar*", "poscar"),
    ("*contcar*", "poscar"),
    ("*vasprun.xml*", "vasprun"),
)
_NO_STRUCTURES = (
    "csv tsv md rst py ipynb sh yaml yml toml xml html pdf png jpg svg log out zip tar tgz parquet h5 hdf5 npy npz pkl "
    "db xlsx rb c cpp h f f90 js jl m bak orig swp old tmp"
).split()


@dataclass(frozen=True)
class _FormatFacts:
    """Names a format in messages, and limits the MiB of a file of it."""

    title: str
    most_mib: int


_FORMAT_FACTS: dict[FileFormat, _FormatFacts] = {
    "cif": _FormatFacts("CIF", 190),
    "poscar": _FormatFacts("POSCAR", 64),
    "res": _FormatFacts("RES", 64),
    "xyz": _FormatFacts("extended XYZ", 64),
    "json": _FormatFacts("JSON", 64),
    "vasprun": _FormatFacts("vasprun.xml", 1024),
}


def structure_file_format(name: str) -> FileFormat | None:
    """Tells the format by the name of a file, packed or not; None where it tells none."""
    lower = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
    lower = next((lower.removesuffix(ending) for ending in _PACKED if lower.endswith(ending)), lower)
    if lower.startswith(".") or lower.endswith(("~", "#")):  # hidden, or an editor's copy
        return None
    is_other = lower.rsplit(".", 1)[-1] in _NO_STRUCTURES
    names = _NAMES if is_other else _NAMES + _LOOSE_NAMES
    return next((kind for pattern, kind in names if fnmatchcase(lower, pattern)), None)


def read_structure_file(name: str, content: bytes) -> ReadCrystal:
    """Reads the one structure of a file.

    Args:
        name: of the file, which tells its format; endings such as `.gz` may follow.
        content: of the file, packed or not.

    Raises:
        BadCrystalError: the name tells no format, or the content is not one whole, ordered crystal of it.
    """
    kind = structure_file_format(name)
    if kind is None:
        raise BadCrystalError(
            f"{name}: no structure file by its name; expected .cif, .mcif, .vasp, .poscar, POSCAR..., CONTCAR..., "
            ".res, .xyz, .extxyz, .json or vasprun.xml, or one of these with .gz, .bz2 or .xz"
        )
    about = _FORMAT_FACTS[kind]
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite, which `quality.check_crystal` refuses
            read = _reader(kind)(unpacked(content, about.most_mib))
            note = far_apart(read.crystal)
            return replace(read, notes=(*read.notes, note)) if note else read
    except BadCrystalError as error:
        raise BadCrystalError(f"{name}: not readable as {about.title}: {error}") from None
    except MemoryError:
        raise BadCrystalError(f"{name}: not readable as {about.title}: it takes more memory than there is") from None
    except Exception as error:  # one row that nobody has thought of must not end the reading of a million others
        raise BadCrystalError(f"{name}: not readable as {about.title}: {type(error).__name__}: {error}") from error


def _reader(kind: FileFormat) -> Callable[[bytes], ReadCrystal]:
    """Imports the reader of a format; each needs libraries that the others need not load."""
    if kind == "cif":
        from data.crystals.formats.cif.reader import read_cif

        return read_cif
    if kind == "poscar":
        from data.crystals.formats.poscar import read_poscar

        return read_poscar
    if kind == "res":
        from data.crystals.formats.res import read_res

        return read_res
    if kind == "xyz":
        from data.crystals.formats.extended_xyz import read_extended_xyz

        return read_extended_xyz
    if kind == "json":
        from data.crystals.formats.structure_json import read_structure_json

        return read_structure_json
    from data.crystals.formats.vasprun import read_vasprun

    return read_vasprun
