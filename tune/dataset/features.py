"""The pretrained backbone's output for every crystal: computed once in parallel, kept beside the graphs.

Head-only trials read it instead of running the backbone in every epoch, and the reference of every trial
is fitted on the energies that follow from it.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import ray
import torch

from data.crystals.graphs import Graphs
from data.machine.allocator import keep_freed_memory
from data.stores.storage import open_folder
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.rows import AtomFeatures
from models.device import device_of_share
from models.training.inputs import predict
from tune.dataset.parts import ROWS_PER_PART, Parts, joined_parts, rows_of_part, write_part

# Part of the file name, raised whenever the forward pass would give other numbers, or a file's layout changes.
FORWARD_VERSION = 3


def pretrained_outputs(
    graphs_ref: ray.ObjectRef,
    weights: str,
    cache_folder: str,
    gpus_per_task: float,
    collapse: bool,
    at_once: int | None = None,
) -> tuple[AtomFeatures, np.ndarray]:
    """Backbone features and outputs of pretrained weights, from the cache where they are there and whole.

    Args:
        graphs_ref: `Graphs` of all rows, in the object store.
        weights: pretrained ones.
        cache_folder: path or URI of the graphs' own cache.
        gpus_per_task: share of a GPU a task may use; 0 computes on the CPU.
        collapse: whether equivalent atoms are computed once, and share a row of the features.
        at_once: tasks at once; None: as many as fit.

    Returns:
        Features, and network outputs, float64, shape (n_rows,), NaN for rows without a graph.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """
    graphs: Graphs = ray.get(graphs_ref)
    task = _compute_part.options(num_cpus=1, num_gpus=gpus_per_task)
    features = joined_parts(
        "backbone features",
        feature_prefix(weights, collapse),
        len(graphs),
        cache_folder,
        compute=lambda number: task.remote(graphs_ref, weights, collapse, number, cache_folder, gpus_per_task),
        join=lambda parts: _joined(parts, graphs),
        at_once=at_once,
    )
    inputs = FeatureInputs(features, graphs.atoms_per_graph, torch.device("cpu"))
    good = np.flatnonzero(graphs.atoms_per_graph > 0)
    outputs = np.full(len(graphs), np.nan)
    outputs[good] = predict(CHGNetwork(weights), inputs, good)
    return features, outputs


def feature_prefix(weights: str, collapse: bool) -> str:
    """How the names of the parts begin: all that their content depends on, beside the graphs."""
    rows = "classes" if collapse else "atoms"
    return f"features-{weights}-chgnet{version('chgnet')}-v{FORWARD_VERSION}-{rows}-{ROWS_PER_PART}"


@ray.remote(max_retries=3)
def _compute_part(graphs: Graphs, weights: str, collapse: bool, number: int, cache_folder: str, gpus: float) -> None:
    """Compute the features of one run of rows and write them to the cache."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = device_of_share(gpus)
    network = CHGNetwork(weights).to(device)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, device, collapse)
    features = backbone_features(network, inputs, rows_of_part(len(graphs), number))
    # Not `asdict`, which copies.
    write_part(*open_folder(cache_folder), feature_prefix(weights, collapse), number, vars(features))


def _joined(parts: Parts, graphs: Graphs) -> AtomFeatures:
    """The features of all rows."""
    # One part after the other into arrays of the greatest length there can be: what is not written to takes no
    # memory, and nothing is held twice.
    n_atoms = int(graphs.atom_start[-1])
    values = np.empty((n_atoms, 64), dtype=np.float32)
    atom_count = np.empty(n_atoms, dtype=np.float32)
    rows_per_graph = np.empty(len(graphs), dtype=np.int32)
    done = 0
    for rows, part in parts:
        stop = done + len(part["atom_count"])
        values[done:stop], atom_count[done:stop] = part["values"], part["atom_count"]
        rows_per_graph[rows] = part["rows_per_graph"]
        done = stop
    return AtomFeatures(values[:done], atom_count[:done], rows_per_graph)
