"""Reads every structure file below some folders here, and with pymatgen, ASE and gemmi, and says where they differ.

python -m benchmarks.readers FOLDER ...

Two readings of a file agree when element by element every atom of one has an atom of the other within 0.1 Angstrom, in
cells of the same lengths and angles; failing that, when pymatgen's StructureMatcher says so. A table of counts comes
first, then every file on which they differ, and every one that is refused here, with the reason.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.crystals.convert import cell_formula
from data.crystals.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.crystals.formats.structure_files import FileFormat, read_structure_file, structure_file_format
from data.crystals.formats.text_files import unpacked

MAX_DISTANCE_ANGSTROM = 0.1
MAX_VOLUME_CHANGE = 1e-3
MAX_MATCHED_ATOMS = 400  # StructureMatcher takes minutes beyond
MOST_MIB = 1024  # of a file unpacked


def by_pymatgen(kind: FileFormat, content: bytes) -> Crystal:
    """Reads with pymatgen, without a reduction to the primitive cell; it refuses a POSCAR that names no elements."""
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser
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
    if kind == "cif":
        return crystal_from_structure(CifParser(io.StringIO(text)).parse_structures(primitive=False)[0])
    if kind == "res":
        return crystal_from_structure(AirssProvider.from_str(text).structure)
    warnings.filterwarnings("error", category=BadPoscarWarning)
    return crystal_from_structure(Structure.from_str(text, fmt="poscar" if kind == "poscar" else "json"))


def by_ase(kind: FileFormat, content: bytes) -> Crystal:
    """Reads with ASE, of several structures the last."""
    import ase.io

    formats = {"cif": "cif", "poscar": "vasp", "xyz": "extxyz", "res": "res", "vasprun": "vasp-xml"}
    index = 0 if kind == "cif" else -1
    atoms = ase.io.read(io.StringIO(content.decode("latin-1")), format=formats[kind], index=index)
    occupancies = atoms.info.get("occupancy", {})
    if any(abs(sum(site.values()) - 1) > 1e-3 or len(site) > 1 for site in occupancies.values()):
        raise BadCrystalError("disordered")
    if atoms.cell.rank != 3:
        raise BadCrystalError("no cell")
    return Crystal(atoms.numbers.astype(np.uint8), atoms.get_scaled_positions(wrap=True), np.array(atoms.cell))


def by_gemmi(kind: FileFormat, content: bytes) -> Crystal:
    """Reads a small structure with gemmi, which reads CIF files only."""
    if kind != "cif":
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


READERS: dict[str, Callable[[FileFormat, bytes], Crystal]] = {
    "pymatgen": by_pymatgen,
    "ase": by_ase,
    "gemmi": by_gemmi,
}


@dataclass(frozen=True)
class Comparison:
    """What became of one file.

    Attributes:
        path: of the file.
        kind: format that its name tells.
        formula: of the cell as read here, or "".
        reason: why it is refused here, or "".
        verdicts: by reader, "agrees", "refuses" or how it differs; where it is refused here, what the other has read.
    """

    path: Path
    kind: FileFormat
    formula: str
    reason: str
    verdicts: dict[str, str]


def compare(path: Path) -> Comparison:
    """Reads one file with all readers."""
    kind = structure_file_format(path.name)
    assert kind is not None, path
    content = path.read_bytes()
    crystal, reason = None, ""
    try:
        crystal = read_structure_file(path.name, content).crystal
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
        verdicts[name] = f"has {cell_formula(other)}" if crystal is None else difference(crystal, other)
    return Comparison(path, kind, "" if crystal is None else cell_formula(crystal), reason, verdicts)


def difference(crystal: Crystal, other: Crystal) -> str:
    """How another reading differs, or "agrees"."""
    if cell_formula(crystal) != cell_formula(other):
        return f"has {cell_formula(other)}"
    volume, other_volume = (abs(float(np.linalg.det(lattice))) for lattice in (crystal.lattice, other.lattice))
    if abs(other_volume / volume - 1) > MAX_VOLUME_CHANGE:
        return f"has the volume {other_volume:.2f}, not {volume:.2f} cubic Angstrom"
    metrics = [lattice @ lattice.T for lattice in (crystal.lattice, other.lattice)]
    if np.allclose(*metrics, rtol=1e-3, atol=1e-2) and farthest(crystal, other) <= MAX_DISTANCE_ANGSTROM:
        return "agrees"
    if len(crystal.numbers) <= MAX_MATCHED_ATOMS and matches(crystal, other):
        return "agrees"
    return f"has an atom {farthest(crystal, other):.2f} Angstrom away"


def farthest(crystal: Crystal, other: Crystal) -> float:
    """The largest distance of an atom from the nearest of its element in the other reading, either way."""
    worst = 0.0
    for a, b in ((crystal, other), (other, crystal)):
        for number in np.unique(a.numbers):
            own, others = a.frac_coords[a.numbers == number], b.frac_coords[b.numbers == number]
            for start in range(0, len(own), 200):
                d = own[start : start + 200, None] - others[None]
                d = (d - np.rint(d)) @ crystal.lattice
                worst = max(worst, float(np.sqrt((d * d).sum(-1)).min(1).max()))
    return worst


def matches(crystal: Crystal, other: Crystal) -> bool:
    """Asks pymatgen's StructureMatcher, without a change of volume."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    pair = [Structure(c.lattice, c.numbers.tolist(), c.frac_coords) for c in (crystal, other)]
    return StructureMatcher(primitive_cell=False, scale=False, ltol=0.01, stol=0.05, angle_tol=0.5).fit(*pair)


def structure_files(folder: Path) -> list[Path]:
    """Lists all structure files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and structure_file_format(path.name))


def main() -> None:
    """Prints the table and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    comparisons = [compare(path) for folder in parser.parse_args().folders for path in structure_files(folder)]
    counts: Counter[tuple[str, str, str]] = Counter()
    lines = []
    for comparison in comparisons:
        here = "refused" if comparison.reason else "read"
        counts[comparison.kind, here, ""] += 1
        differs = False
        for name, verdict in comparison.verdicts.items():
            is_plain = verdict in ("agrees", "refuses")
            counts[comparison.kind, here, f"{name} {verdict if is_plain else 'differs'}"] += 1
            differs = differs or not is_plain
        others = "; ".join(f"{name} {verdict}" for name, verdict in comparison.verdicts.items())
        if comparison.reason:
            lines.append(f"refused  {comparison.path}\n    {comparison.reason}\n    {others}")
        elif differs:
            lines.append(f"differs  {comparison.path}: {comparison.formula}\n    {others}")
    for (kind, here, verdict), count in sorted(counts.items()):
        print(f"{kind:8} {here + ' here':13} {verdict:20} {count:6}")
    print("\n" + "\n".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
