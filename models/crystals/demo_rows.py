"""Makes rows of the embedded demo, on which a lever is tried that a task of few crystals cannot show.

Where a few rows leave nothing to learn, a model gives the same predictions whatever its config: a linear model of the
composition already fits them, say. A lever that does something elsewhere is no mistake then; one that does nothing
here either is refused.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from data.crystals.convert import convert_chunk
from data.crystals.graphs import Graph, element_fractions, stack
from data.crystals.task_table import DEMO
from data.crystals.tasks import open_named
from data.task import Kind, Quantity
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.network import CHGNetwork, WeightsName, cutoffs
from models.crystals.rows import CrystalRows
from models.model import TrainingPart
from models.training.inputs import predict

N_TRAIN, N_VAL = 80, 20


@cache
def demo_rows(weights: WeightsName, kind: Kind, quantity: Quantity) -> tuple[CrystalRows, TrainingPart]:
    """Makes the demo's smallest crystals the rows of a task of some kind.

    Args:
        weights: whose features, outputs and cutoffs the rows have.
        kind: the targets of a classification say whether an energy is above the median.
        quantity: what the targets are said to be.
    """
    n = N_TRAIN + N_VAL
    _, rows = open_named(DEMO.name, Path())
    rows = rows.select(np.argsort(np.diff(rows.spans).ravel(), kind="stable")[:n].tolist(), "")
    _, converted, _ = convert_chunk(rows.chunk(0, n), cutoffs(weights)[0])
    graphs = stack([graph for graph in converted if isinstance(graph, Graph)])
    assert len(graphs) == n, "every crystal of the demo has a graph"
    features = outputs = None
    if weights != "random":
        network, cpu = CHGNetwork(weights), torch.device("cpu")
        everything = np.arange(n)
        features = backbone_features(network, GraphInputs(graphs, network.bond_graph_cutoff, cpu, True), everything)
        outputs = predict(network, FeatureInputs(features, graphs.atoms_per_graph, cpu), everything)
    n_atoms = graphs.atoms_per_graph.astype(np.int32)
    targets = rows.targets * n_atoms if quantity == "energy_per_cell" else rows.targets
    if kind == "classification":
        targets = (targets > np.median(targets)).astype(np.float64)
    order = np.random.default_rng(0).permutation(n)
    return (
        CrystalRows(element_fractions(graphs), n_atoms, graphs, features, outputs),
        TrainingPart(targets, order[:N_TRAIN], order[N_TRAIN:], kind, quantity),
    )
