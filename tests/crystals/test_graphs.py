"""A crystal's graph is the one that stock CHGNet builds, however the crystal is written down."""

from dataclasses import replace

import numpy as np
import pytest
from chgnet.graph import CrystalGraphConverter
from pymatgen.core import Lattice, Structure

from data.crystals.batches import GraphBatch, graph_batch
from data.crystals.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.crystals.graphs import Graph, convert, element_fractions, stack
from models.crystals.chgnet.network import CHGNetwork

CUTOFFS = [(6, 3), (5, 3)]


def graph_of(structure: Structure, cutoff: float = 6) -> Graph:
    return convert(crystal_from_structure(structure), cutoff)


def batch_of(graph: Graph, bond_graph_cutoff: float = 3) -> GraphBatch:
    return graph_batch(stack([graph]), np.array([0]), bond_graph_cutoff)


def edges_of(batch: GraphBatch) -> dict[tuple[int, int], np.ndarray]:
    """Sorted lengths of all edges by (Z_i, Z_j)."""
    length = batch.bond_length.numpy()[batch.edge_bond.numpy()]
    return by_elements(batch.numbers.numpy(), batch.center.numpy(), batch.neighbor.numpy(), length)


def by_elements(
    numbers: np.ndarray, center: np.ndarray, neighbor: np.ndarray, length: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    pairs = 100 * numbers[center].astype(int) + numbers[neighbor]
    return {divmod(int(pair), 100): np.sort(length[pairs == pair]) for pair in np.unique(pairs)}


def assert_same_edges(found: dict, expected: dict, times: int = 1) -> None:
    """The same multiset of (Z_i, Z_j, length), each of `expected` so many times."""
    assert found.keys() == expected.keys()
    for pair, lengths in expected.items():
        np.testing.assert_allclose(found[pair], np.repeat(lengths, times), atol=1e-5, err_msg=str(pair))


def assert_as_stock(structure: Structure, cutoffs: tuple[float, float]) -> int:
    """Compare with stock CHGNet; returns the number of angles."""
    graph = graph_of(structure, cutoffs[0])
    assert graph.cutoff_angstrom == cutoffs[0]
    batch = batch_of(graph, cutoffs[1])
    stock = CrystalGraphConverter(atom_graph_cutoff=cutoffs[0], bond_graph_cutoff=cutoffs[1])(structure)
    center, neighbor, _, length = structure.get_neighbor_list(r=cutoffs[0], numerical_tol=1e-8)
    assert len(center) == len(stock.atom_graph)
    assert batch.center.shape == (len(stock.atom_graph),)
    assert batch.bond_length.shape == (len(stock.undirected2directed),)
    assert batch.angle.shape == (len(stock.bond_graph),)
    assert_same_edges(edges_of(batch), by_elements(stock.atomic_number.numpy(), center, neighbor, length))
    return len(batch.angle)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_real_crystals_have_stocks_edges_bonds_and_angles(real_structures, cutoffs):
    n_angles = [assert_as_stock(structure, cutoffs) for structure in real_structures]
    assert len(n_angles) >= 200
    assert 0 < n_angles.count(0) < 40  # crystals without any angle are among them


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize("name", ["one atom", "triclinic", "skewed", "no angle", "384 atoms"])
def test_special_cells_have_stocks_graph(crystals, name, cutoffs):
    n_angles = assert_as_stock(crystals[name], cutoffs)
    assert (n_angles == 0) == (name == "no angle")


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_neighbours_exactly_at_the_cutoff_count_as_in_stock(cutoffs):
    for edge in {3.0, 2.5, float(cutoffs[0])}:
        assert_as_stock(Structure(Lattice.cubic(edge), ["Po"], [[0.25, 0.5, 0.75]]), cutoffs)


def test_coordinates_outside_the_cell_give_the_same_bonds(real_structures, crystals):
    rng = np.random.default_rng(1)
    for structure in [*real_structures[:40], crystals["triclinic"], crystals["skewed"]]:
        crystal = crystal_from_structure(structure)
        shift = rng.integers(-9, 10, size=crystal.frac_coords.shape)
        moved = convert(replace(crystal, frac_coords=crystal.frac_coords + shift), 6)
        assert_same_edges(edges_of(batch_of(moved)), edges_of(batch_of(graph_of(structure))))
        assert moved.frac_coords.min() >= 0
        assert moved.frac_coords.max() <= 1


@pytest.mark.parametrize("just_below", [-1e-17, -1e-9, 1 - 1e-9, 1.0, -3.0])
def test_an_atom_on_the_cell_boundary_loses_no_bond(just_below):
    lattice = Lattice.cubic(3.0)
    inside = graph_of(Structure(lattice, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    boundary = graph_of(Structure(lattice, ["Cs", "Cl"], [[just_below, 0, 0], [0.5, 0.5, 0.5]]))
    ours, expected = batch_of(boundary), batch_of(inside)
    np.testing.assert_allclose(np.sort(ours.bond_length), np.sort(expected.bond_length), atol=1e-5)


def test_another_choice_of_lattice_vectors_gives_the_same_bonds(real_structures):
    for structure in real_structures[:40]:
        vectors = np.array([[1, 2, 0], [0, 1, -1], [1, 2, 1]]) @ structure.lattice.matrix
        assert round(np.linalg.det(vectors) / np.linalg.det(structure.lattice.matrix)) == 1
        other = Structure(vectors, structure.species, structure.cart_coords, coords_are_cartesian=True)
        assert_same_edges(edges_of(batch_of(graph_of(other))), edges_of(batch_of(graph_of(structure))))


def test_a_left_handed_or_rotated_cell_has_the_same_bonds(real_structures):
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    for structure in real_structures[:20]:
        crystal = crystal_from_structure(structure)
        for matrix in (rotation, -rotation):
            turned = convert(replace(crystal, lattice=crystal.lattice @ matrix), 6)
            assert_same_edges(edges_of(batch_of(turned)), edges_of(batch_of(graph_of(structure))))


def test_a_supercell_has_as_many_bonds_and_angles_an_atom(real_structures):
    for structure in real_structures[:60]:
        single = batch_of(graph_of(structure))
        fourfold = batch_of(graph_of(structure.make_supercell([2, 2, 1], in_place=False)))
        assert len(fourfold.bond_length) == 4 * len(single.bond_length)
        assert len(fourfold.angle) == 4 * len(single.angle)
        assert_same_edges(edges_of(fourfold), edges_of(single), times=4)


def test_each_bond_is_kept_once(real_structures):
    for structure in real_structures[:60]:
        graph = graph_of(structure)
        i, j = graph.bond_atoms.astype(int).T
        assert (i <= j).all()
        keys = np.column_stack([i, j, graph.bond_image])
        mirrored = np.column_stack([i, j, -graph.bond_image])[i == j]  # the same bond seen from its end
        assert len(np.unique(np.concatenate([keys, mirrored]), axis=0)) == len(keys) + len(mirrored)


ISOLATED = {
    "one atom, 9 Angstrom apart": (Structure(Lattice.cubic(9), ["Ar"], [[0, 0, 0]]), 9),
    "one atom, 8.3 Angstrom apart": (Structure(Lattice.cubic(8.3), ["Ar"], [[0, 0, 0]]), 9),
    "a pair and one remote": (
        Structure(Lattice.cubic(16), ["O", "O", "H"], [[0, 0, 0], [0.075, 0, 0], [0.5, 0.5, 0]]),
        11,
    ),
    "a net and one remote": (
        Structure(Lattice.orthorhombic(3.2, 3.2, 17), ["Cu", "Kr"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        6,
    ),
}


@pytest.mark.parametrize("name", ISOLATED)
def test_the_cutoff_grows_until_each_atom_has_a_neighbour(name):
    structure, expected = ISOLATED[name]
    graph = graph_of(structure)
    assert graph.cutoff_angstrom == expected
    batch = batch_of(graph)
    assert set(batch.center.tolist()) == set(range(len(structure)))
    _, _, _, length = structure.get_neighbor_list(r=expected, numerical_tol=1e-8)
    np.testing.assert_allclose(
        np.sort(np.tile(batch.bond_length, 2)), np.sort(length), rtol=1e-6, err_msg="all bonds within it"
    )
    if expected > 6:  # a step less would have left an atom alone
        assert len(set(structure.get_neighbor_list(r=expected - 1)[0].tolist())) < len(structure)


@pytest.mark.parametrize("weights", ["0.3.0", "0.2.0", "r2scan"])
def test_bonds_beyond_the_models_cutoff_leave_the_energy_alone(weights):
    structure, _ = ISOLATED["a pair and one remote"]
    network = CHGNetwork(weights).eval()
    fractions = element_fractions(stack([graph_of(structure)]))[0]
    graph = graph_of(structure, network.atom_graph_cutoff)
    assert graph.cutoff_angstrom > network.atom_graph_cutoff
    ours = network(batch_of(graph, network.bond_graph_cutoff)).item()
    ours += float(fractions @ network.composition_energies().numpy())
    converter = CrystalGraphConverter(
        atom_graph_cutoff=network.atom_graph_cutoff,
        bond_graph_cutoff=network.bond_graph_cutoff,
        on_isolated_atoms="ignore",
    )
    stock = network.stock.predict_graph(converter(structure), task="e")["e"].item()
    assert ours == pytest.approx(stock, rel=1e-5)


@pytest.mark.parametrize("weights", ["0.3.0", "0.2.0", "r2scan"])
def test_energy_of_a_lone_atom_does_not_depend_on_how_lone_it_is(weights):
    # Stock CHGNet cannot compute a cell whose atoms are all isolated.
    network = CHGNetwork(weights).eval()
    energies = [
        network(batch_of(graph_of(Structure(Lattice.cubic(edge), ["Ar"], [[0, 0, 0]])))).item()
        for edge in (9, 11.5, 20)
    ]
    assert np.isfinite(energies).all()
    assert energies == pytest.approx([energies[0]] * 3, abs=1e-6)


def test_an_atom_without_any_neighbour_far_and_wide_is_refused():
    for edge in (60, 1e9):
        with pytest.raises(BadCrystalError, match="no neighbour within 50 Angstrom: is the lattice right"):
            graph_of(Structure(Lattice.cubic(edge), ["H"], [[0, 0, 0]]))


def test_a_cell_too_skewed_for_its_translations_is_refused():
    sheared = Crystal(
        numbers=np.array([26], dtype=np.uint8),
        frac_coords=np.zeros((1, 3)),
        lattice=np.array([[3.0, 0, 0], [1000.0, 3.0, 0], [0, 0, 3.0]]),
    )
    with pytest.raises(BadCrystalError, match="crosses more than 127 cells"):
        convert(sheared, 6)


def test_a_flat_cell_and_too_many_atoms_are_refused():
    flat = Crystal(np.array([26], np.uint8), np.zeros((1, 3)), np.array([[3.0, 0, 0], [6, 0, 0], [0, 0, 3]]))
    with pytest.raises(BadCrystalError, match="singular lattice"):
        convert(flat, 6)
    n_atoms = 65_536
    crowd = Crystal(np.full(n_atoms, 26, np.uint8), np.zeros((n_atoms, 3)), 1000 * np.eye(3))
    with pytest.raises(BadCrystalError, match="65536 atoms"):
        convert(crowd, 6)


def test_element_fractions_are_pymatgens(real_structures):
    graphs = stack([graph_of(structure) for structure in real_structures[:50]])
    fractions = element_fractions(graphs)
    for row, structure in zip(fractions, real_structures[:50], strict=True):
        composition = structure.composition.fractional_composition
        expected = {element.Z: composition[element] for element in composition}
        found = {int(z) + 1: float(row[z]) for z in np.flatnonzero(row)}
        assert found == pytest.approx(expected)
