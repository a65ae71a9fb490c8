"""Elemental anchors: what CHGNet's own weights give for each pure element, the prior of a formation energy.

A formation energy is predicted as E_chgnet per atom - sum over elements of fraction * reference; the
references are fitted on training rows, and an element with few rows, or none, falls back to its anchor. No
label enters the anchors. Recompute `anchors.json` (a few minutes on one core):

    python -m models.crystals.chgnet.anchors
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from importlib import metadata, resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from chgnet.model import CHGNet
    from pymatgen.core import Structure

ANCHORS_FILE = Path(__file__).with_name("anchors.json")
N_ELEMENTS = 94  # CHGNet embeds H (1) to Pu (94)
PRETRAINED_WEIGHTS = ("0.3.0", "0.2.0", "r2scan")

# The structures each element is scanned in, by Strukturbericht symbol (alpha boron has none and goes by its
# AFLOW label): what it is known in near zero temperature, not whatever CHGNet likes best. Given the choice,
# the r2SCAN weights put phosphorus in selenium's chains at -47 eV/atom, neodymium in graphite sheets at -63.
CLOSE_PACKED = ("A1", "A2", "A3", "A3'")  # fcc, bcc, hcp, double hcp: every element not named below
KNOWN_STRUCTURES = {
    "B": ("A_hR12_166_2h",),
    "C": ("A9", "A4"),  # graphite, diamond
    "Si": ("A4",),
    "P": ("A17",),
    "S": ("A8",),  # chains, for rings of eight are 32 atoms
    "Ga": ("A11",),
    "Ge": ("A4",),
    "As": ("A7",),
    "Se": ("A8",),
    "In": ("A6",),
    "Sn": ("A4", "A5"),
    "Sb": ("A7",),
    "Te": ("A8",),
    "Bi": ("A7",),
    "Po": ("A_h",),  # simple cubic
    "U": ("A20", "A2"),
}
BOND_LENGTHS = {"H": 0.74, "N": 1.1, "O": 1.21, "F": 1.41, "Cl": 1.99, "Br": 2.28, "I": 2.67}  # Angstrom, X2

# A scan covers these multiples of the measured length: the bond of a molecule, the cube root of the volume
# per atom of a crystal. Diamond is at 0.87 (the volume is graphite's). Beyond, CHGNet leaves its training
# domain: weights 0.2.0 put crushed lead at -36 eV/atom, r2SCAN's stretched tungsten at -381.
NARROWEST, WIDEST = 0.84, 1.18
COARSE_STEP, FINE_STEP = 1.02, 1.004
UNMEASURED_VOLUMES = {"At": 38.0, "Fr": 117.0}  # Angstrom^3, guessed from their neighbours in the table
CUTOFF_MARGIN = 0.05  # Angstrom; an atom without a neighbour inside the cutoff makes stock CHGNet raise
MOLECULE_BOX = 15.0  # Angstrom, more than twice every cutoff


class NoAnchorsError(KeyError):
    """Anchors were asked for weights that have none."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message quoted


def load_anchors(weights: str) -> np.ndarray:
    """Energies of the pure elements under pretrained CHGNet weights.

    Args:
        weights: "0.3.0", "0.2.0" or "r2scan".

    Returns:
        Total energy (CHGNet's own atomic reference included), eV/atom, float64, shape (94,), at Z - 1.

    Raises:
        NoAnchorsError: the weights have no anchors, as randomly initialised ones.
    """
    if weights not in PRETRAINED_WEIGHTS:
        raise NoAnchorsError(
            f"no elemental anchors for weights {weights!r}: expected one of {', '.join(PRETRAINED_WEIGHTS)}; "
            "for a model that starts from random weights fit the references without a prior"
        )
    by_element = json.loads(ANCHORS_FILE.read_text())[weights]
    return np.array(list(by_element.values()), dtype=np.float64)


class Anchor(NamedTuple):
    """The lowest state of one element: its structure is a Strukturbericht symbol, "dimer" or "unbound"."""

    energy_ev_per_atom: float
    structure: str
    relative_length: float


def element_structures() -> dict[str, Structure]:
    """The element structures to scan, as in the AFLOW library that pymatgen ships.

    Returns:
        Strukturbericht symbol (or AFLOW label) -> structure, its volume scaled to 1 Angstrom^3 per atom.

    Raises:
        LookupError: this pymatgen ships no such prototype.
    """
    from pymatgen.core import Structure

    symbols_needed = {*CLOSE_PACKED, *chain(*KNOWN_STRUCTURES.values())}
    packed = resources.files("pymatgen.analysis.prototypes") / "aflow_prototypes.json.gz"
    structures: dict[str, Structure] = {}
    for prototype in json.loads(gzip.decompress(packed.read_bytes())):
        tags = prototype["tags"]
        symbol = next((s for s in (tags["strukturbericht"], tags["aflow"]) if s in symbols_needed), None)
        if symbol is None or symbol in structures:
            continue
        structure = Structure.from_dict(prototype["snl"])
        if len(structure.composition) == 1:
            structures[symbol] = structure.scale_lattice(len(structure))
    missing = sorted(symbols_needed - structures.keys())
    if missing:
        raise LookupError(f"this pymatgen ships no AFLOW prototype for {missing} of {sorted(symbols_needed)}")
    return structures


def element_anchor(model: CHGNet, element: str, shapes: dict[str, Structure]) -> Anchor:
    """Lowest energy of one element over volume scans of the structures it is known in.

    Only a local minimum counts, never an end of a scan: an end that lies lowest says that CHGNet is
    extrapolating. An element without a minimum gets the lowest of the energies at the scans' wide ends.

    Args:
        model: a stock CHGNet.
        element: its symbol.
        shapes: structures of 1 Angstrom^3 per atom, from `element_structures`.
    """
    cutoff = float(model.graph_converter.atom_graph_cutoff)
    builders: dict[str, Callable[[float], Structure]] = {}
    if element in BOND_LENGTHS:
        builders["dimer"] = partial(_dimer, element)
    else:
        for symbol in KNOWN_STRUCTURES.get(element, CLOSE_PACKED):
            builders[symbol] = partial(_crystal, element, shapes[symbol])
    bound: list[Anchor] = []
    unbound: list[Anchor] = []
    for symbol, build in builders.items():
        widest = min(WIDEST, (cutoff - CUTOFF_MARGIN) / _nearest_distances(build(1.0)).max())
        n_steps = int(np.log(widest / NARROWEST) / np.log(COARSE_STEP))
        lengths = NARROWEST * COARSE_STEP ** np.arange(n_steps + 1.0)
        energies = _energies_ev_per_atom(model, [build(length) for length in lengths])
        inner = energies[1:-1]
        is_minimum = (inner < energies[:-2]) & (inner <= energies[2:])
        minima = 1 + np.flatnonzero(is_minimum)
        bound += [Anchor(float(energies[k]), symbol, float(lengths[k])) for k in minima]
        unbound.append(Anchor(float(energies[-1]), "unbound", float(lengths[-1])))
    if not bound:
        return min(unbound)
    best = min(bound)
    n_steps = int(np.log(COARSE_STEP) / np.log(FINE_STEP))
    lengths = best.relative_length * FINE_STEP ** np.arange(-n_steps, n_steps + 1.0)
    energies = _energies_ev_per_atom(model, [builders[best.structure](length) for length in lengths])
    k = int(energies.argmin())
    return Anchor(float(energies[k]), best.structure, float(lengths[k]))


def load_stock_model(weights: str) -> CHGNet:
    """Unmodified pretrained CHGNet on the CPU; `weights` as in `load_anchors`."""
    from chgnet.model import CHGNet

    return CHGNet.load(model_name=weights, use_device="cpu", verbose=False)


def write_anchors(path: Path) -> None:
    """Recompute every anchor of every pretrained weights, and write them as JSON, whole or not at all."""
    from ase.data import chemical_symbols

    shapes = element_structures()
    document: dict[str, Any] = {
        "about": "Lowest energy (eV/atom, total, rounded to 1e-5) of each element under unmodified CHGNet "
        "weights, over volume scans of the structures it is known in, or of its dimer (H, N, O, halogens). "
        "Written by models/crystals/chgnet/anchors.py.",
        "versions": {name: metadata.version(name) for name in ("chgnet", "pymatgen", "torch")},
    }
    for weights in PRETRAINED_WEIGHTS:
        model = load_stock_model(weights)
        document[weights] = {}
        for element in chemical_symbols[1 : N_ELEMENTS + 1]:
            anchor = element_anchor(model, element, shapes)
            document[weights][element] = round(anchor.energy_ev_per_atom, 5)
            print(
                f"{weights} {element:2} {anchor.energy_ev_per_atom:10.5f} eV/atom  "
                f"{anchor.structure} at {anchor.relative_length:.2f} of the measured length",
                flush=True,
            )
    aside = path.with_suffix(".json.aside")
    aside.write_text(json.dumps(document, indent=1) + "\n")
    aside.replace(path)


def _crystal(element: str, shape: Structure, relative_length: float) -> Structure:
    from pymatgen.core import Element, Structure

    # molar volume in cm^3 of the condensed element, a noble gas too
    volume = UNMEASURED_VOLUMES.get(element) or float(Element(element).molar_volume) / 0.602214
    factor = volume ** (1 / 3) * relative_length
    return Structure(shape.lattice.matrix * factor, [element] * len(shape), shape.frac_coords)


def _dimer(element: str, relative_length: float) -> Structure:
    from pymatgen.core import Lattice, Structure

    bond = BOND_LENGTHS[element] * relative_length
    return Structure(Lattice.cubic(MOLECULE_BOX), [element] * 2, [[0, 0, 0], [0, 0, bond / MOLECULE_BOX]])


def _nearest_distances(structure: Structure) -> np.ndarray:
    """Distance of each site to its nearest neighbour, Angstrom, shape (n_atoms,)."""
    centres, _, _, lengths = structure.get_neighbor_list(8.0)
    return np.array([lengths[centres == k].min() for k in range(len(structure))])


def _energies_ev_per_atom(model: CHGNet, structures: list[Structure]) -> np.ndarray:
    """Energies of at least two structures, eV/atom, float64, shape (n_structures,)."""
    predictions = model.predict_structure(structures, task="e", batch_size=16)
    return np.array([prediction["e"] for prediction in predictions], dtype=np.float64)  # type: ignore[index]


if __name__ == "__main__":
    write_anchors(ANCHORS_FILE)
