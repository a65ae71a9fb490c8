"""Stock chgnet's side of the comparisons: used as its documentation does, and nowhere slower than it can be."""

from __future__ import annotations

import contextlib
import gc
import io
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from chgnet.data.dataset import StructureData, get_loader
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from chgnet.model import CHGNet
from chgnet.model.model import BatchedGraph
from chgnet.trainer import Trainer
from pymatgen.core import Structure

BATCH_SIZE = {"cpu": 16, "cuda": 64}  # about the fastest on each


def faster_converter(structures: Sequence[Structure]) -> tuple[CrystalGraphConverter, dict[str, float]]:
    """The faster of stock's two conversion algorithms, and what each took: microseconds a structure.

    `fast` needs a compiled extension; where that is missing stock falls back to `legacy` by itself.
    """
    converters, times = {}, {}
    for algorithm in ("fast", "legacy"):
        converter = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3, algorithm=algorithm)
        for structure in structures[:10]:
            converter(structure)
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        for structure in structures:
            converter(structure)
        times[converter.algorithm] = (time.perf_counter() - began) / len(structures) * 1e6
        gc.enable()
        converters[converter.algorithm] = converter
    return converters[min(times, key=times.__getitem__)], times


def load_model(device: torch.device) -> CHGNet:
    """A model of its own with the weights 0.3.0."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its parameter count
        return CHGNet.load(model_name="0.3.0", use_device=device.type, verbose=False)


@cache
def model(device: torch.device) -> CHGNet:
    """One for everything that does not train."""
    return load_model(device)


def device_of(network: CHGNet) -> torch.device:
    """Where it computes."""
    return next(network.parameters()).device


def energies(network: CHGNet, graphs: list[CrystalGraph]) -> np.ndarray:
    """Energies in eV/atom, float64, shape (n,)."""
    predictions: Any = network.predict_graph(graphs, task="e", batch_size=BATCH_SIZE[device_of(network).type])
    return np.array([float(prediction["e"]) for prediction in predictions])


def energies_without_gradient(network: CHGNet, graphs: list[CrystalGraph]) -> np.ndarray:
    """The same, where the user knows to switch autograd off, which stock leaves on."""
    with torch.no_grad():
        return energies(network, graphs)


def batch(graphs: list[CrystalGraph]) -> BatchedGraph:
    """A batch on the CPU as the model makes it of graphs: with the expansion of lengths and angles in their bases."""
    network = model(torch.device("cpu"))
    return BatchedGraph.from_graphs(
        graphs,
        bond_basis_expansion=network.bond_basis_expansion,
        angle_basis_expansion=network.angle_basis_expansion,
    )


def without_lattice_gradient(graphs: list[CrystalGraph]) -> list[CrystalGraph]:
    """The same graphs with lattices that take no gradient.

    Stock's do, so that it goes back through a frozen backbone to reach them.
    """
    return [CrystalGraph.from_dict({**graph.to_dict(), "lattice": graph.lattice.detach()}) for graph in graphs]


def freeze_backbone(network: CHGNet) -> None:
    """Leave only the readout to train."""
    network.requires_grad_(False)
    network.mlp.requires_grad_(True)
    if network.readout_norm is not None:
        network.readout_norm.requires_grad_(True)


def epoch(
    network: CHGNet, structures: list[Structure], graphs: list[CrystalGraph], energies: np.ndarray
) -> Callable[[], float]:
    """One training pass of stock's Trainer, over graphs that are in memory already; returns its mean MAE.

    Args:
        network: trained in place.
        structures: as the dataset wants them.
        graphs: of the structures; what the dataset's converter gives.
        energies: eV/atom, shape (n,).
    """
    for parameter in network.composition_model.parameters():  # as Trainer.train does
        parameter.requires_grad = False
    graph_of: Any = lambda _structure, graph_id, **_: graphs[graph_id]  # noqa: E731
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = StructureData(
            structures,
            energies.tolist(),
            [np.zeros((len(structure), 3)).tolist() for structure in structures],  # asked for; "e" ignores them
            graph_converter=graph_of,
        )
        options: Any = {"targets": "e", "criterion": "MAE", "optimizer": "AdamW", "learning_rate": 1e-4}
        trainer = Trainer(network, use_device=device_of(network).type, **options)
    loader = get_loader(dataset, batch_size=BATCH_SIZE[device_of(network).type], pin_memory=False)

    def run() -> float:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer._train(loader, 0)["e"]

    return run
