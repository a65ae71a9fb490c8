"""CHGNet on flat batches: the stock modules and weights, a forward pass written for whole batches.

`CHGNetwork` holds an unmodified `chgnet.model.CHGNet` (so its state dict is stock's and loads there) and
computes energies only. It is exact but for float rounding, and leaves out what cannot reach the energy:
the last angle update, magnetic moments, forces. Three things make it fast:

- the first linear map of a gated MLP acts on a concatenation [a, b, e]; it is split into W_a a + W_b b +
  W_e e, so that the products run over atoms and bonds and only their results are gathered to edges;
- the core and the gate of a gated MLP share these products;
- the bond graph lives on the bonds that form angles, not on all bonds.

Source: B. Deng et al., Nature Machine Intelligence 5, 1031 (2023); chgnet 0.4.2.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import chgnet.model
import torch
from chgnet.model.functions import GatedMLP
from torch import Tensor, nn

from data.batches import GraphBatch

Weights = Literal["0.3.0", "0.2.0", "r2scan", "random"]
WEIGHTS = get_args(Weights)
# Freeze depth, from everything frozen to nothing frozen: how many of the four interaction blocks train,
# counted from the readout backwards. `none` trains nothing but the elemental reference.
FreezeDepth = Literal["none", "readout", "last_conv", "last_two_convs", "last_three_convs", "full"]
FREEZE_DEPTHS = get_args(FreezeDepth)


@dataclass(frozen=True)
class AtomFeatureBatch:
    """What the readout needs of a batch whose backbone output is known already.

    Attributes:
        features: output of the last interaction block, float32, shape (n_atoms, 64).
        owner: graph of each atom, int64, shape (n_atoms,).
        atoms_per_graph: float32, shape (n_graphs,).
    """

    features: Tensor
    owner: Tensor
    atoms_per_graph: Tensor

    @property
    def n_graphs(self) -> int:
        """Number of graphs in the batch."""
        return len(self.atoms_per_graph)


class CHGNetwork(nn.Module):
    """CHGNet's network; its output is one number a graph, the mean over atoms of the readout.

    For pretrained weights this is the energy per atom in eV less the model's own composition energy
    (`composition_energies`), which is linear in the element fractions and therefore left to the reference.
    """

    def __init__(self, weights: str = "0.3.0", seed: int = 0) -> None:
        """Load pretrained weights, or initialise at random.

        Args:
            weights: one of `WEIGHTS`; `random` has the architecture of 0.3.0.
            seed: of the random initialisation.

        Raises:
            ValueError: unknown weights.
        """
        super().__init__()
        if weights not in WEIGHTS:
            raise ValueError(f"unknown CHGNet weights {weights!r}: choose one of {', '.join(WEIGHTS)}")
        self.weights = weights
        if weights == "random":
            arguments = {k: v for k, v in _load_stock("0.3.0").model_args.items() if k != "version"}
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                torch.manual_seed(seed)
                self.stock = chgnet.model.CHGNet(**arguments)
        else:
            self.stock = copy.deepcopy(_load_stock(weights))
        self.requires_grad_(False)
        self.train_from = len(FREEZE_DEPTHS)  # first interaction block that trains; see `freeze`

    @property
    def atom_graph_cutoff(self) -> float:
        """Angstrom; edges of the atom graph reach this far."""
        return float(self.stock.graph_converter.atom_graph_cutoff)

    @property
    def bond_graph_cutoff(self) -> float:
        """Angstrom; bonds shorter than this form angles."""
        return float(self.stock.graph_converter.bond_graph_cutoff)

    def freeze(self, depth: str) -> list[str]:
        """Let only the parameters of a freeze depth train; return their names.

        Parameters that cannot reach the energy (the last angle update, the magnetic moment head) and the
        composition energies never train.

        Raises:
            ValueError: unknown freeze depth.
        """
        if depth not in FREEZE_DEPTHS:
            raise ValueError(f"unknown freeze depth {depth!r}: choose one of {', '.join(FREEZE_DEPTHS)}")
        level = FREEZE_DEPTHS.index(depth)
        n_blocks = len(self.stock.atom_conv_layers)
        self.requires_grad_(False)
        self.train_from = n_blocks + 1 - level if level else n_blocks + 1
        modules: list[nn.Module | None] = []
        if level >= 1:
            modules += [self.stock.mlp, self.stock.readout_norm]
        for block in range(max(self.train_from, 0), n_blocks):
            modules.append(self.stock.atom_conv_layers[block])
            if block < n_blocks - 1:
                modules.append(self.stock.bond_conv_layers[block])
            if block < n_blocks - 2:  # the angles after the last bond convolution are never used
                modules.append(self.stock.angle_layers[block])
        if depth == "full":
            modules += [
                self.stock.atom_embedding,
                self.stock.bond_basis_expansion,
                self.stock.bond_embedding,
                self.stock.bond_weights_ag,
                self.stock.bond_weights_bg,
                self.stock.angle_basis_expansion,
                self.stock.angle_embedding,
            ]
        for module in modules:
            if module is not None:
                module.requires_grad_(True)
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def reset_readout(self, seed: int) -> None:
        """Give the readout fresh weights and a zero output, for a target that is not an energy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.stock.mlp.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
                    last = module
        if self.stock.readout_norm is not None:
            self.stock.readout_norm.reset_parameters()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def composition_energies(self) -> Tensor:
        """CHGNet's own elemental energies (its AtomRef), eV/atom, float32, shape (94,), by Z - 1."""
        return self.stock.composition_model.fc.weight.detach().reshape(94).clone()

    def forward(self, batch: GraphBatch | AtomFeatureBatch) -> Tensor:
        """Mean readout per atom of each graph, float32, shape (n_graphs,)."""
        features = batch.features if isinstance(batch, AtomFeatureBatch) else self.atom_features(batch)
        stock = self.stock
        normed = features if stock.readout_norm is None else stock.readout_norm(features)
        per_atom = stock.mlp(normed).squeeze(1)
        total = per_atom.new_zeros(batch.n_graphs).index_add(0, batch.owner, per_atom)
        return total / batch.atoms_per_graph

    def atom_features(self, batch: GraphBatch) -> Tensor:
        """Output of the last interaction block, before the readout's norm, float32, shape (n_atoms, 64).

        Blocks that do not train run without gradient.
        """
        stock = self.stock
        n_blocks = len(stock.atom_conv_layers)
        has_angles = len(batch.angle) > 0
        bond_of_edge = torch.arange(len(batch.bond_length), device=batch.center.device).repeat(2)

        with self._gradient_if(self.train_from <= 0):
            atoms = stock.atom_embedding(batch.numbers - 1)
            basis = stock.bond_basis_expansion.rbf_expansion_ag(batch.bond_length)
            bonds = stock.bond_embedding(basis)
            atom_weights = stock.bond_weights_ag(basis).index_select(0, bond_of_edge)
            if has_angles:
                short_length = batch.bond_length.index_select(0, batch.short_bonds)
                short_weights = stock.bond_weights_bg(stock.bond_basis_expansion.rbf_expansion_bg(short_length))
                angle_weights = short_weights.index_select(0, batch.angle_bond_i) * short_weights.index_select(
                    0, batch.angle_bond_j
                )
                angles = stock.angle_embedding(stock.angle_basis_expansion.fourier_expansion(batch.angle))

        for block in range(n_blocks):
            with self._gradient_if(block >= self.train_from):
                layer = stock.atom_conv_layers[block]
                messages = _gated_mlp(
                    layer.twoBody_atom,
                    [(atoms, batch.center), (bonds, bond_of_edge), (atoms, batch.neighbor)],
                )
                collected = torch.zeros_like(atoms).index_add(0, batch.center, messages * atom_weights)
                atoms = layer.mlp_out(collected) + atoms
                if block == n_blocks - 1 or not has_angles:
                    continue
                bonds, short = self._bond_conv(block, bonds, atoms, angles, angle_weights, batch)
                if block < n_blocks - 2:
                    layer = stock.angle_layers[block]
                    angles = _gated_mlp(layer.twoBody_bond, _angle_parts(short, angles, atoms, batch)) + angles
        return atoms

    def _bond_conv(
        self,
        block: int,
        bonds: Tensor,
        atoms: Tensor,
        angles: Tensor,
        angle_weights: Tensor,
        batch: GraphBatch,
    ) -> tuple[Tensor, Tensor]:
        """One bond convolution: all bonds, and those that form angles, after the update."""
        layer = self.stock.bond_conv_layers[block]
        short = bonds.index_select(0, batch.short_bonds)
        messages = _gated_mlp(layer.twoBody_bond, _angle_parts(short, angles, atoms, batch))
        collected = torch.zeros_like(short).index_add(0, batch.angle_bond_i, messages * angle_weights)
        linear = layer.mlp_out.layers[-1]
        update = nn.functional.linear(collected, linear.weight)
        bonds = bonds.index_add(0, batch.short_bonds, update)
        if linear.bias is not None:
            # Weights 0.2.0: the bias shifts every bond of a crystal that has any angle at all.
            bonds = bonds + linear.bias * batch.bond_has_angles
        return bonds, bonds.index_select(0, batch.short_bonds)

    @contextlib.contextmanager
    def _gradient_if(self, trains: bool) -> Iterator[None]:
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            yield


def _angle_parts(short: Tensor, angles: Tensor, atoms: Tensor, batch: GraphBatch) -> list[tuple[Tensor, Tensor | None]]:
    """What a gated MLP over angles sees: both sides, the angle, the vertex, in stock's order."""
    return [
        (short, batch.angle_bond_i),
        (short, batch.angle_bond_j),
        (angles, None),
        (atoms, batch.angle_center),
    ]


def _gated_mlp(mlp: GatedMLP, parts: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """A stock `GatedMLP` on the concatenation of gathered parts, the first product taken before the gather.

    Args:
        mlp: stock module.
        parts: (rows, index) pairs in the order of stock's concatenation; index None takes rows as they are.
    """
    core_layers, gate_layers = mlp.mlp_core.layers, mlp.mlp_gate.layers
    first_core, first_gate = _linears(core_layers)[0], _linears(gate_layers)[0]
    weight = torch.cat([first_core.weight, first_gate.weight])
    gathered = []
    column = 0
    for rows, index in parts:
        product = rows @ weight[:, column : column + rows.shape[1]].T
        column += rows.shape[1]
        gathered.append(product if index is None else product.index_select(0, index))
    hidden = torch.cat([first_core.bias, first_gate.bias])
    for part in gathered:
        hidden = part + hidden
    core, gate = hidden.split(len(first_core.bias), dim=1)
    if len(_linears(core_layers)) == 2:
        core = _linears(core_layers)[1](mlp.activation(core))
        gate = _linears(gate_layers)[1](mlp.activation(gate))
    if mlp.bn1 is not None and mlp.bn2 is not None:
        core, gate = mlp.bn1(core), mlp.bn2(gate)
    return mlp.activation(core) * mlp.sigmoid(gate)


def _linears(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


@cache
def _load_stock(weights: str) -> chgnet.model.CHGNet:
    """The stock model; kept, since trials of one process load the same weights again and again."""
    with contextlib.redirect_stdout(io.StringIO()):  # stock prints its parameter count and device
        return chgnet.model.CHGNet.load(model_name=weights, use_device="cpu", verbose=False)


@cache
def cutoffs(weights: str) -> tuple[float, float]:
    """Atom-graph and bond-graph cutoff of some weights, Angstrom."""
    network = CHGNetwork(weights)
    return network.atom_graph_cutoff, network.bond_graph_cutoff
