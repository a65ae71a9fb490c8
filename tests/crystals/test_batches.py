"""Batches: graphs assembled together are what they are alone, and their geometry is stock CHGNet's."""

import copy

import numpy as np
import pytest
import torch
from chgnet.graph import CrystalGraphConverter
from chgnet.model.model import BatchedGraph
from marks import whole_only

from data.crystals.batches import GraphBatch, graph_batch
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import Graphs, convert, stack
from data.crystals.padding import BatchSize, padded, size_above, size_of
from models.crystals.chgnet.network import CHGNetwork, _fourier

TOLERANCE = 1e-5  # eV/atom; single precision in another order of summation


@pytest.fixture(scope="module")
def network() -> CHGNetwork:
    return CHGNetwork("0.3.0").eval()


@pytest.fixture(scope="module")
def structures(real_structures, crystals) -> list:
    """Real and special crystals, of one atom to 384, with and without angles."""
    return [*real_structures[:60], *crystals.values()]


@pytest.fixture(scope="module")
def graphs(structures) -> Graphs:
    return stack([convert(crystal_from_structure(structure), 6) for structure in structures])


def positions(graphs: Graphs) -> np.ndarray:
    return np.arange(len(graphs))


def energies(network: CHGNetwork, batch: GraphBatch) -> np.ndarray:
    with torch.no_grad():
        return network(batch).numpy()


def test_energies_of_a_batch_are_those_of_its_graphs_alone(network, graphs):
    together = energies(network, graph_batch(graphs, positions(graphs), 3))
    alone = [energies(network, graph_batch(graphs, np.array([k]), 3)).item() for k in positions(graphs)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)


def test_any_order_with_repeats(network, graphs):
    alone = energies(network, graph_batch(graphs, positions(graphs), 3))
    which = np.random.default_rng(0).integers(0, len(graphs), size=40)
    which[:3] = which[-1]
    batch = graph_batch(graphs, which, 3)
    assert batch.n_graphs == 40
    np.testing.assert_array_equal(batch.atoms_per_graph, graphs.atoms_per_graph[which])
    np.testing.assert_allclose(energies(network, batch), alone[which], rtol=0, atol=TOLERANCE)


def test_lengths_and_angles_are_stocks(network, structures, graphs):
    """Stock's own encoders compute the geometry; what they expand in their bases is compared with ours."""
    converter = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3)
    bond_encoder = copy.deepcopy(network.stock.bond_basis_expansion)
    angle_encoder = copy.deepcopy(network.stock.angle_basis_expansion)
    expanded: dict[str, list[np.ndarray]] = {}
    for name, expansion in (
        ("lengths", bond_encoder.rbf_expansion_ag),
        ("angles", angle_encoder.fourier_expansion),
    ):
        seen = expanded[name] = []
        expansion.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].detach().numpy()))
    for k, structure in enumerate(structures):
        for seen in expanded.values():
            seen.clear()
        BatchedGraph.from_graphs([converter(structure)], bond_encoder, angle_encoder)
        ours = graph_batch(graphs, np.array([k]), 3)
        (lengths,) = expanded["lengths"]
        np.testing.assert_allclose(np.sort(ours.bond_length), np.sort(lengths), atol=1e-5)
        found = np.sort(ours.angle.numpy())
        angles = np.sort(expanded["angles"][0]) if expanded["angles"] else np.zeros(0)
        # An error of 1e-7 in the cosine, stock's single precision, is one of 1e-4 in an angle near 0 or pi.
        np.testing.assert_allclose(np.cos(found), np.cos(angles), atol=1e-5)
        clear = np.minimum(np.sin(found), np.sin(angles)) > 0.1
        np.testing.assert_allclose(found[clear], angles[clear], atol=1e-5)


def ends_of(batch: GraphBatch, bonds: torch.Tensor) -> list[set[int]]:
    """The atoms that each bond joins."""
    ends = {}
    for bond, atom in zip(batch.edge_bond.tolist(), batch.center.tolist(), strict=True):
        ends.setdefault(bond, set()).add(atom)
    return [ends[bond] for bond in bonds.tolist()]


def test_an_angle_lies_between_its_two_bonds(structures, graphs):
    for k in (0, 5, 17, len(structures) - 4):
        batch = graph_batch(graphs, np.array([k]), 3)
        for side in (batch.angle_bond_i, batch.angle_bond_j):
            bond = batch.short_bonds[side]
            centers = batch.angle_center.tolist()
            assert all(atom in ends for atom, ends in zip(centers, ends_of(batch, bond), strict=True))
            assert (batch.bond_length[bond] < 3).all()
        degree = torch.bincount(batch.angle_center, minlength=len(batch.numbers))
        short = torch.isin(batch.edge_bond, batch.short_bonds)
        leaving = torch.bincount(batch.center[short], minlength=len(batch.numbers))
        assert torch.equal(degree, leaving * (leaving - 1))


def test_no_angle_in_the_whole_batch(network, crystals):
    graphs = stack([convert(crystal_from_structure(crystals["no angle"]), 6)] * 3)
    batch = graph_batch(graphs, np.array([2, 0]), 3)
    assert len(batch.angle) == len(batch.short_bonds) == 0
    assert batch.bond_has_angles.sum() == 0
    assert np.isfinite(energies(network, batch)).all()


def test_bonds_know_whether_their_own_crystal_has_angles(graphs):
    batch = graph_batch(graphs, positions(graphs), 3)
    with_angles = set(batch.owner[batch.angle_center].tolist())
    assert 0 < len(with_angles) < len(graphs)
    expected = [float(owner in with_angles) for owner in batch.owner[batch.center].tolist()]
    assert batch.bond_has_angles[batch.edge_bond, 0].tolist() == expected


def test_read_only_arrays_are_accepted(graphs):
    """Trials share the arrays through Ray's object store, which lets nobody write."""
    frozen = Graphs(**{name: array.copy() for name, array in vars(graphs).items()})
    for array in vars(frozen).values():
        array.flags.writeable = False
    expected = graph_batch(graphs, positions(graphs), 3)
    found = graph_batch(frozen, positions(graphs), 3)
    assert all(torch.equal(getattr(found, name), one) for name, one in vars(expected).items())


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("weights", ["0.2.0", *whole_only("0.3.0")])  # 0.2.0: a bias on bonds of crystals with angles
@pytest.mark.parametrize("which", [[60, 63, 3], [63], *whole_only([64], range(20))])  # 63, xenon, has no angle
def test_what_a_batch_is_padded_with_adds_nothing(graphs, weights, which, collapse):
    network = CHGNetwork(weights).eval()
    network.freeze("full")
    batch = graph_batch(graphs, np.array(which), network.bond_graph_cutoff, collapse=collapse)
    size, _ = size_above(size_of(batch), BatchSize(*(1.7 * rows for rows in size_of(batch))))
    filled = padded(batch, size)
    assert size_of(filled) == size
    assert (np.array(size) > np.array(size_of(batch))).all()
    found = []
    for one in (batch, filled):
        network.zero_grad()
        outputs = network(one)
        outputs.square().sum().backward()
        gradients = [p.grad.ravel() if p.grad is not None else 0 * p.ravel() for p in network.parameters()]
        found.append((outputs.detach().numpy(), torch.cat(gradients).detach().numpy()))
    (outputs, gradient), (of_filled, gradient_of_filled) = found
    np.testing.assert_allclose(of_filled, outputs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(gradient_of_filled, gradient, rtol=0, atol=1e-4 * np.abs(gradient).max())


def test_there_are_few_sizes_and_each_holds_its_batches(graphs):
    random = np.random.default_rng(0)
    batches = [graph_batch(graphs, random.integers(0, len(graphs), size=16), 3, collapse=True) for _ in range(100)]
    typical = BatchSize(*np.mean([size_of(batch) for batch in batches], axis=0))
    found = [size_above(size_of(batch), typical) for batch in batches]
    for batch, (size, _) in zip(batches, found, strict=True):
        assert (np.array(size) >= np.array(size_of(batch))).all()
    by_level = {level: size for size, level in found}
    assert len(by_level) < 20
    assert all(by_level[level] == size for size, level in found)


def test_angles_are_expanded_as_stock_does_to_the_last_digit(network):
    expansion = network.stock.angle_basis_expansion.fourier_expansion
    angles = torch.rand(10_000) * torch.pi
    assert torch.equal(_fourier(expansion, angles), expansion(angles))
