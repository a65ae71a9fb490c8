"""Two ways to feed CHGNet: graphs, or the backbone's output kept from an earlier pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches import GraphBatch, graph_batch, split_by_size
from data.graphs import Graphs
from models.chgnet import AtomFeatureBatch, CHGNetwork

# Bonds of a pass through the backbone. On a CPU the arrays of more would not stay in its cache; on a GPU
# fewer would not keep it busy, and these need about 3 GB to train on.
BONDS_PER_PASS = {"cpu": 8192, "cuda": 65_536}
GRAPHS_PER_PASS = 4096  # through the readout alone


@dataclass(frozen=True)
class GraphInputs:
    """Batches that hold whole graphs, for a network of which any interaction block trains.

    Attributes:
        graphs: to take batches from.
        bond_graph_cutoff: of the network, Angstrom.
        device: for the batches.
        collapse: whether equivalent atoms are computed once; the numbers are the same but for rounding.
    """

    graphs: Graphs
    bond_graph_cutoff: float
    device: torch.device
    collapse: bool = True

    def batch(self, which: np.ndarray) -> GraphBatch:
        """A batch of the graphs at the positions `which`, int64, shape (n_graphs,)."""
        return graph_batch(self.graphs, which, self.bond_graph_cutoff, collapse=self.collapse).to(self.device)

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        return split_by_size(self.graphs, which, BONDS_PER_PASS[self.device.type])


class FeatureInputs:
    """Batches that hold the backbone's output, for a network of which the readout alone trains.

    The numbers are those of `GraphInputs`, for the backbone is frozen; it ran once per crystal instead of
    once per epoch.
    """

    def __init__(self, features: np.ndarray, atom_start: np.ndarray, device: torch.device) -> None:
        """Take features, float32, shape (n_atoms, 64), and where each graph's atoms start; nothing is copied."""
        with warnings.catch_warnings():
            # Arrays in Ray's object store are read-only; torch warns, and nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.features = torch.from_numpy(features).to(device)
        self.atom_start = atom_start
        self.device = device

    def batch(self, which: np.ndarray) -> AtomFeatureBatch:
        """A batch of the graphs at the positions `which`, int64, shape (n_graphs,)."""
        start = self.atom_start[which]
        n_atoms = self.atom_start[which + 1] - start
        owner = np.repeat(np.arange(len(which)), n_atoms)
        first = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
        atoms = np.arange(n_atoms.sum()) + (start - first)[owner]
        return AtomFeatureBatch(
            features=self.features.index_select(0, self._tensor(atoms)),
            owner=self._tensor(owner),
            atom_count=torch.ones(len(atoms), device=self.device),
            atoms_per_graph=self._tensor(n_atoms.astype(np.float32)),
        )

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        return np.split(which, range(GRAPHS_PER_PASS, len(which), GRAPHS_PER_PASS))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


Inputs = GraphInputs | FeatureInputs


def backbone_features(network: CHGNetwork, inputs: GraphInputs, which: np.ndarray) -> np.ndarray:
    """Output of the last interaction block for some graphs.

    Args:
        network: on the device of the inputs.
        inputs: graphs.
        which: positions of those to compute, int64.

    Returns:
        float32, shape (n_atoms of these graphs, 64).
    """
    which = which[inputs.graphs.atoms_per_graph[which] > 0]  # a rejected row has no atoms
    parts = [np.empty((0, network.stock.atom_fea_dim), dtype=np.float32)]
    with torch.inference_mode():
        for run in inputs.passes(which):
            batch = inputs.batch(run)
            parts.append(network.atom_features(batch).index_select(0, batch.row_of_atom).cpu().numpy())
    return np.concatenate(parts)


def predict(network: CHGNetwork, inputs: Inputs, which: np.ndarray) -> np.ndarray:
    """The network's output for the graphs at `which`, float64, shape (n_graphs,)."""
    parts = [np.empty(0)]
    with torch.inference_mode():
        for run in inputs.passes(which):
            parts.append(network(inputs.batch(run)).double().cpu().numpy())
    return np.concatenate(parts)
