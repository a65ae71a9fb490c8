"""What a sweep's steps cost on this machine now: a sample of the rows, through the code of a real sweep.

Actors convert the sample, tasks run the pretrained backbone on it, trials train on it (`tune/planning/trial_costs.py`);
everything is kept in a temporary folder. `tune/planning/plan.py` makes a forecast of what is measured here.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from data.crystals.batches import graph_batch
from data.crystals.convert import convert_chunk
from data.crystals.graph_cache import Converter, cache_spec, graphs_of
from data.crystals.graphs import Graphs, element_fractions, stack
from data.crystals.rows import Rows
from data.machine.allocator import keep_freed_memory
from data.machine.console import console
from data.task import Task
from models.crystals.cached_arrays import backbone_output
from models.crystals.chgnet.features import GraphInputs, backbone_features
from models.crystals.chgnet.model import CHGNetConfig, start_chgnet
from models.crystals.chgnet.network import CHGNetwork, cutoffs
from models.crystals.rows import CrystalRows
from models.device import device_of_share
from tune.dataset.dataset import load_dataset, untrained
from tune.dataset.parts import ROWS_PER_PART, cached_fields, n_parts
from tune.dataset.trial_fold import TrialFold
from tune.planning.trial_costs import Point, TrialCosts, batch_sizes, freeze_depths, measure_trials
from tune.spaces.space import SearchSpace
from tune.trials.resources import Resources

SAMPLE_ROWS = 1024
SECONDS_AN_EPOCH = 1.5  # of a measured trial that reads graphs, about
_WARM_UP = 99_999  # number of a shard that belongs to no cache


@dataclass(frozen=True)
class Measured:
    """What a sample took; seconds and bytes.

    Attributes:
        compiled: of getting every kernel ready in this process; much only where they were not compiled before.
        n_rows: rows of the sample.
        size: their mean size, by the measure they were sampled with.
        convert_start: until the actors that convert are ready.
        convert_row: of a row, to one actor among as many as a sweep would have.
        read_row: of a row, reading a cache of graphs and verifying it.
        feature_start: until the tasks that run the backbone are ready; 0 where weights are random, as the next one.
        feature_row: of a row, to one task among as many as a sweep would have.
        feature_tasks: tasks at once.
        reference: of what is fitted before anything trains, a fold.
        trials: what training takes.
        graph_bytes: of a row's graph in memory.
        feature_bytes: of a row's backbone output.
        shared_bytes: of all that trials share, a row.
        cached_bytes: of all that the cache keeps, a row.
    """

    compiled: float
    n_rows: int
    size: float
    convert_start: float
    convert_row: float
    read_row: float
    feature_start: float
    feature_row: float
    feature_tasks: int
    reference: float
    trials: TrialCosts
    graph_bytes: float
    feature_bytes: float
    shared_bytes: float
    cached_bytes: float


def measure(
    task: Task, rows: Rows, sizes: np.ndarray, space: SearchSpace, resources: Resources, *, collapse: bool
) -> Measured:
    """Measure on a sample of a task's rows; nothing is left behind.

    Args:
        task: of the rows.
        rows: all of them.
        sizes: what the cost of each row goes with, shape (n_rows,).
        space: what a sweep would search.
        resources: of its trials; at least one fits.
        collapse: whether equivalent atoms are computed once.

    Raises:
        SweepError: the sample could not be trained on.
        TargetScaleError: an energy target that is not on the declared scale.
    """
    chosen = sample_positions(sizes, SAMPLE_ROWS)
    sample = _sample(rows, chosen)
    gpus, n = resources.gpus_per_trial, len(sample)
    have = ray.cluster_resources()
    n_cpus = max(1, int(have["CPU"]))
    with tempfile.TemporaryDirectory(prefix="matsweep-plan-") as folder, _quiet():
        _, compiled = _timed(lambda: _compile(task, sample, space, collapse))
        place = f"{folder}/graphs"
        spec = cache_spec(sample, cutoffs(space.needs.weights))
        n_actors = min(n_cpus, math.ceil(len(rows) / spec.rows_per_shard))
        convert_start, convert = _convert(sample, spec.atom_graph_cutoff, n_actors, f"{place}/{spec.key}")
        (stored, key), read = _timed(lambda: graphs_of(sample, cutoffs(space.needs.weights), place))
        graphs = stored.graphs

        shared = ray.put(graphs)
        n_tasks = min(n_cpus, n_parts(len(rows)), int(have.get("GPU", 0) / gpus + 1e-6) if gpus else n_cpus)
        warm_up = ray.remote(_warm_up).options(num_cpus=1, num_gpus=gpus)
        forward_rows, feature_start = _timed(
            lambda: ray.get([warm_up.remote(shared, space.needs.weights, collapse, gpus) for _ in range(n_tasks)])
        )
        feature_row = 0.0
        if space.needs.weights != "random":
            output = backbone_output(space.needs.weights, collapse)
            rows_ref = ray.put(
                CrystalRows(element_fractions(graphs), graphs.atoms_per_graph, graphs, collapse=collapse)
            )
            _, seconds = _timed(lambda: cached_fields(output, rows_ref, n, f"{place}/{key}", gpus))
            rounds = math.ceil(n_parts(n) / n_tasks)
            feature_row = seconds / (rounds * min(n / n_parts(n), ROWS_PER_PART))
        dataset = load_dataset(
            task, sample, space, place, used_folds=set(), seed=0, gpus_per_task=gpus, collapse=collapse
        )
        shared_rows: CrystalRows = ray.get(dataset.rows_ref)

        usable = np.setdiff1d(np.arange(n), list(dataset.quarantine))
        most_batch = batch_sizes(space)[-1]
        n_heavy = int(SECONDS_AN_EPOCH / (4 * max(forward_rows)))  # a pass forward and back is 3 or 4 forward
        work = _work(graphs, cutoffs(space.needs.weights)[1], collapse)
        heavy = _split(sample, usable, work, n_heavy, most_batch)
        light = _split(sample, usable, work, n, most_batch)
        _, reference = _timed(lambda: start_chgnet(_untrained(space, task), shared_rows, light.part(task)))
        dataset.trial_folds.update({0: ray.put(heavy), 1: ray.put(light)})
        trials = measure_trials(
            dataset,
            space,
            resources,
            has_features=shared_rows.features is not None,
            folder=f"{folder}/trials",
        )
        cached = sum(path.stat().st_size for path in Path(place, key).iterdir() if f"-{_WARM_UP}-" not in path.name)
    heavier = float(work[usable].mean() / work[heavy.train].mean())
    return Measured(
        compiled=compiled,
        n_rows=n,
        size=float(sizes[chosen].mean()),
        convert_start=convert_start,
        convert_row=convert / n,
        read_row=read / n,
        feature_start=feature_start if feature_row else 0.0,
        feature_row=feature_row,
        feature_tasks=n_tasks,
        reference=reference,
        trials=replace(trials, points=[p if p.from_features else _scaled(p, heavier) for p in trials.points]),
        graph_bytes=n_bytes(graphs) / n,
        feature_bytes=n_bytes(shared_rows.features) / n,
        shared_bytes=n_bytes(shared_rows) / n,
        cached_bytes=cached / n,
    )


def sample_positions(sizes: np.ndarray, most: int) -> np.ndarray:
    """Rows spread evenly over all sizes, in random order; all rows where there are not more."""
    if len(sizes) <= most:
        return np.arange(len(sizes))
    by_size = np.argsort(sizes, kind="stable")
    spread = ((np.arange(most) + 0.5) * len(sizes) / most).astype(int)
    return np.random.default_rng(0).permutation(by_size[spread])


def _sample(rows: Rows, positions: np.ndarray) -> Rows:
    """The rows at `positions`, in that order, with a buffer of their own; read in the order of the file."""
    in_order = np.sort(positions)
    payloads = rows.select(in_order.tolist(), "").chunk(0, len(positions)).payloads
    ends = np.cumsum([len(payload) for payload in payloads])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    chosen = rows.select(positions.tolist(), f"sample of {rows.sha256}")
    return replace(chosen, buffer=b"".join(payloads), spans=spans[np.searchsorted(in_order, positions)])


def _compile(task: Task, sample: Rows, space: SearchSpace, collapse: bool) -> None:
    """Have every kernel compiled, which is kept for the processes to come: convert a few crystals and train on them."""
    found = convert_chunk(sample.chunk(0, 32), cutoffs(space.needs.weights)[0])[1]
    which = [k for k, graph in enumerate(found) if not isinstance(graph, str) and np.isfinite(sample.targets[k])]
    if not which:
        return
    graphs = stack([graph for graph in (found[k] for k in which) if not isinstance(graph, str)])
    everything, network = np.arange(len(which)), CHGNetwork(space.needs.weights)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, torch.device("cpu"), collapse)
    features = backbone_features(network, inputs, everything)
    part = TrialFold(sample.targets[which], everything, everything, everything)
    for depth, known in (("readout", features), (freeze_depths(space)[-1], None)):
        if depth != "none":
            config = _untrained(space, task).model_copy(update={"freeze_depth": depth, "epochs": 1})
            n_atoms = graphs.atoms_per_graph.astype(np.int32)
            rows = CrystalRows(element_fractions(graphs), n_atoms, graphs, known, collapse=collapse)
            list(start_chgnet(config, rows, part.part(task)).epochs())


def _untrained(space: SearchSpace, task: Task) -> CHGNetConfig:
    fields = untrained(space, task.kind)
    return CHGNetConfig(**{key: value for key, value in fields.items() if key != "model"})


def _convert(sample: Rows, cutoff_angstrom: float, n_actors: int, folder: str) -> tuple[float, float]:
    """Have each of some actors convert the sample, the first one into `folder`.

    Returns:
        Seconds until they were ready, and seconds that they took then.
    """
    remote = ray.remote(num_cpus=1)(Converter)
    actors = [remote.remote(f"{folder}-{k}" if k else folder, cutoff_angstrom) for k in range(n_actors)]
    first, whole = sample.chunk(0, 4), sample.chunk(0, len(sample))
    _, ready = _timed(lambda: ray.get([actor.write.remote(_WARM_UP, first) for actor in actors]))
    _, took = _timed(lambda: ray.get([actor.write.remote(0, whole) for actor in actors]))
    for actor in actors:
        ray.kill(actor)
    return ready, took


def _warm_up(graphs: Graphs, weights: str, collapse: bool, gpus: float) -> float:
    """Make a worker ready to compute, kernels compiled; seconds a row of a forward pass after that."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = device_of_share(gpus)
    network = CHGNetwork(weights).to(device)
    inputs = GraphInputs(graphs, network.bond_graph_cutoff, device, collapse)
    which = np.flatnonzero(graphs.atoms_per_graph > 0)[:64]
    backbone_features(network, inputs, which[:4])
    return _timed(lambda: backbone_features(network, inputs, which))[1] / max(1, len(which))


def _work(graphs: Graphs, bond_graph_cutoff: float, collapse: bool) -> np.ndarray:
    """What a pass of each graph costs, but for a factor: its edges and angles that are computed, shape (n_graphs,)."""
    batches = (graph_batch(graphs, np.array([k]), bond_graph_cutoff, collapse=collapse) for k in range(len(graphs)))
    return np.array([len(batch.center) + len(batch.angle) for batch in batches], dtype=np.float64)


def _split(sample: Rows, usable: np.ndarray, work: np.ndarray, n_train: int, batch_size: int) -> TrialFold:
    """Rows of all sizes to train on, whole batches where there are enough, and an eighth as many to judge on."""
    n_train = min(max(n_train, batch_size), max(1, int(0.7 * len(usable))))
    n_train -= n_train % batch_size if n_train > batch_size else 0
    n_others = max(1, n_train // 8)
    train = usable[sample_positions(work[usable], n_train)]
    others = np.random.default_rng(0).permutation(np.setdiff1d(usable, train))[: 2 * n_others]
    val, test = np.split(others, [n_others])
    return TrialFold(sample.targets, train, val, test)


def _scaled(point: Point, heavier: float) -> Point:
    """A point measured on fewer rows than the sample has, whose work is less or more than the sample's."""
    return replace(point, train_row=point.train_row * heavier, val_row=point.val_row * heavier)


def n_bytes(value: Any) -> int:
    """Of the arrays in a dataclass, or of an array."""
    if is_dataclass(value):
        return sum(n_bytes(getattr(value, field.name)) for field in fields(value))
    return getattr(value, "nbytes", 0)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds it took."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the terminal inside."""
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False
