"""The pretrained backbone's output for every crystal: computed once in parallel, kept beside the graphs.

Head-only trials read it instead of running the backbone in every epoch, and the reference of every trial
is fitted on the energies that follow from it.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
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
from data.storage import file_names, open_folder, read_whole, write_whole
from models.chgnet import CHGNetwork
from models.device import device_of_share
from models.features import FeatureInputs, GraphInputs, backbone_features, predict

# Part of the file name, raised whenever the forward pass would give other numbers.
FORWARD_VERSION = 2
ROWS_PER_PART = ROWS_PER_SHARD // 8  # small enough that two cores share a data set of a thousand crystals


def pretrained_outputs(
    graphs: Graphs, weights: str, cache_folder: str, gpus_per_task: float, collapse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Backbone features and outputs of pretrained weights, from the cache where they are there and whole.

    Args:
        graphs: of all rows.
        weights: pretrained ones.
        cache_folder: path or URI of the graphs' own cache.
        gpus_per_task: share of a GPU a task may use; 0 computes on the CPU.
        collapse: whether equivalent atoms are computed once.

    Returns:
        Features, float32, shape (n_atoms, 64), and network outputs, float64, shape (n_rows,), NaN for
        rows without a graph.
    """
    filesystem, path = open_folder(cache_folder)
    atoms = "classes" if collapse else "atoms"
    prefix = f"features-{weights}-chgnet{version('chgnet')}-v{FORWARD_VERSION}-{atoms}-{ROWS_PER_PART}"
    n_parts = math.ceil(len(graphs) / ROWS_PER_PART)
    parts = _read_parts(filesystem, path, prefix)
    missing = [number for number in range(n_parts) if number not in parts]
    if missing:
        shared = ray.put(graphs)
        task = _compute_part.options(num_cpus=1, num_gpus=gpus_per_task)
        running = {
            task.remote(shared, weights, collapse, number, cache_folder, prefix, gpus_per_task): number
            for number in missing
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
                number = running.pop(finished)
                parts[number] = ray.get(finished)
                progress.advance(bar, len(_part(graphs, number)))
    features = np.concatenate([parts[number] for number in range(n_parts)])
    assert len(features) == graphs.atom_start[-1]
    inputs = FeatureInputs(features, graphs.atom_start, torch.device("cpu"))
    good = np.flatnonzero(graphs.atoms_per_graph > 0)
    outputs = np.full(len(graphs), np.nan)
    outputs[good] = predict(CHGNetwork(weights), inputs, good)
    return features, outputs


@ray.remote(max_retries=3)
def _compute_part(
    graphs: Graphs, weights: str, collapse: bool, number: int, cache_folder: str, prefix: str, gpus: float
) -> np.ndarray:
    """Features of one run of rows, written to the cache under a name that carries their checksum."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = device_of_share(gpus)
    network = CHGNetwork(weights).to(device)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, device, collapse)
    features = backbone_features(network, inputs, _part(graphs, number))
    buffer = io.BytesIO()
    np.save(buffer, features)
    filesystem, path = open_folder(cache_folder)
    checksum = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_whole(filesystem, f"{path}/{prefix}-{number:05d}-{checksum}.npy", buffer.getvalue())
    return features


def _part(graphs: Graphs, number: int) -> np.ndarray:
    """Rows of a part."""
    return np.arange(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, len(graphs)))


def _read_parts(filesystem: fs.FileSystem, folder: str, prefix: str) -> dict[int, np.ndarray]:
    """Parts in the cache by number; a damaged one is deleted and counts as missing."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{5})-([0-9a-f]{64})\.npy")
    parts = {}
    for match in filter(None, map(pattern.fullmatch, file_names(filesystem, folder))):
        content = read_whole(filesystem, f"{folder}/{match[0]}")
        if hashlib.sha256(content).hexdigest() == match[2]:
            parts[int(match[1])] = np.load(io.BytesIO(content))
        else:
            say(f"damaged, will be computed again: {match[0]}", style="yellow")
            filesystem.delete_file(f"{folder}/{match[0]}")
    return parts
