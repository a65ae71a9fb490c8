"""What is computed once of every crystal and kept beside the graphs: the backbone's output, and energy corrections."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from data.crystals.corrections import CORRECTIONS_VERSION, mp2020_minus_legacy
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.rows import AtomFeatures, CrystalRows
from models.family import CachedArrays, Parts
from models.training.inputs import predict

# Part of the file name, raised whenever the forward pass would give other numbers, or a file's layout changes.
FORWARD_VERSION = 3


def backbone_output(weights: str, collapse: bool) -> CachedArrays:
    """The pretrained backbone's output of every crystal.

    Head-only trials read it instead of running the backbone in every epoch, and the reference of every trial is fitted
    on the energies that follow from it.

    Args:
        weights: pretrained ones.
        collapse: whether equivalent atoms are computed once, and share a row of the features.
    """
    rows = "classes" if collapse else "atoms"
    return CachedArrays(
        what="backbone features",
        prefix=f"features-{weights}-chgnet{version('chgnet')}-v{FORWARD_VERSION}-{rows}",
        compute=partial(_backbone_output, weights, collapse),
        join=partial(_joined_output, weights),
        on_gpu=True,
    )


def energy_corrections() -> CachedArrays:
    """`mp2020_minus_legacy` of every crystal, eV/atom."""
    return CachedArrays(
        what="energy corrections",
        prefix=f"corrections-pymatgen{version('pymatgen-core')}-v{CORRECTIONS_VERSION}",
        compute=_energy_corrections,
        join=_joined_corrections,
    )


def _backbone_output(
    weights: str, collapse: bool, rows: CrystalRows, which: np.ndarray, device: str
) -> dict[str, np.ndarray]:
    assert rows.graphs is not None
    network = CHGNetwork(weights).to(device)
    inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device(device), collapse)
    return vars(backbone_features(network, inputs, which))  # not `asdict`, which copies


def _joined_output(weights: str, rows: CrystalRows, parts: Parts) -> dict[str, Any]:
    """Features, and network outputs, float64, shape (n_rows,), NaN for rows without a graph."""
    graphs = rows.graphs
    assert graphs is not None
    # One part after the other into arrays of the greatest length there can be: what is not written to takes no
    # memory, and nothing is held twice.
    n_atoms = int(graphs.atom_start[-1])
    values = np.empty((n_atoms, 64), dtype=np.float32)
    atom_count = np.empty(n_atoms, dtype=np.float32)
    rows_per_graph = np.zeros(len(graphs), dtype=np.int32)
    start = 0
    for of_part, arrays in parts:
        stop = start + len(arrays["atom_count"])
        values[start:stop], atom_count[start:stop] = arrays["values"], arrays["atom_count"]
        rows_per_graph[of_part] = arrays["rows_per_graph"]
        start = stop
    features = AtomFeatures(values[:start], atom_count[:start], rows_per_graph)
    inputs = FeatureInputs(features, graphs.atoms_per_graph, torch.device("cpu"))
    good = np.flatnonzero(rows_per_graph)  # a rejected crystal has no rows
    outputs = np.full(len(graphs), np.nan)
    outputs[good] = predict(CHGNetwork(weights), inputs, good)
    return {"features": features, "outputs": outputs}


def _energy_corrections(rows: CrystalRows, which: np.ndarray, _device: str) -> dict[str, np.ndarray]:
    assert rows.graphs is not None
    return {"corrections": mp2020_minus_legacy(rows.graphs, which)}


def _joined_corrections(rows: CrystalRows, parts: Parts) -> dict[str, Any]:
    """float64, shape (n_rows,), NaN for rows without a graph."""
    corrections = np.empty(len(rows.n_atoms))
    for of_part, arrays in parts:
        corrections[of_part] = arrays["corrections"]
    return {"corrections": corrections}
