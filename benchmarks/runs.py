"""Comparisons of whole runs: 20 trials of a sweep against a process each, and a cache built by one or by many.

    python -m benchmarks.runs FOLDER    # what the first of them time: one search, with Ray started for it

Both need two cores.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import ray.tune
import typer
from ray.cluster_utils import Cluster

from benchmarks.cases import ATOM_CUTOFF, BOND_CUTOFF, BenchmarkError, Sides, StructureSet
from data.crystals.graph_cache import graphs_of
from data.crystals.rows import Rows
from data.crystals.task_table import DEMO
from data.machine.console import console
from data.machine.ray_session import connect
from data.row_numbers import counted
from data.tasks import open_task
from tune.dataset.dataset import load_dataset
from tune.records.options import Batch
from tune.spaces.space import SearchSpace
from tune.trials.resources import Resources
from tune.trials.search import search_fold

REPOSITORY = Path(__file__).resolve().parent.parent
TRIALS, PROCESSES, AT_ONCE = 20, 4, 2
EPOCHS = 10
CACHE_ROWS = 130_000  # about those of matbench_mp_e_form
NODE_STORE = 1 << 30  # bytes of a node's object store
_QUIET: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}


def twenty_trials(cases: StructureSet) -> Sides:
    """Head-only trials of `EPOCHS` epochs on the demo, two at a time, with caches that are there already.

    On the left each trial is a fresh Python process, which imports torch and chgnet, reads the cached data from
    one file and trains with our code; `PROCESSES` of them are timed and scaled to `TRIALS`. On the right one
    process starts Ray, reads the caches and searches, with Ray Tune's actors reused. The processes train the first
    configs of the search, and must come to the same metric.
    """
    _seconds_of(["benchmarks.runs", str(cases.folder)])  # fills the caches
    seen: list[float] = []

    def processes() -> float:
        tried = json.loads((cases.folder / "trials.json").read_text())[:PROCESSES]
        (cases.folder / "configs.json").write_text(json.dumps([one["config"] for one in tried]))
        began = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            said = list(
                pool.map(lambda k: _output_of(["benchmarks.one_trial", str(cases.folder), str(k)]), range(PROCESSES))
            )
        seconds = time.perf_counter() - began
        seen.extend(abs(float(line) - one["metric"]) for line, one in zip(said, tried, strict=True))
        return seconds * TRIALS / PROCESSES

    def check(*_: float) -> dict[str, Any]:
        if max(seen) > 1e-6:
            raise BenchmarkError(f"a trial in its own process came to another metric, by {max(seen):.2g}")
        return {"max_abs_difference": max(seen), "structures": DEMO.name, "n": TRIALS}

    return Sides(processes, lambda: _seconds_of(["benchmarks.runs", str(cases.folder)]), check)


def twenty_trials_of_ray(cases: StructureSet) -> Sides:
    """The same search as Ray Tune has it by default, each trial in a worker process of its own, and as we run it.

    Timed from the first trial's start to the last one's end; both begin with a Ray that is up and a dataset in it.
    """
    _seconds_of(["benchmarks.runs", str(cases.folder)])  # fills the caches
    metrics: dict[bool, dict[float, float]] = {}  # by learning rate, which alone is searched

    def searched(fresh: bool) -> float:
        seconds = float(_output_of(["benchmarks.runs", str(cases.folder), *(["--fresh"] if fresh else [])]))
        tried = json.loads((cases.folder / "trials.json").read_text())
        metrics[fresh] = {one["config"]["lr"]: one["metric"] for one in tried}
        return seconds

    def check(*_: float) -> dict[str, Any]:
        # Which trial ends first decides what Optuna proposes later; its first proposals are always the same.
        both = metrics[True].keys() & metrics[False].keys()
        apart = max(abs(metrics[True][lr] - metrics[False][lr]) for lr in both)
        if apart > 1e-6:
            raise BenchmarkError(f"trials in processes of their own came to other metrics, by {apart:.2g}")
        return {"max_abs_difference": apart, "structures": DEMO.name, "n": TRIALS}

    return Sides(lambda: searched(True), lambda: searched(False), check)


def _seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    _output_of(command)
    return time.perf_counter() - began


def _output_of(module: list[str]) -> str:
    """What a module of this repository prints, run by a Python of its own.

    Raises:
        BenchmarkError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", *module], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{module[0]} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout


def search(folder: Path, fresh: bool = False) -> None:
    """One search on the demo, whose seconds are printed.

    Leaves what its trials came to, and the first time their data in one file.

    Args:
        folder: for all files.
        fresh: start a process for each trial.
    """
    if fresh:
        tune_config = ray.tune.TuneConfig
        ray.tune.TuneConfig = lambda **fields: tune_config(**{**fields, "reuse_actors": False})
    space = SearchSpace(
        name="twenty",
        grace_epochs=EPOCHS,  # none is stopped early: a process would not be either
        parameters={"freeze_depth": "readout", "epochs": EPOCHS, "lr": {"loguniform": [1e-3, 2e-3]}},
    )
    console.quiet = True
    connect()
    task, rows = open_task(DEMO.name, download_dir=folder)
    dataset = load_dataset(task, rows, space, str(folder / "graphs"), used_folds={0}, seed=0, gpus_per_task=0)
    began = time.perf_counter()
    outcomes = search_fold(
        dataset,
        [Batch(num_samples=TRIALS, space=space)],
        0,
        seed=0,
        resources=Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=AT_ONCE),
        folder=str(folder / uuid4().hex),
    )
    print(time.perf_counter() - began)
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise BenchmarkError(f"{len(failed)} trials failed: {failed[0]}")
    tried = [{"config": outcome.config, "metric": outcome.kept_metric} for outcome in outcomes]
    (folder / "trials.json").write_text(json.dumps(tried))
    if not (folder / "data.pickle").exists():
        part = ray.get(dataset.trial_folds[0])
        data = (ray.get(dataset.rows_ref), part.targets, part.train, part.val, task.kind, task.quantity)
        (folder / "data.pickle").write_bytes(pickle.dumps(data))


@contextmanager
def one_node(cores: int) -> Iterator[None]:
    """Ray on this machine with so many cores."""
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **_QUIET)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def nodes_of_one_cpu(n_nodes: int) -> Iterator[None]:
    """A Ray cluster of so many nodes, processes of this machine, with one CPU each."""
    node = {"num_cpus": 1, "object_store_memory": NODE_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(n_nodes - 1):
            cluster.add_node(**node)
        ray.init(address=cluster.address, **_QUIET)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def cache_build(
    cases: StructureSet, many: int = 2, start: Callable[[int], AbstractContextManager[None]] = one_node
) -> Sides:
    """The same rows to the same shards by one actor and by many; Ray's start is not timed.

    The structures are repeated to `CACHE_ROWS`. The driver, which cuts the rows and verifies the shards, shares
    the cores with the actors, and one actor has one core.

    Args:
        cases: whose structures are repeated.
        many: actors on the right.
        start: Ray with a CPU for each of so many actors.
    """
    which = np.arange(CACHE_ROWS) % len(cases)
    stops = np.cumsum([len(text) for text in cases.texts])
    spans = np.stack([stops - [len(text) for text in cases.texts], stops], axis=1)[which]
    ids = [f"row-{k}" for k in range(CACHE_ROWS)]
    buffer = b"".join(cases.texts)
    rows = Rows(ids, cases.labels[which], None, "benchmark", ids, "matbench_json", buffer, spans, counted(CACHE_ROWS))
    shards: dict[int, list[str]] = {}

    def build(actors: int) -> Callable[[], float]:
        def run() -> float:
            _keep_to(actors)
            console.quiet = True
            try:
                with start(actors), tempfile.TemporaryDirectory() as folder:
                    began = time.perf_counter()
                    graphs_of(rows, (ATOM_CUTOFF, BOND_CUTOFF), folder)
                    seconds = time.perf_counter() - began
                    shards[actors] = sorted(path.name for path in Path(folder).glob("*/shard-*"))
            finally:
                console.quiet = False
                _keep_to(os.cpu_count() or actors)
            return seconds

        return run

    def check(*_: float) -> dict[str, Any]:
        if shards[1] != shards[many]:  # their names carry the hash of what is in them
            raise BenchmarkError(f"{many} actors made other shards than one")
        return {"max_abs_difference": 0.0, "n": CACHE_ROWS}

    return Sides(build(1), build(many), check)


def _keep_to(cores: int) -> None:
    """Let all threads of this process, and the processes it starts, use no more than so many cores."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), range(cores))


if __name__ == "__main__":
    typer.run(search)
