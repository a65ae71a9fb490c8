"""Two ways to feed CHGNet: graphs, or the backbone's output kept from an earlier pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from data.crystals.batches import GraphBatch, graph_batch, split_by_size
from data.crystals.graphs import Graphs
from data.crystals.padding import BatchSize, padded, size_above, size_of
from models.crystals.chgnet.network import AtomFeatureBatch, CHGNetwork
from models.crystals.rows import AtomFeatures, feature_rows
from models.training.inputs import by_pass

# Bonds of a pass through the backbone. On a CPU the arrays of more would not stay in its cache; on a GPU
# fewer would not keep it busy, and these need about 3 GB to train on.
BONDS_PER_PASS = {"cpu": 8192, "cuda": 65_536}
GRAPHS_PER_PASS = 512  # through the readout alone


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
        return self.on_cpu(which).to(self.device)

    def on_cpu(self, which: np.ndarray) -> GraphBatch:
        """The same, not yet on the device."""
        return graph_batch(self.graphs, which, self.bond_graph_cutoff, collapse=self.collapse)

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        return split_by_size(self.graphs, which, BONDS_PER_PASS[self.device.type])

    def size(self, which: np.ndarray) -> BatchSize:
        """See `RecordableInputs`."""
        return size_of(self.on_cpu(which))

    def padded(self, batch: GraphBatch, typical: tuple[float, ...]) -> tuple[GraphBatch, int]:
        """See `RecordableInputs`."""
        size, level = size_above(size_of(batch), BatchSize(*typical))
        return padded(batch, size), level


class FeatureInputs:
    """Batches that hold the backbone's output, for a network of which the readout alone trains.

    The numbers are those of `GraphInputs`, for the backbone is frozen; it ran once per crystal instead of
    once per epoch.
    """

    def __init__(self, features: AtomFeatures, atoms_per_graph: np.ndarray, device: torch.device) -> None:
        """Take features of all crystals, and how many atoms each has; on a CPU the features are not copied."""
        with warnings.catch_warnings():
            # Arrays in Ray's object store are read-only; torch warns, and nothing here writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.values = torch.from_numpy(features.values).to(device)
            self.atom_count = torch.from_numpy(features.atom_count).to(device)
        self.atoms_per_graph = torch.from_numpy(atoms_per_graph.astype(np.float32)).to(device)
        self.start = np.concatenate([[0], np.cumsum(features.rows_per_graph, dtype=np.int64)])
        self.device = device

    def batch(self, which: np.ndarray) -> AtomFeatureBatch:
        """A batch of the graphs at the positions `which`, int64, shape (n_graphs,)."""
        rows, owner = (torch.from_numpy(array).to(self.device) for array in feature_rows(self.start, which))
        return AtomFeatureBatch(
            features=self.values.index_select(0, rows),
            owner=owner,
            atom_count=self.atom_count.index_select(0, rows),
            atoms_per_graph=self.atoms_per_graph.index_select(0, torch.from_numpy(which).to(self.device)),
        )

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        return [which[k : k + GRAPHS_PER_PASS] for k in range(0, len(which), GRAPHS_PER_PASS)]


def backbone_features(network: CHGNetwork, inputs: GraphInputs, which: np.ndarray) -> AtomFeatures:
    """Output of the last interaction block for some graphs.

    Args:
        network: on the device of the inputs.
        inputs: graphs.
        which: positions of those to compute, int64.
    """
    rows_per_graph = np.zeros(len(which), dtype=np.int32)
    whole = np.flatnonzero(inputs.graphs.atoms_per_graph[which] > 0)  # a rejected row has no atoms

    def compute(run: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch = inputs.batch(run)
        rows = np.bincount(batch.owner.cpu().numpy(), minlength=len(run))
        return network.atom_features(batch).cpu().numpy(), batch.atom_count.cpu().numpy(), rows

    parts_of_rows = [
        (np.empty((0, network.stock.atom_fea_dim), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    ]
    with torch.inference_mode():
        parts_of_rows += by_pass(compute, inputs.passes(which[whole]))
    values, counts, rows = (np.concatenate(parts) for parts in zip(*parts_of_rows, strict=True))
    rows_per_graph[whole] = rows
    return AtomFeatures(values, counts, rows_per_graph)
