"""CHGNet on flat batches: the stock modules and weights, a forward pass written for whole batches.

`CHGNetwork` holds an unmodified `chgnet.model.CHGNet` (so its state dict is stock's and loads there) and
computes energies only. It is exact but for float rounding, and leaves out what cannot reach the energy:
the last angle update, magnetic moments, forces. Three things make it fast: products are taken before they
are gathered, and what lies between products is one compiled kernel (`gated.py`); equivalent atoms,
bonds and angles are computed once (`data/crystals/symmetry.py`); the bond graph lives on the bonds that form angles.

Source: B. Deng et al., Nature Machine Intelligence 5, 1031 (2023); chgnet 0.4.2.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, Self, get_args

import torch
from torch import Tensor, nn

from data.crystals.batches import GraphBatch
from models.crystals.chgnet.gated import gated_rows, summed_messages
from models.crystals.chgnet.gather import Positions, added, summed, taken
from models.training.inputs import Mix

if TYPE_CHECKING:
    from chgnet.model import CHGNet  # takes two seconds to import: where a network is made, below

WeightsName = Literal["0.3.0", "0.2.0", "r2scan", "random"]
WEIGHTS = get_args(WeightsName)
# Freeze depth, from everything frozen to nothing frozen: how many of the four interaction blocks train,
# counted from the readout backwards. `none` trains nothing but the elemental reference.
FreezeDepth = Literal["none", "readout", "last_conv", "last_two_convs", "last_three_convs", "full"]
FREEZE_DEPTHS = get_args(FreezeDepth)


@dataclass(frozen=True)
class AtomFeatureBatch:
    """What the readout needs of a batch whose backbone output is known already.

    Attributes:
        features: output of the last interaction block, float32, shape (n_rows, 64); a row for each atom, or for
            each class of equivalent ones.
        owner: graph of each row, shape (n_rows,).
        atom_count: how many atoms of the crystal a row stands for, float32, shape (n_rows,).
        atoms_per_graph: float32, shape (n_graphs,).
    """

    features: Tensor
    owner: Tensor
    atom_count: Tensor
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
            from chgnet.model import CHGNet

            arguments = {k: v for k, v in _load_stock("0.3.0").model_args.items() if k != "version"}
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                torch.manual_seed(seed)
                self.stock = CHGNet(**arguments)
        else:
            self.stock = copy.deepcopy(_load_stock(weights))
        self.requires_grad_(False)
        self.train_from = len(FREEZE_DEPTHS)  # first interaction block that trains; see `freeze`
        self.level = 0  # position of the freeze depth in `FREEZE_DEPTHS`

    @property
    def atom_graph_cutoff(self) -> float:
        """Angstrom; edges of the atom graph reach this far."""
        return float(self.stock.graph_converter.atom_graph_cutoff)

    @property
    def bond_graph_cutoff(self) -> float:
        """Angstrom; bonds shorter than this form angles."""
        return float(self.stock.graph_converter.bond_graph_cutoff)

    def train(self, mode: bool = True) -> Self:
        """Note the mode here alone: CHGNet has no dropout and no batch norm.

        To tell each of its modules takes longer than a small epoch, before and after which it is asked for.
        """
        self.training = mode
        return self

    def freeze(self, depth: str) -> list[str]:
        """Let only the parameters of a freeze depth train; return their names.

        Parameters that cannot reach the energy (the last angle update, the magnetic moment head) and the
        composition energies never train.

        Raises:
            ValueError: unknown freeze depth.
        """
        if depth not in FREEZE_DEPTHS:
            raise ValueError(f"unknown freeze depth {depth!r}: choose one of {', '.join(FREEZE_DEPTHS)}")
        self.level = level = FREEZE_DEPTHS.index(depth)
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

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What trains at the freeze depth set, from the readout backwards: a group is what one more depth adds."""
        groups, ids = [], set[int]()
        for depth in FREEZE_DEPTHS[1 : self.level + 1]:
            self.freeze(depth)
            groups.append([p for p in self.parameters() if p.requires_grad and id(p) not in ids])
            ids.update(map(id, groups[-1]))
        return groups

    def open_groups(self, n_groups: int) -> None:
        """Let the first so many of `parameter_groups` train."""
        self.freeze(FREEZE_DEPTHS[n_groups])

    def rescale(self, shift: float, scale: float) -> None:
        """Change the last layer so that the output becomes (output - shift) / scale."""
        last = [module for module in self.stock.mlp.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight /= scale
            last.bias.sub_(shift).div_(scale)

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

    def forward(self, batch: GraphBatch | AtomFeatureBatch, mix: Mix | None = None) -> Tensor:
        """Mean readout per atom of each graph, float32, shape (n_graphs,).

        Mixing happens where a crystal is a set of atom features, before the readout: a mixture of two crystals has no
        structure, but its atoms can be mixtures of an atom of the one and an atom of the other.
        """
        features = batch.features if isinstance(batch, AtomFeatureBatch) else self.atom_features(batch)
        if mix is not None:
            features = torch.lerp(features[_partner_rows(batch, mix)], features, mix.share)
        stock = self.stock
        normed = features if stock.readout_norm is None else stock.readout_norm(features)
        per_atom = stock.mlp(normed).squeeze(1) * batch.atom_count
        return summed(per_atom, Positions(batch.owner, batch.n_graphs)) / batch.atoms_per_graph

    def atom_features(self, batch: GraphBatch) -> Tensor:
        """Output of the last interaction block, before the readout's norm, float32, shape (n_atoms, 64).

        Blocks that do not train run without gradient.
        """
        stock = self.stock
        n_blocks = len(stock.atom_conv_layers)
        has_angles = len(batch.angle) > 0
        n_atoms, n_bonds, n_short = len(batch.numbers), len(batch.bond_length), len(batch.short_bonds)
        center, neighbor = Positions(batch.center, n_atoms), Positions(batch.neighbor, n_atoms)
        edge_bond, short_bonds = Positions(batch.edge_bond, n_bonds), Positions(batch.short_bonds, n_bonds)
        side_i, side_j = Positions(batch.angle_bond_i, n_short), Positions(batch.angle_bond_j, n_short)
        angle_center = Positions(batch.angle_center, n_atoms)

        with self._gradient_if(self.train_from <= 0):
            elements = stock.atom_embedding.embedding.weight
            atoms = taken(elements, Positions(batch.numbers - 1, len(elements)))
            basis = stock.bond_basis_expansion.rbf_expansion_ag(batch.bond_length)
            bonds = stock.bond_embedding(basis)
            atom_weights = [(stock.bond_weights_ag(basis), edge_bond)]
            if has_angles:
                short_length = batch.bond_length.index_select(0, batch.short_bonds)
                short_weights = stock.bond_weights_bg(stock.bond_basis_expansion.rbf_expansion_bg(short_length))
                angle_weights = [(short_weights, side_i), (short_weights, side_j)]
                angles = stock.angle_embedding(_fourier(stock.angle_basis_expansion.fourier_expansion, batch.angle))
                each_angle = Positions(torch.arange(len(angles), dtype=torch.int32, device=angles.device), len(angles))

        for block in range(n_blocks):
            with self._gradient_if(block >= self.train_from):
                layer = stock.atom_conv_layers[block]
                parts = [(atoms, center), (bonds, edge_bond), (atoms, neighbor)]
                collected = summed_messages(layer.twoBody_atom, parts, atom_weights, batch.edge_count, center)
                atoms = layer.mlp_out(collected) + atoms
                if block == n_blocks - 1 or not has_angles:
                    continue

                # Only bonds that form angles receive anything.
                layer = stock.bond_conv_layers[block]
                short = taken(bonds, short_bonds)
                sides = [(short, side_i), (short, side_j)]
                parts = [*sides, (angles, each_angle), (atoms, angle_center)]
                collected = summed_messages(layer.twoBody_bond, parts, angle_weights, batch.angle_count, side_i)
                linear = layer.mlp_out.layers[-1]
                bonds = added(bonds, nn.functional.linear(collected, linear.weight), short_bonds)
                if linear.bias is not None:
                    # Weights 0.2.0: the bias shifts every bond of a crystal that has any angle at all.
                    bonds = bonds + linear.bias * batch.bond_has_angles

                if block < n_blocks - 2:  # the angles after the last bond convolution are never used
                    short = taken(bonds, short_bonds)
                    sides = [(short, side_i), (short, side_j)]
                    parts = [*sides, (angles, each_angle), (atoms, angle_center)]
                    angles = gated_rows(stock.angle_layers[block].twoBody_bond, parts) + angles
        return atoms

    @contextlib.contextmanager
    def _gradient_if(self, trains: bool) -> Iterator[None]:
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            yield


def _fourier(expansion: nn.Module, angle: Tensor) -> Tensor:
    """Stock's expansion of angles, float32, shape (n_angles, 2 * order + 1), to the last digit.

    Stock's own copies a number from the CPU, which no CUDA graph can hold.
    """
    turns = torch.outer(angle, expansion.frequencies)
    constant = torch.full_like(angle, 0.5**0.5)[:, None]
    return torch.cat([constant, torch.sin(turns), torch.cos(turns)], dim=1) / math.sqrt(math.pi)


def _partner_rows(batch: GraphBatch | AtomFeatureBatch, mix: Mix) -> Tensor:
    """For each row an atom of its graph's partner, drawn at random, each atom as likely; int64, shape (n_rows,)."""
    partner = mix.partner[batch.owner]
    atoms_until = torch.cumsum(batch.atom_count, 0)  # exact: whole numbers
    first_atom = torch.cumsum(batch.atoms_per_graph, 0) - batch.atoms_per_graph
    drawn = torch.rand(len(partner), generator=mix.generator).to(partner.device)
    atom = torch.floor(drawn * batch.atoms_per_graph[partner]) + first_atom[partner]
    return torch.searchsorted(atoms_until, atom, right=True)


@cache
def _load_stock(weights: str) -> CHGNet:
    """The stock model; kept, since trials of one process load the same weights again and again."""
    from chgnet.model import CHGNet

    with contextlib.redirect_stdout(io.StringIO()):  # stock prints its parameter count and device
        return CHGNet.load(model_name=weights, use_device="cpu", verbose=False)


@cache
def pretrained(weights: str, device: str) -> CHGNetwork:
    """The network as it was pretrained, to describe crystals with; kept, and never to be trained."""
    return CHGNetwork(weights).to(device).eval()


@cache
def cutoffs(weights: str) -> tuple[float, float]:
    """Atom-graph and bond-graph cutoff of some weights, Angstrom."""
    network = CHGNetwork(weights)
    return network.atom_graph_cutoff, network.bond_graph_cutoff
