"""Each piece of work that is compared: stock's way, our way, and that both come to the same."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from chgnet.graph import CrystalGraph
from chgnet.model import CHGNet
from pyarrow import fs
from pymatgen.core import Structure

from benchmarks import stock
from benchmarks.cases import ATOM_CUTOFF, BOND_CUTOFF, Sides, StructureSet, Work
from benchmarks.checks import (
    energies,
    gradient_difference,
    graph_inputs,
    same_batches,
    same_energies,
    same_graphs,
    same_network,
)
from benchmarks.runs import cache_build, nodes_of_one_cpu, twenty_trials, twenty_trials_of_ray
from data.crystals.batches import GraphBatch
from data.crystals.convert import convert_chunk
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import Graph, convert, element_fractions
from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.rows import RawChunk
from data.crystals.shards import CacheSpec, encode_shard, read_cache, write_manifest, write_shard
from models.crystals.chgnet.features import FeatureInputs, backbone_features
from models.crystals.chgnet.model import CHGNetConfig, start_chgnet
from models.crystals.chgnet.network import CHGNetwork, FreezeDepth
from models.crystals.rows import CrystalRows
from models.model import TrainingPart
from models.training.train import GradientRun

EPOCHS = 10  # of a head, with the computing of its features


def from_structure(cases: StructureSet) -> Sides:
    """Convert pymatgen structures."""
    return Sides(
        lambda: [cases.converter(structure) for structure in cases.structures],
        lambda: [convert(crystal_from_structure(structure), ATOM_CUTOFF) for structure in cases.structures],
        same_graphs,
    )


def from_arrays(cases: StructureSet) -> Sides:
    """Convert what is flat arrays already; stock takes nothing but a Structure."""
    crystals = cases.crystals
    return Sides(
        lambda: [cases.converter(structure) for structure in cases.structures],
        lambda: [convert(crystal, ATOM_CUTOFF) for crystal in crystals],
        same_graphs,
    )


def from_json(cases: StructureSet) -> Sides:
    """Parse, check (ours only) and convert structures whose JSON is in memory."""
    ids = [str(k) for k in range(len(cases))]
    chunk = RawChunk(0, ids, ids, cases.texts, "matbench_json")
    return Sides(
        lambda: [cases.converter(Structure.from_dict(json.loads(text))) for text in cases.texts],
        lambda: convert_chunk(chunk, ATOM_CUTOFF)[1],
        same_graphs,
    )


def from_file(cases: StructureSet) -> Sides:
    """The same from a whole Matbench file on disk: each side unpacks it and finds the rows in it."""
    rows = [b"[%b, %r]" % (text, label) for text, label in zip(cases.texts, cases.labels.tolist(), strict=True)]
    index = json.dumps([f"row-{k}" for k in range(len(cases))]).encode()
    content = b'{"index": %b, "columns": ["structure", "e_form"], "data": [%b]}' % (index, b", ".join(rows))
    file = cases.folder / "rows.json.gz"
    file.write_bytes(gzip.compress(content))

    def theirs() -> list[CrystalGraph]:
        with gzip.open(file) as stream:
            table = json.load(stream)
        return [cases.converter(Structure.from_dict(row[0])) for row in table["data"]]

    def ours() -> list[Graph | str]:
        source = read_matbench_file(file)
        rows = source.rows([str(one) for one in source.index], "e_form")
        return convert_chunk(rows.chunk(0, len(rows)), ATOM_CUTOFF)[1]

    return Sides(theirs, ours, same_graphs)


def on_disk(cases: StructureSet) -> Sides:
    """Bytes of one `.pt` file a graph, and of the shards; a structure's share, without the rest of a disk block."""
    files, cache, _ = _stored(cases)
    return Sides(lambda: _size(files), lambda: _size(cache), lambda *_: {})


def from_disk(cases: StructureSet) -> Sides:
    """Read what `on_disk` weighs back, from the page cache of the operating system; ours verifies checksums."""
    files, cache, spec = _stored(cases)
    return Sides(
        lambda: [torch.load(files / f"{k}.pt", weights_only=False) for k in range(len(cases))],
        lambda: read_cache(fs.LocalFileSystem(), str(cache), spec).graphs,
        same_graphs,
    )


def _stored(cases: StructureSet) -> tuple[Path, Path, CacheSpec]:
    """The folders that hold both sides' graphs."""
    files, cache = cases.folder / f"files-{cases.name}", cases.folder / f"cache-{cases.name}"
    files.mkdir(exist_ok=True)
    for k, graph in enumerate(cases.stock_graphs):
        torch.save(graph, files / f"{k}.pt")
    spec = CacheSpec("", ATOM_CUTOFF, BOND_CUTOFF, len(cases))
    filesystem = fs.LocalFileSystem()
    for number, part in enumerate(spec.shard_rows):
        ids = [str(k) for k in part]
        chunk = RawChunk(part.start, ids, ids, cases.texts[part.start : part.stop], "matbench_json")
        write_shard(filesystem, str(cache), number, encode_shard(ids, *convert_chunk(chunk, ATOM_CUTOFF)))
    write_manifest(filesystem, str(cache), spec)
    return files, cache, spec


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def batches(cases: StructureSet) -> Sides:
    """Assemble batches of 16 in random order, with lengths and angles; stock's expands them in its bases as well."""
    order = _shuffled_batches(cases)
    inputs = graph_inputs(cases.graphs, collapse=False)
    return Sides(
        lambda: [stock.batch([cases.stock_graphs[k] for k in which]) for which in order],
        lambda: [inputs.batch(which) for which in order],
        same_batches,
    )


def batches_with_bases(cases: StructureSet) -> Sides:
    """The same with the bases on our side too, which we count to the network."""
    order = _shuffled_batches(cases)
    inputs = graph_inputs(cases.graphs, collapse=False)
    network = stock.model(torch.device("cpu"))
    bonds, angles = network.bond_basis_expansion, network.angle_basis_expansion

    def ours() -> list[GraphBatch]:
        made = []
        for which in order:
            batch = inputs.batch(which)
            bonds.rbf_expansion_ag(batch.bond_length)
            bonds.rbf_expansion_bg(batch.bond_length.index_select(0, batch.short_bonds))
            angles.fourier_expansion(batch.angle)
            made.append(batch)
        return made

    return Sides(lambda: [stock.batch([cases.stock_graphs[k] for k in which]) for which in order], ours, same_batches)


def _shuffled_batches(cases: StructureSet) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(len(cases))
    size = stock.BATCH_SIZE["cpu"]
    return [order[k : k + size] for k in range(0, len(order), size)]


def inference(
    collapse: bool, stock_energies: Callable[[CHGNet, list[CrystalGraph]], np.ndarray] = stock.energies
) -> Callable[[StructureSet], Sides]:
    """Energies of graphs in memory; batches are assembled on both sides."""

    def sides(cases: StructureSet) -> Sides:
        network = CHGNetwork().to(cases.device)
        inputs = graph_inputs(cases.graphs, collapse, cases.device)
        return Sides(
            lambda: stock_energies(stock.model(cases.device), cases.stock_graphs),
            lambda: energies(network, inputs, cases.graphs),
            same_energies,
        )

    return sides


def full_epoch(collapse: bool) -> Callable[[StructureSet], Sides]:
    """One training pass of the whole network: forward, backward, optimiser; nothing is validated."""

    def sides(cases: StructureSet) -> Sides:
        run = fine_tuning(cases, "full")
        run.inputs = graph_inputs(cases.graphs, collapse, cases.device)
        network = stock.load_model(cases.device)
        seen = same_network(network, run, cases)
        seen["gradient_difference"] = gradient_difference(network, run, cases)
        train = stock.epoch(network, cases.structures, cases.stock_graphs, stock_targets(run, cases))
        epochs = itertools.count(1)
        return Sides(train, lambda: run.train_epoch(next(epochs), time.perf_counter()), lambda *_: seen)

    return sides


def head_epoch(cases: StructureSet) -> Sides:
    """One training pass of the readout; ours reads the backbone's output, computed before."""
    run = fine_tuning(cases, "readout")
    run.inputs = head_inputs(run, cases)
    train, seen = _stock_head(cases, run)
    epochs = itertools.count(1)
    return Sides(train, lambda: run.train_epoch(next(epochs), time.perf_counter()), lambda *_: seen)


def head_epochs(cases: StructureSet) -> Sides:
    """The same `EPOCHS` times; ours begins with computing the backbone's output."""
    run = fine_tuning(cases, "readout")
    train, seen = _stock_head(cases, run)
    epochs = itertools.count(1)

    def ours() -> None:
        run.inputs = head_inputs(run, cases)
        for _ in range(EPOCHS):
            run.train_epoch(next(epochs), time.perf_counter())

    return Sides(lambda: [train() for _ in range(EPOCHS)], ours, lambda *_: seen)


def _stock_head(cases: StructureSet, run: GradientRun) -> tuple[Callable[[], float], dict[str, float]]:
    network = stock.load_model(cases.device)
    seen = same_network(network, run, cases)
    stock.freeze_backbone(network)
    graphs = stock.without_lattice_gradient(cases.stock_graphs)
    return stock.epoch(network, cases.structures, graphs, stock_targets(run, cases)), seen


def fine_tuning(cases: StructureSet, depth: FreezeDepth) -> GradientRun:
    """A run on all of the structures, ready to train."""
    rows = CrystalRows(element_fractions(cases.graphs), cases.graphs.atoms_per_graph, cases.graphs)
    size = stock.BATCH_SIZE[cases.device.type]
    config = CHGNetConfig(freeze_depth=depth, epochs=1000, lr=1e-4, batch_size=size)
    which = np.arange(len(cases))
    part = TrainingPart(cases.labels, which, which, "regression", "energy_per_atom")
    return start_chgnet(config, rows, part, str(cases.device))


def head_inputs(run: GradientRun, cases: StructureSet) -> FeatureInputs:
    """The backbone's output for all structures."""
    graphs = cases.graphs
    inputs = graph_inputs(graphs, collapse=True, device=run.device)
    features = backbone_features(run.network, inputs, np.arange(len(graphs)))
    return FeatureInputs(features, graphs.atoms_per_graph, run.device)


def stock_targets(run: GradientRun, cases: StructureSet) -> np.ndarray:
    """Energies at which stock's loss is that of our run, eV/atom: with the composition energies that we leave out."""
    composition = element_fractions(cases.graphs) @ run.network.composition_energies().cpu().numpy()
    return run.objective.goals.cpu().numpy().astype(np.float64) + composition


def by_nodes(many: int) -> Callable[[StructureSet], Sides]:
    """A cache built by one node of a Ray cluster and by many, which share the cores of this machine."""
    return partial(cache_build, many=many, start=nodes_of_one_cpu)


# Structures of a set at most, so that all of it takes less than ten minutes.
_CONVERTED = {"B": 50, "C": 50}
_FORWARD = {"A": 256, "B": 48, "C": 48}
_TRAINED = {"A": 128, "B": 32, "C": 32}
WORK = [
    Work("structure -> graph, from a pymatgen Structure", from_structure, "us", "ABC", _CONVERTED),
    Work("structure -> graph, from flat arrays", from_arrays, "us", "ABC", _CONVERTED),
    Work("Matbench json row -> graph, parsing included", from_json, "us"),
    Work("Matbench json.gz file -> graphs, unpacking included", from_file, "us"),
    Work("a graph on disk", on_disk, "bytes", "ABC"),
    Work("graphs read from disk, ready to batch", from_disk, "us", "ABC"),
    Work("batch assembly (stock's with its bases)", batches, "us", "ABC"),
    Work("batch assembly and bases", batches_with_bases, "us", "ABC"),
    Work("energy inference, every atom", inference(collapse=False), "ms", "ABC", _FORWARD, of_network=True),
    Work("energy inference, symmetry collapsed", inference(collapse=True), "ms", "AC", _FORWARD, of_network=True),
    Work(
        "energy inference, symmetry collapsed, against stock with autograd off",
        inference(collapse=True, stock_energies=stock.energies_without_gradient),
        "ms",
        "A",
        _FORWARD,
        of_network=True,
    ),
    Work("epoch of full fine-tuning, every atom", full_epoch(collapse=False), "ms", "ABC", _TRAINED, of_network=True),
    Work(
        "epoch of full fine-tuning, symmetry collapsed",
        full_epoch(collapse=True),
        "ms",
        "AC",
        _TRAINED,
        of_network=True,
    ),
    Work("epoch of head-only fine-tuning, features known", head_epoch, "ms", "A", {"A": 512}, of_network=True),
    Work(
        f"{EPOCHS} epochs of head-only fine-tuning, features included",
        head_epochs,
        "ms",
        "A",
        {"A": 64},
        of_network=True,
    ),
    Work("20 short trials: a process each, without Ray", twenty_trials, "s", whole_run=True),
    Work("20 short trials: a worker process each, Ray Tune's default", twenty_trials_of_ray, "s", whole_run=True),
    Work("cache of 130,000 graphs: 1 core -> 2 cores", cache_build, "s", whole_run=True),
    Work("cache of 130,000 graphs: 1 node of one CPU -> 2 nodes", by_nodes(2), "s", whole_run=True),
    Work("cache of 130,000 graphs: 1 node of one CPU -> 3 nodes", by_nodes(3), "s", whole_run=True),
]
