"""Reads every POSCAR, .res, .xyz, .json and vasprun.xml below some folders here, and with pymatgen and ASE.

python -m benchmarks.structure_files FOLDER ...

CIF files are compared by `benchmarks/readers.py`, which also says when two readings agree. A table of counts comes
first, then every file on which the readers differ, and every one that is refused here, with the reason.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.readers import difference, formula
from data.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.structure_files import FileFormat, read_structure_file, structure_file_format
from data.text_files import unpacked

MOST_MIB = 1024


def by_pymatgen(kind: FileFormat, content: bytes) -> Crystal:
    """Pymatgen's reading; a POSCAR without the names of elements is one that it refuses."""
    from pymatgen.core import Structure
    from pymatgen.io.res import AirssProvider
    from pymatgen.io.vasp.inputs import BadPoscarWarning
    from pymatgen.io.vasp.outputs import Vasprun

    if kind == "vasprun":
        with tempfile.NamedTemporaryFile(suffix=".xml") as file:
            file.write(content)
            file.flush()
            run = Vasprun(file.name, parse_dos=False, parse_eigen=False, parse_potcar_file=False)
        return crystal_from_structure(run.final_structure)
    text = content.decode("latin-1")
    if kind == "res":
        return crystal_from_structure(AirssProvider.from_str(text).structure)
    warnings.filterwarnings("error", category=BadPoscarWarning)
    return crystal_from_structure(Structure.from_str(text, fmt="poscar" if kind == "poscar" else "json"))


def by_ase(kind: FileFormat, content: bytes) -> Crystal:
    """ASE's reading."""
    import ase.io

    formats = {"poscar": "vasp", "xyz": "extxyz", "res": "res", "vasprun": "vasp-xml"}
    atoms = ase.io.read(io.StringIO(content.decode("latin-1")), format=formats[kind], index=-1)
    if not atoms.cell.rank == 3:
        raise BadCrystalError("no cell")
    return Crystal(atoms.numbers.astype(np.uint8), atoms.get_scaled_positions(wrap=False), np.array(atoms.cell))


READERS: dict[str, Callable[[FileFormat, bytes], Crystal]] = {"pymatgen": by_pymatgen, "ase": by_ase}


def compare(path: Path) -> tuple[Crystal | None, str, dict[str, str]]:
    """What is read here, or the reason why not; and by reader, "agrees", "refuses", or what it has read."""
    kind = structure_file_format(path.name)
    assert kind is not None, path
    content = path.read_bytes()
    ours, reason = None, ""
    try:
        ours = read_structure_file(path.name, content).crystal
        content = unpacked(content, MOST_MIB)
    except BadCrystalError as error:
        reason = str(error)
    verdicts = {}
    for name, reader in READERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = reader(kind, content)
        except Exception:  # noqa: BLE001 - other readers raise whatever they meet
            verdicts[name] = "refuses"
            continue
        verdicts[name] = f"has {formula(other)}" if ours is None else difference(ours, other)
    return ours, reason, verdicts


def main() -> None:
    """Print the table and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    files = [
        path
        for folder in parser.parse_args().folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and structure_file_format(path.name) not in (None, "cif")
    ]
    counts: Counter[tuple[str, str, str]] = Counter()
    lines = []
    for path in files:
        ours, reason, verdicts = compare(path)
        kind = structure_file_format(path.name) or ""
        here = "refused" if ours is None else "read"
        counts[kind, here, ""] += 1
        for name, verdict in verdicts.items():
            counts[kind, here, f"{name} {verdict if verdict in ('agrees', 'refuses') else 'differs'}"] += 1
        others = "; ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
        if ours is None:
            lines.append(f"refused  {path}\n    {reason}\n    {others}")
        elif any(verdict not in ("agrees", "refuses") for verdict in verdicts.values()):
            lines.append(f"differs  {path}: {formula(ours)}\n    {others}")
    for (kind, here, verdict), count in sorted(counts.items()):
        print(f"{kind:8} {here + ' here':13} {verdict:20} {count:6}")
    print("\n" + "\n".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
