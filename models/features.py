"""Two ways to feed CHGNet: graphs, or the backbone's output kept from an earlier pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches import GraphBatch, graph_batch
from data.graphs import Graphs
from models.chgnet import AtomFeatureBatch, CHGNetwork

GRAPHS_PER_BATCH = 32  # of a pass without gradient


@dataclass(frozen=True)
class GraphInputs:
    """Batches that hold whole graphs, for a network of which any interaction block trains."""

    graphs: Graphs
    bond_graph_cutoff: float
    device: torch.device

    def batch(self, which: np.ndarray) -> GraphBatch:
        """A batch of the graphs at the positions `which`, int64, shape (n_graphs,)."""
        return graph_batch(self.graphs, which, self.bond_graph_cutoff).to(self.device)


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
            atoms_per_graph=self._tensor(n_atoms.astype(np.float32)),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


Inputs = GraphInputs | FeatureInputs


def backbone_features(network: CHGNetwork, graphs: Graphs, which: np.ndarray, device: torch.device) -> np.ndarray:
    """Output of the last interaction block for some graphs.

    Args:
        network: on `device`.
        graphs: of which to take some.
        which: their positions, int64.
        device: to compute on.

    Returns:
        float32, shape (n_atoms of these graphs, 64).
    """
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, device)
    which = which[graphs.atoms_per_graph[which] > 0]  # a rejected row has no atoms
    parts = [np.empty((0, network.stock.atom_fea_dim), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(which), GRAPHS_PER_BATCH):
            batch = inputs.batch(which[start : start + GRAPHS_PER_BATCH])
            parts.append(network.atom_features(batch).cpu().numpy())
    return np.concatenate(parts)


def predict(network: CHGNetwork, inputs: Inputs, which: np.ndarray) -> np.ndarray:
    """The network's output for the graphs at `which`, float64, shape (n_graphs,)."""
    step = GRAPHS_PER_BATCH if isinstance(inputs, GraphInputs) else 128 * GRAPHS_PER_BATCH
    parts = [np.empty(0)]
    with torch.inference_mode():
        for start in range(0, len(which), step):
            batch = inputs.batch(which[start : start + step])
            parts.append(network(batch).double().cpu().numpy())
    return np.concatenate(parts)
