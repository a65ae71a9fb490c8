"""The pretrained backbone's output for every crystal: computed once in parallel, kept beside the graphs.

Head-only trials read it instead of running the backbone in every epoch, and the reference of every trial
is fitted on the energies that follow from it.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import ray
import torch
from pyarrow import fs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.allocator import keep_freed_memory
from data.build_cache import console, say
from data.graphs import Graphs
from data.shards import ROWS_PER_SHARD
from data.storage import StorageError, file_names, open_folder, read_whole, write_whole
from models.device import device_of_share
from models.features import AtomFeatures, FeatureInputs, GraphInputs, backbone_features, predict
from models.network import CHGNetwork

# Part of the file name, raised whenever the forward pass would give other numbers, or a file's layout changes.
FORWARD_VERSION = 3
ROWS_PER_PART = ROWS_PER_SHARD // 8  # small enough that two cores share a data set of a thousand crystals
_REPAIRS = 3  # computations of damaged parts before giving up: a disk that damages what it stores


def pretrained_outputs(
    graphs_ref: ray.ObjectRef, weights: str, cache_folder: str, gpus_per_task: float, collapse: bool
) -> tuple[AtomFeatures, np.ndarray]:
    """Backbone features and outputs of pretrained weights, from the cache where they are there and whole.

    Args:
        graphs_ref: `Graphs` of all rows, in the object store.
        weights: pretrained ones.
        cache_folder: path or URI of the graphs' own cache.
        gpus_per_task: share of a GPU a task may use; 0 computes on the CPU.
        collapse: whether equivalent atoms are computed once, and share a row of the features.

    Returns:
        Features, and network outputs, float64, shape (n_rows,), NaN for rows without a graph.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """
    filesystem, path = open_folder(cache_folder)
    prefix = feature_prefix(weights, collapse)
    graphs: Graphs = ray.get(graphs_ref)
    for _ in range(_REPAIRS):
        present = parts_present(filesystem, path, prefix)
        missing = [number for number in range(n_parts(len(graphs))) if number not in present]
        _compute(missing, graphs_ref, weights, collapse, cache_folder, gpus_per_task)
        features = _read(filesystem, path, prefix, graphs)
        if features is not None:
            break
    else:
        raise StorageError(f"{cache_folder}: what is written there comes back damaged; use another disk for the cache")
    inputs = FeatureInputs(features, graphs.atoms_per_graph, torch.device("cpu"))
    good = np.flatnonzero(graphs.atoms_per_graph > 0)
    outputs = np.full(len(graphs), np.nan)
    outputs[good] = predict(CHGNetwork(weights), inputs, good)
    return features, outputs


def feature_prefix(weights: str, collapse: bool) -> str:
    """How the names of the parts begin: all that their content depends on, beside the graphs."""
    rows = "classes" if collapse else "atoms"
    return f"features-{weights}-chgnet{version('chgnet')}-v{FORWARD_VERSION}-{rows}-{ROWS_PER_PART}"


def n_parts(n_rows: int) -> int:
    """Parts that hold the features of so many rows of a task."""
    return math.ceil(n_rows / ROWS_PER_PART)


def parts_present(filesystem: fs.FileSystem, folder: str, prefix: str) -> dict[int, str]:
    """Names of the parts in the cache, by number."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{5})-[0-9a-f]{64}\.npz")
    return {int(match[1]): match[0] for match in filter(None, map(pattern.fullmatch, file_names(filesystem, folder)))}


def _compute(
    missing: list[int], graphs_ref: ray.ObjectRef, weights: str, collapse: bool, cache_folder: str, gpus_per_task: float
) -> None:
    """Write the missing parts."""
    if not missing:
        return
    graphs: Graphs = ray.get(graphs_ref)
    task = _compute_part.options(num_cpus=1, num_gpus=gpus_per_task)
    running = {
        task.remote(graphs_ref, weights, collapse, number, cache_folder, gpus_per_task): number for number in missing
    }
    progress = Progress(
        TextColumn("backbone features"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        to_do = sum(len(_part(graphs, number)) for number in missing)
        bar = progress.add_task("features", total=len(graphs), completed=len(graphs) - to_do)
        while running:
            (finished,), _ = ray.wait(list(running))
            ray.get(finished)
            progress.advance(bar, len(_part(graphs, running.pop(finished))))


@ray.remote(max_retries=3)
def _compute_part(graphs: Graphs, weights: str, collapse: bool, number: int, cache_folder: str, gpus: float) -> None:
    """Compute the features of one run of rows and write them to the cache."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = device_of_share(gpus)
    network = CHGNetwork(weights).to(device)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, device, collapse)
    features = backbone_features(network, inputs, _part(graphs, number))
    filesystem, path = open_folder(cache_folder)
    write_part(filesystem, path, feature_prefix(weights, collapse), number, features)


def write_part(filesystem: fs.FileSystem, folder: str, prefix: str, number: int, features: AtomFeatures) -> None:
    """Write a part to the cache, under a name that carries its checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, **asdict(features))
    checksum = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_whole(filesystem, f"{folder}/{prefix}-{number:05d}-{checksum}.npz", buffer.getvalue())


def _part(graphs: Graphs, number: int) -> np.ndarray:
    """Rows of a part."""
    return np.arange(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, len(graphs)))


def _read(filesystem: fs.FileSystem, folder: str, prefix: str, graphs: Graphs) -> AtomFeatures | None:
    """All parts as one; None if any is damaged: it is deleted then."""
    # One part after the other into arrays of the greatest length there can be: what is not written to takes no
    # memory, and nothing is held twice.
    n_atoms = int(graphs.atom_start[-1])
    values = np.empty((n_atoms, 64), dtype=np.float32)
    atom_count = np.empty(n_atoms, dtype=np.float32)
    rows_per_graph = np.empty(len(graphs), dtype=np.int32)
    done = 0
    damaged = False
    for number, name in sorted(parts_present(filesystem, folder, prefix).items()):
        content = read_whole(filesystem, f"{folder}/{name}")
        if not name.endswith(f"-{hashlib.sha256(content).hexdigest()}.npz"):
            say(f"damaged, will be computed again: {name}", style="yellow")
            filesystem.delete_file(f"{folder}/{name}")
            damaged = True
            continue
        part = np.load(io.BytesIO(content))
        stop = done + len(part["atom_count"])
        values[done:stop], atom_count[done:stop] = part["values"], part["atom_count"]
        rows_per_graph[_part(graphs, number)] = part["rows_per_graph"]
        done = stop
    return None if damaged else AtomFeatures(values[:done], atom_count[:done], rows_per_graph)
