"""The network: stock CHGNet's energies and gradients, physical invariances, and what each freeze depth trains."""

import copy
import itertools

import numpy as np
import pytest
import torch
from chgnet.model import CHGNet
from marks import whole_only
from model_cases import fine_tuning, finished, one_thread, rotation, sample
from pymatgen.core import Lattice, Structure

from data.crystals.batches import GraphBatch, graph_batch
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import Graphs, convert, stack
from models.crystals.chgnet.features import GraphInputs
from models.crystals.chgnet.network import FREEZE_DEPTHS, WEIGHTS, CHGNetwork, _load_stock
from models.training.inputs import predict

PRETRAINED = ("0.3.0", "0.2.0", "r2scan")
# The default shows in short what all of them do.
SOME_WEIGHTS = ["0.3.0", *whole_only(*(weights for weights in WEIGHTS if weights != "0.3.0"))]
TOLERANCE = 1e-5  # eV/atom; single precision in another order of summation
MEAN_TOLERANCE = 3e-6  # eV/atom; energies of r2scan reach 50 eV/atom, where single precision has steps of 4e-6

# What a level adds to the levels before it, by the beginning of stock's parameter names.
ADDED = {
    "none": (),
    "readout": ("mlp.", "readout_norm."),
    "last_conv": ("atom_conv_layers.3.",),
    "last_two_convs": ("atom_conv_layers.2.", "bond_conv_layers.2."),
    "last_three_convs": ("atom_conv_layers.1.", "bond_conv_layers.1.", "angle_layers.1."),
    "full": (
        "atom_conv_layers.0.",
        "bond_conv_layers.0.",
        "angle_layers.0.",
        "atom_embedding.",
        "bond_embedding.",
        "angle_embedding.",
        "bond_basis_expansion.",
        "angle_basis_expansion.",
        "bond_weights_ag.",
        "bond_weights_bg.",
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def stock_model(weights: str) -> CHGNet:
    return copy.deepcopy(_load_stock(weights))


def stock_gradients_in_double(
    stock: CHGNet, structures: list[Structure], factor: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Of the sum of energies per atom times factors; the composition energies are left out."""
    graphs = [stock.graph_converter(structure) for structure in structures]
    for graph in graphs:
        graph.atom_frac_coord = graph.atom_frac_coord.double()
        graph.lattice = graph.lattice.detach().double()
        graph.neighbor_image = graph.neighbor_image.double()
    stock = copy.deepcopy(stock).requires_grad_(True).double()
    stock.composition_model = None
    monkeypatch.setattr("chgnet.model.model.TORCH_DTYPE", torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        (stock(graphs, task="e")["e"] * factor).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    return {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}


def graphs_of(structures: list[Structure], cutoff: float) -> Graphs:
    return stack([convert(crystal_from_structure(structure), cutoff) for structure in structures])


def outputs(network: CHGNetwork, structures: list[Structure], cutoff: float | None = None) -> np.ndarray:
    """What the network says of each structure, all in one batch; shape (n,)."""
    graphs = graphs_of(structures, cutoff or network.atom_graph_cutoff)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, torch.device("cpu"))
    return predict(network, inputs, np.arange(len(structures)))


def energies(network: CHGNetwork, structures: list[Structure]) -> np.ndarray:
    """Energy per atom, the composition's part included; eV, shape (n,)."""
    by_element = network.composition_energies().double().numpy()
    own = [sum(by_element[site.specie.Z - 1] for site in s) / len(s) for s in structures]
    return outputs(network, structures) + own


def without_angles(structures: list[Structure], weights: str) -> np.ndarray:
    network = CHGNetwork(weights)
    graphs = graphs_of(structures, network.atom_graph_cutoff)
    batches = [graph_batch(graphs, np.array([k]), network.bond_graph_cutoff) for k in range(len(graphs))]
    return np.array([len(batch.angle) == 0 for batch in batches])


def with_angles(n: int, weights: str, file: str) -> list[Structure]:
    """Some small crystals of a file, each with angles and short bonds."""
    structures = sample(60, file=file).structures
    chosen = [s for s, none in zip(structures, without_angles(structures, weights), strict=True) if not none]
    return sorted(chosen, key=len)[:n]


@pytest.mark.parametrize(("weights", "n", "batch_size"), [("0.3.0", 250, 16), ("r2scan", 60, 16), ("0.2.0", 60, 1)])
def test_energy_is_that_of_stock_chgnet(weights, n, batch_size, at_hand):
    # 0.2.0 one by one: stock adds a bias to the bonds of angle-free crystals when others of the batch have angles
    structures = sample(n, weights, at_hand).structures
    assert without_angles(structures, weights).sum() >= 2
    stock = stock_model(weights).predict_structure(structures, task="e", batch_size=batch_size)
    error = np.abs(energies(CHGNetwork(weights), structures) - [float(one["e"]) for one in stock])
    assert error.max() < 2 * TOLERANCE
    assert error.mean() < MEAN_TOLERANCE


@pytest.mark.parametrize("weights", SOME_WEIGHTS)
class TestInvariance:
    """On crystals of a task, some of them without any angle."""

    @pytest.fixture
    def network(self, weights):
        return CHGNetwork(weights)

    @pytest.fixture
    def structures(self, weights, at_hand):
        structures = sample(60, file=at_hand).structures
        none = without_angles(structures, weights)
        chosen = [structures[k] for k in (*np.flatnonzero(none)[:2], *np.flatnonzero(~none)[::5])]
        assert len(chosen) > 8
        return chosen

    def assert_unmoved(self, network, structures, moved):
        np.testing.assert_allclose(outputs(network, moved), outputs(network, structures), rtol=0, atol=TOLERANCE)

    def test_a_strain_is_felt(self, network, structures):
        # the converse of all that follows: an output that ignores its input is invariant, too
        strained = [Structure(s.lattice.matrix * 1.02, s.species, s.frac_coords) for s in structures]
        change = np.abs(outputs(network, strained) - outputs(network, structures))
        assert np.median(change) > 10 * TOLERANCE

    def test_rotation_and_mirror(self, network, structures):
        for turn in (rotation(), -rotation(1)):
            turned = [Structure(s.lattice.matrix @ turn.T, s.species, s.frac_coords) for s in structures]
            self.assert_unmoved(network, structures, turned)

    def test_translation(self, network, structures):
        rng = np.random.default_rng(0)
        shifted = [
            Structure(s.lattice, s.species, s.frac_coords + rng.random(3) + rng.integers(-2, 3, (len(s), 3)))
            for s in structures
        ]
        self.assert_unmoved(network, structures, shifted)

    def test_atom_order(self, network, structures):
        rng = np.random.default_rng(0)
        shuffled = [Structure.from_sites([s[int(k)] for k in rng.permutation(len(s))]) for s in structures]
        self.assert_unmoved(network, structures, shuffled)

    @pytest.mark.parametrize(
        "matrix", [[2, 1, 1], [[1, 1, 0], [0, 1, 0], [0, -2, 1]], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]]
    )
    def test_supercell_and_choice_of_cell(self, network, structures, matrix):
        self.assert_unmoved(network, structures, [s.make_supercell(matrix, in_place=False) for s in structures])

    def test_batched_is_single(self, network, structures):
        alone = np.concatenate([outputs(network, [structure]) for structure in structures])
        np.testing.assert_allclose(outputs(network, structures), alone, rtol=0, atol=TOLERANCE)
        backwards = outputs(network, structures[::-1])[::-1]
        np.testing.assert_allclose(backwards, alone, rtol=0, atol=TOLERANCE)

    def test_bonds_beyond_the_cutoff_add_nothing(self, network, structures):
        longer = outputs(network, structures, cutoff=network.atom_graph_cutoff + 1.5)
        np.testing.assert_allclose(longer, outputs(network, structures), rtol=0, atol=TOLERANCE)

    def test_atoms_out_of_reach_do_not_feel_each_other(self, network, weights):
        boxes = [Structure(Lattice.cubic(edge), ["Ar"], [[0, 0, 0]]) for edge in (7.0, 9.5, 16.0)]
        far = outputs(network, boxes)
        np.testing.assert_allclose(far, far[0], rtol=0, atol=TOLERANCE)
        near = outputs(network, [Structure(Lattice.cubic(4.0), ["Ar"], [[0, 0, 0]])])
        assert abs(near[0] - far[0]) > 10 * TOLERANCE


@pytest.mark.parametrize("weights", SOME_WEIGHTS)
class TestFreezing:
    """Levels train exactly what they name, and nothing that trains is inert."""

    def expected(self, network: CHGNetwork, depth: str) -> set[str]:
        prefixes = sum((ADDED[one] for one in FREEZE_DEPTHS[: FREEZE_DEPTHS.index(depth) + 1]), ())
        return {name for name, _ in network.named_parameters() if name.removeprefix("stock.").startswith(prefixes)}

    def test_levels_are_nested_and_none_is_like_another(self, weights):
        network = CHGNetwork(weights)
        levels = [set(network.freeze(depth)) for depth in FREEZE_DEPTHS]
        assert levels[0] == set()
        for lower, higher in itertools.pairwise(levels):
            assert lower < higher

    @pytest.mark.parametrize("depth", FREEZE_DEPTHS)
    def test_exactly_the_named_parameters_have_gradients_and_none_is_zero(self, weights, depth, at_hand):
        network = CHGNetwork(weights)
        assert set(network.freeze(depth)) == self.expected(network, depth)
        structures = with_angles(12, weights, at_hand)
        graphs = graphs_of(structures, network.atom_graph_cutoff)
        batch = graph_batch(graphs, np.arange(len(structures)), network.bond_graph_cutoff)
        total = network(batch).square().sum()
        if depth == "none":
            assert not total.requires_grad
            return
        total.backward()
        has_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
        assert has_gradient == self.expected(network, depth)
        inert = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
        assert inert == []

    def test_what_full_leaves_out_cannot_reach_the_energy(self, weights, at_hand):
        network = CHGNetwork(weights)
        trained = set(network.freeze("full"))
        stock = copy.deepcopy(network.stock).requires_grad_(True)
        graphs = [stock.graph_converter(structure) for structure in with_angles(6, weights, at_hand)]
        stock(graphs, task="e")["e"].square().sum().backward()
        reaching = {f"stock.{name}" for name, p in stock.named_parameters() if p.grad is not None and p.grad.any()}
        # the composition energies are left to the reference
        assert {name for name in reaching if "composition_model" not in name} == trained

    @pytest.mark.parametrize("collapse", [False, True])
    def test_gradients_are_those_of_stock_chgnet_in_double_precision(self, weights, collapse, monkeypatch, at_hand):
        network = CHGNetwork(weights)
        network.freeze("full")
        structures = with_angles(25, weights, at_hand)
        graphs = graphs_of(structures, network.atom_graph_cutoff)
        batch = graph_batch(graphs, np.arange(len(structures)), network.bond_graph_cutoff, collapse=collapse)
        factor = torch.linspace(-1.0, 2.0, len(structures))
        (network(batch) * factor).sum().backward()
        theirs = stock_gradients_in_double(network.stock, structures, factor, monkeypatch)
        ours = {name: p.grad.double() for name, p in network.stock.named_parameters() if p.grad is not None}
        difference = {name: torch.linalg.norm(ours[name] - theirs[name]) for name in ours}
        size = {name: torch.linalg.norm(theirs[name]) for name in ours}
        whole = [torch.linalg.norm(torch.stack(list(each.values()))) for each in (difference, size)]
        assert whole[0] <= 1e-4 * whole[1]
        # Stock's own gradients in single precision are up to 1.5e-4 from these.
        limit = 3e-4 if collapse else 1e-4
        assert {name: d / size[name] for name, d in difference.items() if d > limit * size[name]} == {}

    def test_the_compiled_kernels_compute_what_torch_does(self, weights, at_hand):
        """Other devices, and double precision, go through torch's own operations."""
        structures = with_angles(25, weights, at_hand)
        network = CHGNetwork(weights)
        graphs = graphs_of(structures, network.atom_graph_cutoff)
        batch = graph_batch(graphs, np.arange(len(structures)), network.bond_graph_cutoff, collapse=True)
        double = {name: value.double() if value.is_floating_point() else value for name, value in vars(batch).items()}
        other = copy.deepcopy(network).double()
        energies, gradients = [], []
        for one, inputs in ((network, batch), (other, GraphBatch(**double))):
            one.freeze("full")
            energies.append(one(inputs))
            energies[-1].abs().sum().backward()
            gradients.append(torch.cat([p.grad.ravel().double() for p in one.parameters() if p.grad is not None]))
        assert energies[1].dtype == torch.float64
        # In single precision torch itself is 2e-5 off for one of these crystals.
        torch.testing.assert_close(energies[0].double(), energies[1], rtol=0, atol=5e-5)
        assert torch.linalg.norm(gradients[0] - gradients[1]) <= 1e-4 * torch.linalg.norm(gradients[1])

    @pytest.mark.parametrize("depth", FREEZE_DEPTHS[1:])
    def test_training_changes_all_that_trains_and_no_bit_of_anything_else(self, weights, depth, at_hand):
        data = sample(18, weights, at_hand)
        fields = {"weights": weights, "freeze_depth": depth, "weight_decay": 1.0}
        run = fine_tuning(data, epochs=2, **fields)
        before = copy.deepcopy(run.network.state_dict())
        finished(run)
        after = run.network.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == self.expected(run.network, depth) == set(run.trained_parameters)


def test_a_trained_network_is_a_stock_chgnet(at_hand):
    data = sample(18, file=at_hand)
    run = finished(fine_tuning(data, freeze_depth="full", epochs=2))
    stock = CHGNet.from_dict(CHGNet.load(use_device="cpu", verbose=False).as_dict())
    stock.load_state_dict(run.network.stock.state_dict())
    predicted = [float(one["e"]) for one in stock.predict_structure(data.structures, task="e")]
    np.testing.assert_allclose(energies(run.network, data.structures), predicted, rtol=0, atol=2e-5)
    untrained = energies(CHGNetwork(), data.structures)
    assert np.abs(untrained - predicted).max() > 1e-3


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = CHGNetwork("random", seed=5).state_dict()
    torch.manual_seed(2)
    after = torch.random.get_rng_state()
    again, other = CHGNetwork("random", seed=5).state_dict(), CHGNetwork("random", seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), after)  # and nobody else's random numbers are disturbed


def test_a_fresh_readout_says_zero_and_the_backbone_stays(at_hand):
    network, structures = CHGNetwork(), sample(18, file=at_hand).structures
    assert np.abs(outputs(network, structures)).max() > 0.1
    network.reset_readout(seed=0)
    np.testing.assert_array_equal(outputs(network, structures), 0.0)
    stock = CHGNetwork().state_dict()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, stock[name])}
    assert all(name.startswith(("stock.mlp.", "stock.readout_norm.")) for name in changed)


def test_networks_of_one_process_share_no_weights():
    one, other = CHGNetwork(), CHGNetwork()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert all(parameter.any() for name, parameter in other.named_parameters() if name.endswith("embedding.weight"))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'0\.4\.0'.*0\.3\.0, 0\.2\.0, r2scan, random"):
        CHGNetwork("0.4.0")
    with pytest.raises(ValueError, match=r"'last_four'.*none, readout, last_conv"):
        CHGNetwork().freeze("last_four")
