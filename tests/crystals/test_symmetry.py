"""Computing one of each kind of equivalent atoms gives the energies and gradients of computing every atom."""

import itertools

import numpy as np
import pytest
import torch
from made_crystals import rock_salt
from marks import whole_only
from model_cases import sample
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from data.crystals.batches import graph_batch
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import Graphs, convert, stack
from models.crystals.chgnet.features import GraphInputs
from models.crystals.chgnet.network import CHGNetwork
from models.training.inputs import predict

# One crystal or two of each of the seven crystal systems, in their usual space groups.
SYSTEMS = {
    "triclinic": [
        Structure.from_spacegroup(
            "P-1",
            Lattice.from_parameters(5.1, 5.7, 6.3, 95, 101, 87),
            ["Ca", "Si", "O", "O"],
            [[0.12, 0.23, 0.31], [0.41, 0.62, 0.19], [0.31, 0.11, 0.62], [0.77, 0.52, 0.08]],
        )
    ],
    "monoclinic": [
        Structure.from_spacegroup(  # baddeleyite
            "P2_1/c",
            Lattice.monoclinic(5.15, 5.21, 5.31, 99.2),
            ["Zr", "O", "O"],
            [[0.2754, 0.0395, 0.2083], [0.07, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]],
        )
    ],
    "orthorhombic": [
        Structure.from_spacegroup(  # perovskite
            "Pnma",
            Lattice.orthorhombic(5.44, 7.64, 5.38),
            ["Ca", "Ti", "O", "O"],
            [[0.0359, 0.25, 0.9932], [0, 0, 0.5], [0.4838, 0.25, 0.0708], [0.2888, 0.0373, 0.7116]],
        )
    ],
    "tetragonal": [
        Structure.from_spacegroup(  # rutile
            "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
        )
    ],
    "trigonal": [
        Structure.from_spacegroup(  # corundum
            "R-3c", Lattice.hexagonal(4.76, 12.99), ["Al", "O"], [[0, 0, 0.3522], [0.3063, 0, 0.25]]
        )
    ],
    "hexagonal": [
        Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.21, 5.21), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
        Structure.from_spacegroup(  # wurtzite
            "P6_3mc", Lattice.hexagonal(3.82, 6.26), ["Zn", "S"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.3748]]
        ),
    ],
    "cubic": [
        rock_salt("Na", "Cl", 5.64),
        Structure(  # perovskite
            Lattice.cubic(3.9),
            ["Sr", "Ti", "O", "O", "O"],
            [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0], [0, 0, 0.5], [0, 0.5, 0]],
        ),
    ],
}


@pytest.fixture(scope="module")
def network() -> CHGNetwork:
    return CHGNetwork("0.3.0").eval()


def graphs_of(structures: list[Structure]) -> Graphs:
    return stack([convert(crystal_from_structure(structure), 6) for structure in structures])


def moved(structure: Structure, angstrom: float, seed: int = 0) -> Structure:
    """Every atom displaced by so much in a random direction."""
    other = structure.copy()
    steps = np.random.default_rng(seed).normal(size=(len(structure), 3))
    steps *= angstrom / np.linalg.norm(steps, axis=1)[:, None]
    for site, step in enumerate(steps):
        other.translate_sites([site], step, frac_coords=False)
    return other


def energies(network: CHGNetwork, graphs: Graphs, *, collapse: bool) -> np.ndarray:
    return predict(network, GraphInputs(graphs, 3, torch.device("cpu"), collapse), np.arange(len(graphs)))


def gradients(network: CHGNetwork, graphs: Graphs, *, collapse: bool) -> dict[str, torch.Tensor]:
    network.freeze("full")
    network.zero_grad()
    factor = torch.linspace(-1, 2, len(graphs))
    (network(graph_batch(graphs, np.arange(len(graphs)), 3, collapse=collapse)) * factor).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_same(network: CHGNetwork, graphs: Graphs) -> None:
    """Energies within 2e-6 eV/atom, the gradient within 1e-4."""
    np.testing.assert_allclose(
        energies(network, graphs, collapse=True), energies(network, graphs, collapse=False), rtol=0, atol=2e-6
    )
    found, expected = (
        torch.cat([g.ravel() for g in gradients(network, graphs, collapse=collapse).values()])
        for collapse in (True, False)
    )
    assert torch.linalg.norm(found - expected) <= 1e-4 * torch.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")  # what pymatgen still has to do
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_crystal_system_has_the_energy_and_gradient_of_every_atom(network, system):
    for structure in SYSTEMS[system]:
        n_orbits = len(SpacegroupAnalyzer(structure).get_symmetrized_structure().equivalent_indices)
        graphs = graphs_of([structure])
        batch = graph_batch(graphs, np.array([0]), 3, collapse=True)
        # Atoms of one orbit are equivalent; atoms of two may be so to this network (never fewer kinds than elements).
        assert len(structure.elements) <= len(batch.numbers) <= n_orbits < len(structure)
        assert batch.atom_count.sum() == len(structure)
        assert_same(network, graphs)


@pytest.mark.parametrize("system", ["cubic", *whole_only(*(system for system in SYSTEMS if system != "cubic"))])
@pytest.mark.parametrize("angstrom", [3e-5, 1e-3, 0.05])
def test_a_slightly_distorted_crystal_collapses_only_where_it_is_symmetric(network, system, angstrom):
    """With noise on every position, as an augmentation puts it there, nothing is equivalent any more."""
    # Of two like atoms in a cell each is the other's mirror image, wherever they are.
    structures = [moved(structure, angstrom) for structure in SYSTEMS[system] if len(structure) > 2]
    graphs = graphs_of(structures)
    if angstrom >= 1e-3:
        batch = graph_batch(graphs, np.arange(len(graphs)), 3, collapse=True)
        assert len(batch.numbers) == sum(map(len, structures))
    assert_same(network, graphs)


def test_one_displaced_atom_breaks_the_symmetry_of_its_surroundings(network):
    salt = SYSTEMS["cubic"][0].make_supercell([2, 1, 1], in_place=False)
    before = graph_batch(graphs_of([salt]), np.array([0]), 3, collapse=True)
    assert before.atom_count.tolist() == [8, 8]
    salt.translate_sites([0], [0.01, 0, 0], frac_coords=False)
    graphs = graphs_of([salt])
    after = graph_batch(graphs, np.array([0]), 3, collapse=True)
    assert 2 < len(after.numbers) < 16
    assert after.atom_count.sum() == 16
    assert_same(network, graphs)


def test_angles_alone_tell_atoms_apart(network):
    """A bent and a straight molecule of the same bond lengths, in one cell."""
    lattice = Lattice.orthorhombic(20, 20, 20)
    bent, straight = np.deg2rad(110), np.pi
    coordinates = []
    for origin, angle in (([5, 5, 5], bent), ([14, 14, 14], straight)):
        coordinates += [origin, np.add(origin, [2, 0, 0]), np.add(origin, [2 * np.cos(angle), 2 * np.sin(angle), 0])]
    structure = Structure(lattice, ["O", "H", "H"] * 2, coordinates, coords_are_cartesian=True)
    graphs = stack([convert(crystal_from_structure(structure), 3)])  # the two H of a molecule are not neighbours
    assert len(graphs.bond_atoms) == 4
    batch = graph_batch(graphs, np.array([0]), 3, collapse=True)
    assert batch.numbers.tolist() == [8, 1, 8, 1]
    assert batch.atom_count.tolist() == [1, 2, 1, 2]
    assert_same(network, graphs)


def test_real_crystals(network, at_hand):
    data = sample(200, file=at_hand)
    graphs = data.rows.graphs
    everything = np.arange(len(graphs))
    together = graph_batch(graphs, everything, 3, collapse=True)
    every = graph_batch(graphs, everything, 3)
    assert len(together.numbers) < 0.8 * len(every.numbers)
    assert len(together.center) < 0.6 * len(every.center)
    difference = np.abs(energies(network, graphs, collapse=True) - energies(network, graphs, collapse=False))
    assert difference.max() < 2e-5
    assert difference.mean() < 1e-6


def test_counts_add_up_to_what_is_there():
    for structure in itertools.chain(*SYSTEMS.values()):
        graphs = graphs_of([structure])
        one = graph_batch(graphs, np.array([0]), 3, collapse=True)
        every = graph_batch(graphs, np.array([0]), 3)
        # Each kind of atom has the edges of one of its atoms.
        edges = torch.zeros(len(one.numbers)).index_add(0, one.center, one.edge_count) * one.atom_count
        assert edges.sum() == len(every.center)
        assert torch.isin(one.bond_length, every.bond_length).all()
        assert one.atoms_per_graph.item() == len(structure)
