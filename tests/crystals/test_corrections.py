"""Energy corrections equal pymatgen's own, bring CHGNet onto Matbench's scale, and are kept in a cache that heals."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import ray
from made_crystals import body_centred, rock_salt
from model_cases import FORMATION_ENERGIES, sample
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from data.crystals.corrections import corrections_of_structure, mp2020_corrections, mp2020_minus_legacy
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import Graph, convert, element_fractions, stack
from data.stores.storage import open_folder
from models.crystals.cached_arrays import energy_corrections
from models.crystals.chgnet.anchors import load_anchors
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.reference import fit_energy_reference
from models.crystals.rows import CrystalRows
from tune.dataset.parts import ROWS_PER_PART, cached_fields, joined_parts, prefix_of, rows_of_part, write_part

HUBBARD_U = {"Co": 3.32, "Cr": 3.7, "Fe": 5.3, "Mn": 3.9, "Mo": 4.38, "Ni": 6.2, "V": 3.25, "W": 6.2}


def pymatgens_own(structure: Structure) -> float:
    """What `process_entry` adds, eV/atom, nothing looked up beforehand; U as the Materials Project chooses it."""
    symbols = {element.symbol for element in structure.composition}
    with_u = symbols & set(HUBBARD_U) if "F" in symbols or "O" in symbols else set()
    parameters = {"run_type": "GGA+U" if with_u else "GGA", "hubbards": {one: HUBBARD_U[one] for one in with_u}}
    entry = ComputedStructureEntry(structure, 0.0, parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheme = MaterialsProject2020Compatibility(check_potcar=False, strict_anions="no_check")
        assert scheme.process_entry(entry, on_error="raise")
    return entry.correction / len(structure)


def graphs_of(structures):
    return stack([convert(crystal_from_structure(structure), 6.0) for structure in structures])


def test_corrections_equal_those_of_pymatgen(real_structures):
    graphs = graphs_of(real_structures)
    ours = mp2020_corrections(graphs, np.arange(len(graphs)))
    # from the coordinates of the graphs, which are in single precision
    theirs = np.array(
        [
            pymatgens_own(Structure(graphs.lattices[k].astype(float), structure.species, coordinates))
            for k, (structure, coordinates) in enumerate(
                zip(real_structures, np.split(graphs.frac_coords.astype(float), graphs.atom_start[1:-1]), strict=True)
            )
        ]
    )
    assert (theirs != 0).mean() > 0.3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)  # the terms are added in another order


def test_chosen_rows_come_in_the_order_asked_for(real_structures):
    graphs = graphs_of(real_structures[:40])
    everything = mp2020_minus_legacy(graphs, np.arange(40))
    np.testing.assert_array_equal(mp2020_minus_legacy(graphs, np.array([31, 2, 2])), everything[[31, 2, 2]])


@pytest.mark.parametrize(
    ("structure", "mp2020", "legacy"),
    [
        # per atom of the element that is corrected, from the tables of the two papers as pymatgen has them
        (rock_salt("Mg", "O", 4.21), -0.687 / 2, -0.70229 / 2),
        (rock_salt("Fe", "O", 4.33), (-0.687 - 2.256) / 2, (-0.70229 - 2.733) / 2),
        (rock_salt("Na", "Cl", 5.69), -0.614 / 2, 0.0),
        (rock_salt("Ca", "S", 5.69), -0.503 / 2, -0.66346 / 2),
        (body_centred("Ni", "Al", 2.88), 0.0, 0.0),
        (body_centred("Fe", "Fe", 2.87), 0.0, 0.0),
    ],
    ids=["MgO", "FeO", "NaCl", "CaS", "NiAl", "Fe"],
)
def test_known_compounds(structure, mp2020, legacy):
    assert corrections_of_structure(structure) == pytest.approx((mp2020, legacy), abs=1e-12)


def test_peroxide_is_told_from_oxide():
    def strontium_with(oxygen_bond):
        half = oxygen_bond / 2 / 6.8
        return Structure(
            Lattice.tetragonal(3.8, 6.8), ["Sr", "O", "O"], [[0, 0, 0], [0, 0, 0.5 - half], [0, 0, 0.5 + half]]
        )

    peroxide, _ = corrections_of_structure(strontium_with(1.5))
    oxide, _ = corrections_of_structure(strontium_with(2.6))
    assert peroxide == pytest.approx(-0.465 * 2 / 3)
    assert oxide == pytest.approx(-0.687 * 2 / 3)


def test_an_azide_is_corrected_as_the_labels_were():
    # N is at -1/3 there; later versions of pymatgen would leave it alone unless told otherwise
    azide = Structure(
        Lattice.cubic(5.0), ["Li", "N", "N", "N"], [[0, 0, 0], [0.5, 0.5, 0.26], [0.5, 0.5, 0.5], [0.5, 0.5, 0.74]]
    )
    assert corrections_of_structure(azide) == pytest.approx((-0.361 * 3 / 4, 0.0))


def test_a_noble_gas_compound_is_no_problem():
    assert corrections_of_structure(body_centred("Ar", "Li", 4.0)) == (0.0, 0.0)


def test_without_the_newer_corrections_chgnet_predicts_matbench_better():
    data = sample(400, file=FORMATION_ENERGIES)
    fractions = data.rows.fractions.astype(np.float64)
    prior = load_anchors("0.3.0") - CHGNetwork("0.3.0").composition_energies().double().numpy()
    train, held_out = np.arange(400) % 4 > 0, np.arange(400) % 4 == 0

    def error_of(energies):
        reference = fit_energy_reference(fractions[train], energies[train], data.targets[train], prior)
        return np.abs(energies + reference.predict(fractions) - data.targets)[held_out].mean()

    corrections = mp2020_minus_legacy(data.rows.graphs, np.arange(400))
    assert error_of(data.rows.outputs - corrections) < 0.85 * error_of(data.rows.outputs)


def test_corrections_are_computed_once_and_damaged_parts_again(real_structures, ray_session, tmp_path):
    rejected = Graph(
        np.empty(0, np.uint8),
        np.empty((0, 3), np.float32),
        np.zeros((3, 3), np.float32),
        np.empty((0, 2), np.uint16),
        np.empty((0, 3), np.int8),
        6.0,
    )
    graphs = 13 * [convert(crystal_from_structure(structure), 6.0) for structure in real_structures[:20]]
    graphs = stack([*graphs, rejected, *graphs[:50]])  # two parts
    rows_ref = ray.put(CrystalRows(element_fractions(graphs), graphs.atoms_per_graph, graphs))

    def corrections() -> np.ndarray:
        return cached_fields(energy_corrections(), rows_ref, len(graphs), str(tmp_path), 0.0)["corrections"]

    found = corrections()
    np.testing.assert_array_equal(found, mp2020_minus_legacy(graphs, np.arange(len(graphs))))
    assert np.flatnonzero(np.isnan(found)).tolist() == [260]

    parts = sorted(Path(tmp_path).iterdir())
    assert len(parts) == 2
    assert all(part.name.startswith(prefix_of(energy_corrections())) for part in parts)
    written = [part.stat().st_mtime_ns for part in parts]
    parts[1].write_bytes(parts[1].read_bytes()[:-3] + b"xyz")
    np.testing.assert_array_equal(corrections(), found)
    assert sorted(Path(tmp_path).iterdir()) == parts  # the checksum in the name is the same again
    assert parts[0].stat().st_mtime_ns == written[0]


def test_a_damaged_part_that_another_process_has_deleted_already_is_computed_again(ray_session, tmp_path):
    n_rows = ROWS_PER_PART + 1
    others = 0

    def compute(number):
        write_part(*open_folder(tmp_path), "rows", number, {"row": rows_of_part(n_rows, number)})
        return ray.put(None)

    def join(parts):
        nonlocal others
        found = [next(parts)]
        if not others:  # the names have been listed by now
            others = len([part.unlink() for part in tmp_path.glob("rows-00001-*")])
        return np.concatenate([arrays["row"] for _, arrays in [*found, *parts]])

    joined = joined_parts("rows", "rows", n_rows, str(tmp_path), compute, join)
    assert others == 1
    np.testing.assert_array_equal(joined, np.arange(n_rows))
