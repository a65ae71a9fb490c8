"""Reads every CIF and POSCAR file of some folders here, and with pymatgen, ASE and gemmi, and says where they differ.

python -m benchmarks.readers FOLDER ...

Readers agree on a file when element by element every atom of one has an atom of the other within 0.1 Angstrom, in
cells of the same lengths and angles; failing that, when pymatgen's StructureMatcher says so. A table of counts comes
first, then every file on which they differ, and every one that is refused here, with the reason.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.structure_files import read_structure_file, structure_file_format

MAX_DISTANCE_ANGSTROM = 0.1
MAX_VOLUME_CHANGE = 1e-3
MAX_MATCHED_ATOMS = 400  # StructureMatcher takes minutes beyond


def by_pymatgen(content: bytes, kind: str) -> Crystal:
    """Pymatgen's reading, without a reduction to the primitive cell."""
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

    if kind == "poscar":
        return crystal_from_structure(Structure.from_str(content.decode("latin-1"), fmt="poscar"))
    parser = CifParser(io.StringIO(content.decode("latin-1")))
    return crystal_from_structure(parser.parse_structures(primitive=False)[0])


def by_ase(content: bytes, kind: str) -> Crystal:
    """ASE's reading."""
    import ase.io

    atoms = ase.io.read(io.StringIO(content.decode("latin-1")), format="vasp" if kind == "poscar" else "cif")
    occupancies = atoms.info.get("occupancy", {})
    if any(abs(sum(site.values()) - 1) > 1e-3 or len(site) > 1 for site in occupancies.values()):
        raise BadCrystalError("disordered")
    return Crystal(atoms.numbers.astype(np.uint8), atoms.get_scaled_positions(wrap=True), np.array(atoms.cell))


def by_gemmi(content: bytes, kind: str) -> Crystal:
    """Reads a small structure as gemmi does, which reads CIF files only."""
    if kind == "poscar":
        raise BadCrystalError("no CIF file")
    import gemmi

    document = gemmi.cif.read_string(content.decode("latin-1"), check_level=0)
    for block in document:
        small = gemmi.make_small_structure_from_block(block)
        sites = small.get_all_unit_cell_sites()
        if not len(sites):
            continue
        if any(abs(site.occ - 1) > 1e-3 for site in sites):
            raise BadCrystalError("disordered")
        lattice = np.array(small.cell.orth.mat.tolist()).T
        numbers = np.array([site.element.atomic_number for site in sites], dtype=np.uint8)
        return Crystal(numbers, np.array([site.fract.tolist() for site in sites]), lattice)
    raise BadCrystalError("no sites")


READERS: dict[str, Callable[[bytes, str], Crystal]] = {"pymatgen": by_pymatgen, "ase": by_ase, "gemmi": by_gemmi}


@dataclass(frozen=True)
class Comparison:
    """What became of one file.

    Attributes:
        path: of the file.
        formula: as read here, or "".
        reason: why it is refused here, or "".
        notes: of the reading here.
        verdicts: by reader, "agrees", "refuses" or how it differs; where it is refused here, what the other has read.
    """

    path: Path
    formula: str
    reason: str
    notes: tuple[str, ...]
    verdicts: dict[str, str]


def compare(path: Path) -> Comparison:
    """Read one file with all readers."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    kind = structure_file_format(path.name) or "cif"
    ours: Crystal | None = None
    reason, notes = "", ()
    try:
        read = read_structure_file(path.name.removesuffix(".gz"), content)
        ours, notes = read.crystal, read.notes
    except BadCrystalError as error:
        reason = str(error)
    verdicts = {}
    for name, reader in READERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = reader(content, kind)
        except Exception:  # noqa: BLE001 - other readers raise whatever they meet
            verdicts[name] = "refuses"
            continue
        verdicts[name] = formula(other) if ours is None else difference(ours, other)
    return Comparison(path, "" if ours is None else formula(ours), reason, notes, verdicts)


def formula(crystal: Crystal) -> str:
    """The content of the cell, in the order of the atomic numbers."""
    from ase.data import chemical_symbols

    counts = Counter(crystal.numbers.tolist())
    return " ".join(f"{chemical_symbols[z]}{counts[z]}" for z in sorted(counts))


def difference(ours: Crystal, other: Crystal) -> str:
    """How two readings differ, or "agrees"."""
    if formula(ours) != formula(other):
        return f"has {formula(other)}"
    volumes = [abs(float(np.linalg.det(one.lattice))) for one in (ours, other)]
    if abs(volumes[1] / volumes[0] - 1) > MAX_VOLUME_CHANGE:
        return f"has the volume {volumes[1]:.2f}, not {volumes[0]:.2f} cubic Angstrom"
    metric = [one.lattice @ one.lattice.T for one in (ours, other)]
    if np.allclose(*metric, rtol=1e-3, atol=1e-2) and farthest(ours, other) <= MAX_DISTANCE_ANGSTROM:
        return "agrees"
    if len(ours.numbers) <= MAX_MATCHED_ATOMS and matches(ours, other):
        return "agrees"
    return f"has an atom {farthest(ours, other):.2f} Angstrom away"


def farthest(ours: Crystal, other: Crystal) -> float:
    """The largest distance of an atom from the nearest of its element in the other reading, either way."""
    worst = 0.0
    for a, b in ((ours, other), (other, ours)):
        for number in np.unique(a.numbers):
            own, others = a.frac_coords[a.numbers == number], b.frac_coords[b.numbers == number]
            for start in range(0, len(own), 200):
                d = own[start : start + 200, None] - others[None]
                d = (d - np.rint(d)) @ ours.lattice
                worst = max(worst, float(np.sqrt((d * d).sum(-1)).min(1).max()))
    return worst


def matches(ours: Crystal, other: Crystal) -> bool:
    """Pymatgen's StructureMatcher on both, without a change of volume."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    pair = [Structure(one.lattice, one.numbers.tolist(), one.frac_coords) for one in (ours, other)]
    return StructureMatcher(primitive_cell=False, scale=False, ltol=0.01, stol=0.05, angle_tol=0.5).fit(*pair)


def structure_files(folder: Path) -> list[Path]:
    """All CIF and POSCAR files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if structure_file_format(path.name) in ("cif", "poscar"))


def main() -> None:
    """Print the table and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    comparisons = [compare(path) for folder in parser.parse_args().folders for path in structure_files(folder)]
    read = [one for one in comparisons if not one.reason]
    print(
        f"{len(comparisons)} files: {len(read)} read here ({sum(bool(one.notes) for one in read)} of them with notes), "
        f"{len(comparisons) - len(read)} refused"
    )
    print(f"{'':10}{'agrees':>10}{'differs':>10}{'refuses':>10}{'reads what is refused here':>30}")
    for name in READERS:
        verdicts = Counter(
            one.verdicts[name] if one.verdicts[name] in ("agrees", "refuses") else "differs" for one in read
        )
        more = sum(one.verdicts[name] != "refuses" for one in comparisons if one.reason)
        print(f"{name:10}{verdicts['agrees']:10}{verdicts['differs']:10}{verdicts['refuses']:10}{more:30}")
    for one in comparisons:
        differing = {name: text for name, text in one.verdicts.items() if text not in ("agrees", "refuses")}
        if one.reason:
            others = "; ".join(f"{name}: {text}" for name, text in differing.items()) or "so do the others"
            print(f"\nrefused  {one.path}\n    {one.reason}\n    {others}")
        elif differing:
            print(f"\ndiffers  {one.path}: {one.formula}")
            print("\n".join(f"    {name} {text}" for name, text in differing.items()))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
