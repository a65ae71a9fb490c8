"""Makes the demo task, crystals labelled by another CHGNet, so that sweeps run without a download.

Read by `read_demo` in `data/crystals/layouts/readers.py`. Needs the anchors of CHGNet. About 3 minutes on one core:

    python data/demo/make_demo.py
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from chgnet.model import CHGNet
    from pymatgen.core import Structure

DEMO_FILE = Path(__file__).with_name("demo.parquet")
ANCHORS_FILE = Path(__file__).parents[2] / "models/crystals/chgnet/anchors.json"
LABEL_WEIGHTS = "r2scan"

MOST_ATOMS = 14
VARIANTS = 2  # substituted versions of each prototype, besides the prototype itself
SEED = 20
# Lattice constants tried, relative to the prototype's rescaled by covalent radii.
SCAN = 1.04 ** np.arange(-5, 9)
STRAINS = (0.92, 0.94, 1.06, 1.08)  # of the stablest lattice constant; one of them makes a second row
HIGHEST_LABEL, LOWEST_LABEL = 1.5, -4.5  # eV/atom; beyond, the labelling model is out of its domain
CLOSEST = 0.7  # shortest distance allowed, relative to the sum of the two covalent radii
SAME_LABEL, SAME_VOLUME = 2e-3, 0.01  # eV/atom and relative: equal formulas closer than this are one crystal

# Elements that stand for each other, as a group of the periodic table; the rest keep their place.
GROUPS = (
    ("H",), ("Li", "Na", "K", "Rb", "Cs"), ("Be",), ("Mg", "Zn", "Cd"), ("Ca", "Sr", "Ba"), ("B",),
    ("Al", "Ga", "In", "Tl"), ("C",), ("Si", "Ge", "Sn", "Pb"), ("N",), ("P", "As", "Sb", "Bi"), ("O",),
    ("S", "Se", "Te"), ("F",), ("Cl", "Br", "I"), ("Sc", "Y", "La"), ("Ti", "Zr", "Hf"), ("V", "Nb", "Ta"),
    ("Cr", "Mo", "W"), ("Mn", "Re"), ("Fe", "Ru", "Os"), ("Co", "Rh", "Ir"), ("Ni", "Pd", "Pt"),
    ("Cu", "Ag", "Au"), ("Hg",), ("Ce", "Pr", "Nd", "Sm"), ("Gd", "Tb", "Dy", "Ho", "Er"), ("Th", "U"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One crystal of the demo: its prototype's AFLOW label and its formation energy in eV/atom."""

    prototype: str
    structure: Structure
    e_form: float


def candidates(seed: int) -> Iterator[tuple[str, Structure, float]]:
    """Small prototypes and group-substituted versions of them, at the volume that covalent radii suggest.

    Yields:
        AFLOW label, structure, and the strain of the second row that it gives.
    """
    from pymatgen.core import Structure

    chance = random.Random(seed)
    siblings = {element: group for group in GROUPS for element in group}
    packed = resources.files("pymatgen.analysis.prototypes") / "aflow_prototypes.json.gz"
    prototypes = json.loads(gzip.decompress(packed.read_bytes()))
    for prototype in sorted(prototypes, key=lambda entry: (entry["tags"]["aflow"], entry["tags"]["mineral"] or "")):
        structure = Structure.from_dict(prototype["snl"])
        if not structure.is_ordered or len(structure) > MOST_ATOMS:
            continue
        structure.remove_oxidation_states()
        elements = sorted(structure.symbol_set)
        if not all(element in siblings for element in elements):
            continue
        combinations = {tuple(elements)}
        yield prototype["tags"]["aflow"], structure, chance.choice(STRAINS)
        for _ in range(VARIANTS):
            chosen = tuple(chance.choice(siblings[element]) for element in elements)
            if chosen in combinations or len(set(chosen)) < len(chosen):
                continue
            combinations.add(chosen)
            variant = structure.copy()
            variant.replace_species(dict(zip(elements, chosen, strict=True)))
            factor = (_covalent_volume(variant) / _covalent_volume(structure)) ** (1 / 3)
            yield prototype["tags"]["aflow"], _scaled(variant, factor), chance.choice(STRAINS)


def label(model: CHGNet, references: dict[str, float], structures: list[Structure]) -> np.ndarray:
    """Formation energies under the model against the elements under the same model.

    Args:
        model: stock CHGNet with the weights that `references` were made with.
        references: energy of each pure element, eV/atom.
        structures: at least two.

    Returns:
        eV/atom, float64, shape (n_structures,).
    """
    predictions = model.predict_structure(structures, task="e", batch_size=16)
    totals = np.array([prediction["e"] for prediction in predictions], dtype=np.float64)  # type: ignore[index]
    return totals - [np.mean([references[site.specie.symbol] for site in one]) for one in structures]


def read_references() -> dict[str, float]:
    """Energy of each element under the labelling weights, eV/atom, from models/crystals/chgnet/anchors.json."""
    return json.loads(ANCHORS_FILE.read_text())[LABEL_WEIGHTS]


def make_rows(model: CHGNet, references: dict[str, float]) -> list[Row]:
    """All rows of the demo: each candidate at its stablest volume, and once strained."""
    rows: list[Row] = []
    for prototype, structure, strain in candidates(SEED):
        scan = [
            scaled_structure
            for scaled_structure in (_scaled(structure, factor) for factor in SCAN)
            if _closeness(scaled_structure) >= CLOSEST
        ]
        if len(scan) < 3:
            continue
        k = int(label(model, references, scan).argmin())
        if k in (0, len(scan) - 1):  # no stable volume: nothing that the label could mean
            continue
        pair = [scan[k], _scaled(scan[k], strain)]
        for scaled_structure, e_form in zip(pair, label(model, references, pair), strict=True):
            row = Row(prototype, scaled_structure, round(float(e_form), 5))
            is_plausible = _closeness(scaled_structure) >= CLOSEST and LOWEST_LABEL <= row.e_form <= HIGHEST_LABEL
            if is_plausible and not any(_is_same(row, other) for other in rows):
                rows.append(row)
    return rows


def write_rows(rows: list[Row], path: Path) -> None:
    """Write the rows as one Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": pa.array([f"demo-{k:04}" for k in range(1, len(rows) + 1)]),
        "formula": pa.array([row.structure.composition.reduced_formula for row in rows]),
        "prototype": pa.array([row.prototype for row in rows]),
        "numbers": pa.array([list(row.structure.atomic_numbers) for row in rows], pa.list_(pa.uint8())),
        "frac_coords": pa.array([row.structure.frac_coords.ravel() for row in rows], pa.list_(pa.float64())),
        "lattice": pa.array([row.structure.lattice.matrix.ravel() for row in rows], pa.list_(pa.float64())),
        "e_form": pa.array([row.e_form for row in rows], pa.float64()),
    }
    about = {
        "labels": "Formation energies (eV/atom) predicted by CHGNet's r2SCAN weights, not DFT",
        "made_by": "data/demo/make_demo.py",
        "versions": json.dumps({name: metadata.version(name) for name in ("chgnet", "pymatgen", "torch")}),
    }
    aside = path.with_suffix(".parquet.aside")
    table = pa.table(columns).replace_schema_metadata(about)
    pq.write_table(table, aside, compression="zstd", compression_level=19)
    aside.replace(path)


def _scaled(structure: Structure, factor: float) -> Structure:
    from pymatgen.core import Structure

    return Structure(structure.lattice.matrix * factor, structure.species, structure.frac_coords)


def _radii(structure: Structure) -> np.ndarray:
    from ase.data import covalent_radii

    return covalent_radii[list(structure.atomic_numbers)]


def _covalent_volume(structure: Structure) -> float:
    return float((_radii(structure) ** 3).sum())


def _closeness(structure: Structure) -> float:
    """Smallest distance between two atoms relative to the sum of their covalent radii."""
    centres, neighbors, _, distances = structure.get_neighbor_list(5.0)
    if len(centres) < len(structure):
        return np.inf
    radii = _radii(structure)
    return float((distances / (radii[centres] + radii[neighbors])).min())


def _is_same(row: Row, other: Row) -> bool:
    one, two = row.structure, other.structure
    return (
        one.composition.reduced_formula == two.composition.reduced_formula
        and abs(row.e_form - other.e_form) < SAME_LABEL
        and abs(one.volume / len(one) * len(two) / two.volume - 1) < SAME_VOLUME
    )


def main() -> None:
    """Make the demo and say what it holds."""
    from chgnet.model import CHGNet

    model = CHGNet.load(model_name=LABEL_WEIGHTS, use_device="cpu", verbose=False)
    rows = make_rows(model, read_references())
    write_rows(rows, DEMO_FILE)
    n_atoms = np.mean([len(row.structure) for row in rows])
    labels = np.array([row.e_form for row in rows])
    print(
        f"{len(rows)} crystals of {len({row.prototype for row in rows})} prototypes, {n_atoms:.1f} atoms on "
        f"average, e_form {labels.min():.2f} to {labels.max():.2f} eV/atom; "
        f"{DEMO_FILE.stat().st_size / 1000:.0f} kB in {DEMO_FILE}"
    )


if __name__ == "__main__":
    main()
