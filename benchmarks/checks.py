"""That both sides come to the same: as many edges and angles, the same energies, the same gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from chgnet.graph import CrystalGraph
from chgnet.model import CHGNet
from chgnet.model.model import BatchedGraph

from benchmarks import stock
from benchmarks.cases import BOND_CUTOFF, BenchmarkError, StructureSet
from data.crystals.batches import GraphBatch
from data.crystals.graphs import Graph, Graphs, element_fractions, stack
from models.crystals.chgnet.features import GraphInputs
from models.crystals.chgnet.network import CHGNetwork
from models.training.inputs import Inputs, predict
from models.training.train import GradientRun

CPU = torch.device("cpu")
MOST_DIFFERENCE, MEAN_DIFFERENCE = 2e-5, 1e-6  # of energies, eV/atom; stock is up to 1.3e-5 off double precision
MOST_GRADIENT_DIFFERENCE = 1e-4  # of the norm


def graph_inputs(graphs: Graphs, collapse: bool, device: torch.device = CPU) -> GraphInputs:
    """Batches of graphs with the equivalent atoms of a crystal computed once, or each."""
    return GraphInputs(graphs, BOND_CUTOFF, device, collapse=collapse)


def energies(network: CHGNetwork, inputs: Inputs, graphs: Graphs) -> np.ndarray:
    """Energies as stock gives them, eV/atom, float64, shape (n,)."""
    composition = element_fractions(graphs) @ network.composition_energies().cpu().numpy()
    return predict(network, inputs, np.arange(len(graphs))) + composition


def same_graphs(theirs: Sequence[CrystalGraph], ours: Graphs | Sequence[Graph | str]) -> dict[str, float]:
    """Refuse graphs of which any has another number of edges or angles than stock's."""
    if not isinstance(ours, Graphs):
        if refused := [graph for graph in ours if isinstance(graph, str)]:
            raise BenchmarkError(f"{len(refused)} structures were rejected: {refused[0]}")
        ours = stack([graph for graph in ours if isinstance(graph, Graph)])
    batch = graph_inputs(ours, collapse=False).batch(np.arange(len(ours)))
    angles = np.bincount(batch.owner[batch.angle_center].numpy(), minlength=len(ours))
    expected = np.array([(len(graph.atom_graph), len(graph.bond_graph)) for graph in theirs])
    _refuse_unequal("edges and angles of a graph", expected, np.stack([2 * np.diff(ours.bond_start), angles], axis=1))
    return {"max_abs_difference": 0.0}


def same_batches(theirs: Sequence[BatchedGraph], ours: Sequence[GraphBatch]) -> dict[str, float]:
    """Refuse batches of which any has another number of edges or angles than stock's."""
    expected = np.array([(len(batch.batched_atom_graph), len(batch.batched_bond_graph)) for batch in theirs])
    _refuse_unequal(
        "edges and angles of a batch", expected, np.array([(len(one.center), len(one.angle)) for one in ours])
    )
    return {"max_abs_difference": 0.0}


def _refuse_unequal(what: str, theirs: np.ndarray, ours: np.ndarray) -> None:
    if theirs.shape != ours.shape or (theirs != ours).any():
        k = int(np.argmax((theirs != ours).any(axis=1))) if theirs.shape == ours.shape else 0
        raise BenchmarkError(f"{what} differ, the first at {k}: stock has {theirs[k]}, we have {ours[k]}")


def same_energies(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Refuse energies further apart than rounding explains."""
    difference = np.abs(theirs - ours)
    if not (difference.max() <= MOST_DIFFERENCE and difference.mean() <= MEAN_DIFFERENCE):
        raise BenchmarkError(
            f"energies differ by up to {difference.max():.2g} and on average {difference.mean():.2g} eV/atom; "
            f"allowed are {MOST_DIFFERENCE:g} and {MEAN_DIFFERENCE:g}"
        )
    return {"max_abs_difference": float(difference.max()), "mean_abs_difference": float(difference.mean())}


def same_network(network: CHGNet, run: GradientRun, cases: StructureSet) -> dict[str, float]:
    """Refuse a run whose network and inputs give, before training, other energies than stock's."""
    ours = energies(run.network, run.inputs, cases.graphs)
    return same_energies(stock.energies(network, cases.stock_graphs), ours)


def gradient_difference(network: CHGNet, run: GradientRun, cases: StructureSet) -> float:
    """Relative difference of the gradients of 16 summed energies, over all parameters that train.

    Raises:
        BenchmarkError: it is more than rounding explains.
    """
    which = np.arange(min(16, len(cases)))
    network([graph.to(stock.device_of(network)) for graph in cases.stock_graphs[: len(which)]], task="e")[
        "e"
    ].sum().backward()
    run.network(run.inputs.batch(which)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    theirs = [gradients[name.removeprefix("stock.")] for name in run.trained_parameters]
    ours = [dict(run.network.named_parameters())[name].grad for name in run.trained_parameters]
    apart = sum(float((a - b).square().sum()) for a, b in zip(theirs, ours, strict=True)) ** 0.5
    difference = apart / sum(float(a.square().sum()) for a in theirs) ** 0.5
    if not difference <= MOST_GRADIENT_DIFFERENCE:
        raise BenchmarkError(f"gradients differ by {difference:.2g}; allowed is {MOST_GRADIENT_DIFFERENCE:g}")
    network.zero_grad()
    run.network.zero_grad()
    return difference
