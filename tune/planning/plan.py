"""What a sweep will take, before anything is spent: `tune/run_sweep.py --plan`.

`tune/planning/measure.py` measures a few batches here, `tune/planning/forecast.py` simulates sweeps with what they
cost, and `plan` puts the two together. Nothing is written but to a temporary folder.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from data.crystals.graph_cache import cache_spec
from data.crystals.rows import Rows
from data.crystals.shards import DamagedShardError, StaleCacheError, read_cache, shards_present
from data.folds import make_folds
from data.machine.ray_session import connect
from data.stores.storage import open_folder
from models.crystals.cached_arrays import backbone_output
from models.crystals.chgnet.model import CHGNET, CHGNetConfig
from models.crystals.chgnet.network import cutoffs
from models.registry import open_model
from tune.dataset.dataset import VALIDATION_FRACTION
from tune.dataset.parts import missing_parts, prefix_of, rows_of_part
from tune.errors import SweepError
from tune.planning.forecast import Phase, TrialCost, forecast
from tune.planning.measure import Measured, measure, n_bytes
from tune.planning.plan_table import Epoch, Memory, Plan, Step
from tune.planning.trial_costs import batch_sizes, freeze_depths, own_memory
from tune.records.options import Options
from tune.spaces.space import SearchSpace
from tune.trials.resources import Resources

GPU_MARGIN = 1.1  # on a trial's memory: other crystals are larger than the sample's
BYTES = ("graph", "feature", "shared", "cached")  # of a row, as `Measured` has them
ELEMENT_BYTES = 3 * 94 * 8  # of a row, while a trial fits its reference: element fractions in double precision


def plan(options: Options) -> Plan:
    """Measure a little and say what a sweep will take.

    Raises:
        SweepError: a sweep of another model than CHGNet, no trial fits this machine, or the sample could not be trained
            on.
        TaskError: as the sweep itself would, and so do DownloadError, SplitError and TargetScaleError.
    """
    imports = _age_of_process()
    began = time.perf_counter()
    if options.space.model != CHGNET.name:
        before = ""
        if open_model(options.space.model).reads != "compositions":
            before = "; what comes before its fit, graphs and the backbone's output, --space pretrained --plan measures"
        raise SweepError(
            f"--plan measures training of CHGNet alone, and says nothing of {options.space.model}: leave --plan "
            f"out, and run it on fewer rows (--ids) to see how long it takes{before}"
        )
    task, rows = options.open_task()
    if task.inputs == "compositions":
        raise SweepError(
            f"--plan measures CHGNet sweeps, which read structures, and {task.name} as given has compositions only"
        )
    n_test = {fold.index: len(fold.test_ids) for fold in make_folds(task, rows.ids, rows.groups)}
    driver_now, driver_most = own_memory(os.getpid(), now=True), own_memory(os.getpid())
    space = options.space.for_task(task.kind, task.quantity)
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent)
    own_ray = not ray.is_initialized()
    connect()
    connected = time.perf_counter()
    try:
        slots, have = resources.slots(), ray.cluster_resources()
        if not slots:
            raise SweepError(
                f"a trial asks for {options.cpus_per_trial} CPU and {options.gpus_per_trial:g} GPU, more than this "
                "machine has: lower --cpus-per-trial or --gpus-per-trial"
            )
        cached = _cached(rows, space, options)
        sizes = np.diff(rows.spans).ravel() if cached.sizes is None else cached.sizes
        measured = measure(task, rows, sizes, space, resources, collapse=not options.every_atom)
    finally:
        ended = time.perf_counter()
        if own_ray:
            ray.shutdown()
    shut_down = time.perf_counter() - ended

    heavier = float(sizes.mean()) / measured.size  # a mean row than one of the sample
    cost = functools.partial(_trial_cost, measured, len(rows), n_test, heavier)
    trials = measured.trials
    expected = forecast(options, space, cost, slots=slots, startup=trials.start, run_end=trials.run_end)
    n_references = len({*options.folds, *(options.search_folds if space.searched else [])})
    start = imports + (connected - began) + n_references * measured.reference + shut_down
    steps = [
        _certain("start and end", start, start, "Python, Ray, the task's file, a reference for each fold"),
        *_preparation(measured, cached, len(rows), heavier, int(have["CPU"]), space),
    ]
    fixed = sum(step.seconds for step in steps)
    cpus, n_folds = options.cpus_per_trial, len(options.folds)
    if space.searched:
        n_searches = len(options.search_folds)
        note = f"{options.num_samples} trials" + (f" on each of {n_searches} folds" if n_searches > 1 else "")
        steps.append(_uncertain("search", expected.search, cpus, f"{note}, {slots} at once"))
    n_trained = (1 + (options.seeds if space.trains else 0)) * n_folds
    note = f"{n_trained} trials, {n_folds} of them the reference alone"
    steps.append(_uncertain("train the chosen, and test", expected.training, cpus, note))
    totals = fixed + expected.search.seconds + expected.training.seconds
    low, high = np.percentile(totals, [10, 90])

    none_stopped = float(expected.unstopped.seconds.max())
    n_parallel = sum(step.core_seconds for step in steps if step.name == "backbone features")
    gpu_seconds = expected.search.busy.mean() + expected.training.busy.mean() + n_parallel
    bytes_of = {name: getattr(measured, f"{name}_bytes") * heavier * len(rows) for name in BYTES}
    graph_bytes = cached.graph_bytes or bytes_of["graph"]
    shared = graph_bytes + bytes_of["shared"] - bytes_of["graph"]
    doubles = (len(rows) - measured.n_rows) * ELEMENT_BYTES  # beyond those of the measured trials
    return Plan(
        title=f"{task.name}, space {space.name}",
        n_rows=len(rows),
        n_sample=measured.n_rows,
        slots=slots,
        device=torch.cuda.get_device_name() if options.gpus_per_trial else "CPU",
        steps=tuple(steps),
        seconds=sum(step.seconds for step in steps),
        low=float(low),
        high=float(high),
        at_most=fixed + none_stopped,
        epochs=tuple(
            Epoch(depth, size, cost({"freeze_depth": depth, "batch_size": size, "epochs": 1}, None, False).epoch)
            for depth in freeze_depths(space)
            for size in batch_sizes(space)
            if depth != "none"
        ),
        fold_search=float(expected.search.seconds.mean()) / max(1, len(options.search_folds)),
        fold_training=float(expected.training.seconds.mean()) / n_folds,
        core_hours=sum(step.core_seconds for step in steps) / 3600,
        gpu_hours=float(gpu_seconds) * options.gpus_per_trial / 3600,
        memory=Memory(
            shared=shared,
            store_needed=shared + graph_bytes,
            store=have["object_store_memory"],
            trial=trials.own_bytes + doubles if trials.own_bytes else None,
            # Graphs and backbone output pass through it, one after the other, on their way to the object store.
            driver=max(driver_most, driver_now + max(graph_bytes, bytes_of["feature"]))
            if driver_most and driver_now
            else None,
            cache_on_disk=bytes_of["cached"],
        ),
        trials_a_gpu=int(trials.gpu_total_bytes / (trials.gpu_bytes * GPU_MARGIN))
        if trials.gpu_bytes and trials.gpu_total_bytes
        else None,
        planning=time.perf_counter() - began,
        compiling=measured.compiled,
        load=os.getloadavg()[0],
        cores=int(have["CPU"]),
    )


@dataclass(frozen=True, eq=False)
class _Cached:
    """What the cache of a task holds already.

    Attributes:
        sizes: bonds and atoms of each graph, or None where any is missing; likewise the next one.
        graph_bytes: of all graphs.
        read: seconds that reading them took.
        shards, parts: rows of each missing shard of graphs, and of each missing part of the backbone's output.
    """

    sizes: np.ndarray | None
    graph_bytes: int | None
    read: float
    shards: list[int]
    parts: list[int]


def _cached(rows: Rows, space: SearchSpace, options: Options) -> _Cached:
    spec = cache_spec(rows, cutoffs(space.needs.weights))
    filesystem, path = open_folder(f"{options.cache.rstrip('/')}/{spec.key}")
    sizes = graph_bytes = None
    began = time.perf_counter()
    try:
        graphs = read_cache(filesystem, path, spec).graphs
        sizes, graph_bytes = np.diff(graphs.bond_start) + graphs.atoms_per_graph, n_bytes(graphs)
        missing = []
    except (StaleCacheError, DamagedShardError) as problem:
        damaged = getattr(problem, "names", [])
        present = {number for number, name in shards_present(filesystem, path).items() if name not in damaged}
        missing = [len(shard) for number, shard in enumerate(spec.shard_rows) if number not in present]
    read = time.perf_counter() - began
    parts = []
    if space.needs.weights != "random":
        prefix = prefix_of(backbone_output(space.needs.weights, not options.every_atom))
        numbers = missing_parts(filesystem, path, prefix, len(rows))
        parts = [len(rows_of_part(len(rows), number)) for number in numbers]
    return _Cached(sizes, graph_bytes, read, missing, parts)


def _preparation(
    measured: Measured, cached: _Cached, n_rows: int, heavier: float, n_cpus: int, space: SearchSpace
) -> list[Step]:
    """Graphs and backbone output; what the cache holds costs nothing but to be read."""
    if cached.sizes is not None:
        steps = [_certain("graphs", cached.read, cached.read, "in the cache; to be read")]
    else:
        convert_row = measured.convert_row * heavier
        read = measured.read_row * heavier * n_rows
        n_actors = min(n_cpus, len(cached.shards))
        wall = _longest(cached.shards, n_actors) * convert_row + measured.convert_start if cached.shards else 0.0
        busy = sum(cached.shards) * convert_row + n_actors * measured.convert_start
        note = f"{sum(cached.shards):,} of {n_rows:,} rows to convert, {n_actors} at once"
        steps = [_certain("graphs", wall + read, busy + read, note)]
    if space.needs.weights != "random":
        feature_row = measured.feature_row * heavier
        n_tasks = min(measured.feature_tasks, len(cached.parts))
        wall = _longest(cached.parts, n_tasks) * feature_row + measured.feature_start if cached.parts else 0.0
        busy = sum(cached.parts) * feature_row + n_tasks * measured.feature_start
        note = f"of {sum(cached.parts):,} rows, {n_tasks} at once" if cached.parts else "in the cache"
        steps.append(_certain("backbone features", wall, busy, note))
    return steps


def _longest(rows: list[int], n_workers: int) -> int:
    """Rows of the worker that gets the most, each taking the next piece when it is free."""
    loads = [0] * n_workers
    for count in rows:
        loads[loads.index(min(loads))] += count
    return max(loads)


def _trial_cost(
    measured: Measured,
    n_rows: int,
    n_test: dict[int, int],
    heavier: float,
    config: dict[str, Any],
    fold: int | None,
    test: bool,
) -> TrialCost:
    """What one trial takes on a fold; None is a mean one."""
    defaults = CHGNetConfig.model_fields
    fields = {name: config.get(name, defaults[name].default) for name in ("freeze_depth", "batch_size", "epochs")}
    point = measured.trials.point(fields["freeze_depth"], fields["batch_size"])
    tested = float(np.mean(list(n_test.values()))) if fold is None else n_test[fold]
    n_train = (n_rows - tested) * (1 - VALIDATION_FRACTION)
    n_val = (n_rows - tested) * VALIDATION_FRACTION
    more = 1.0 if point.from_features else heavier
    return TrialCost(
        epochs=fields["epochs"],
        first=measured.trials.next + point.val_row * more * (n_train + n_val),
        epoch=(point.train_row * n_train + point.val_row * n_val) * more + point.report,
        last=(measured.trials.last + point.val_row * more * tested) if test else 0.0,
    )


def _certain(name: str, seconds: float, core_seconds: float, note: str) -> Step:
    return Step(name, seconds, seconds, seconds, core_seconds, note)


def _uncertain(name: str, phase: Phase, cpus: int, note: str) -> Step:
    low, high = np.percentile(phase.seconds, [10, 90])
    return Step(name, float(phase.seconds.mean()), float(low), float(high), float(phase.busy.mean()) * cpus, note)


def _age_of_process() -> float:
    """Seconds since this process began; where /proc does not tell, seconds that it has computed."""
    try:
        began = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - began
    except OSError:
        return time.process_time()
