"""What a sweep's steps cost on this machine now: a sample of the rows, through the code of a real sweep.

Processes make of the sample what trials read, and trials train on it (`tune/planning/trial_costs.py`); everything is
kept in a temporary folder. `tune/planning/plan.py` makes a forecast of what is measured here.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from data.fold import DEFAULT_SPLIT
from data.machine.allocator import keep_freed_memory
from data.machine.console import console
from data.task import Task, TaskRows
from models.device import device_of_share
from models.family import CachedArrays, Family, FamilyRows, Reading, n_bytes
from models.model import Run, TrainingPart, TrainingRows
from models.registry import open_family, open_model
from tune.dataset.dataset import Dataset, load_dataset, untrained
from tune.dataset.parts import ROWS_PER_PART, cached_fields, n_parts
from tune.dataset.trial_fold import TrialFold
from tune.planning.designs import Design, design, designs
from tune.planning.sample import sample_positions, split
from tune.planning.trial_costs import FEW, HALF, MANY, TrialCosts, measure_trials
from tune.spaces.space import SearchSpace
from tune.trials.resources import Resources

SAMPLE_ROWS = 1024
SECONDS_AN_EPOCH = 1.5  # of a measured trial that reads rows themselves, about
FEWEST, FEWER = 4, 64  # rows that warm up a process, and that tell about how long a pass takes
WARM_UP = 99_999  # number of a piece that belongs to no cache
TO_COMPILE = 32  # rows that meet every kernel


@dataclass(frozen=True)
class ArraysCost:
    """What computing some cached arrays took, in seconds.

    Attributes:
        what: is computed.
        start: until the tasks that compute it are ready.
        row: of a row, to one task among as many as a sweep would have.
        tasks: at once.
        on_gpu: whether a GPU is of use.
    """

    what: str
    start: float
    row: float
    tasks: int
    on_gpu: bool


@dataclass(frozen=True)
class Measured:
    """What a sample took; seconds and bytes.

    Attributes:
        compiled: of getting every kernel ready in this process; much only where they were not compiled before.
        n_rows: rows of the sample.
        size: their mean size, by the measure they were sampled with.
        make_start: until the processes that make what is read are ready; 0 where nothing is to be made, as the next.
        make_row: of a row, to one process among as many as a sweep would have.
        read_row: of a row, reading and verifying.
        arrays: of what trials read beside the rows.
        reference: of what is fitted before anything trains, a fold.
        trials: what training takes.
        read_bytes: of a row as it is read, in memory.
        shared_bytes: of all that trials share, a row.
        cached_bytes: of all that the cache keeps, a row.
    """

    compiled: float
    n_rows: int
    size: float
    make_start: float
    make_row: float
    read_row: float
    arrays: tuple[ArraysCost, ...]
    reference: float
    trials: TrialCosts
    read_bytes: float
    shared_bytes: float
    cached_bytes: float


def measure(
    task: Task, rows: TaskRows, reading: Reading, space: SearchSpace, resources: Resources, *, collapse: bool
) -> Measured:
    """Measure on a sample of a task's rows; nothing is left behind.

    Args:
        task: of the rows.
        rows: all of them.
        reading: of all of them.
        space: what a sweep would search.
        resources: of its trials; at least one fits.
        collapse: whether what is equivalent is computed once.

    Raises:
        SweepError: the sample could not be trained on.
        UnsuitedError: targets that do not go with the model.
    """
    positions = sample_positions(reading.sizes, SAMPLE_ROWS)
    sample = rows.select(positions.tolist(), f"sample of {rows.sha256}").held()
    family, gpus, n = open_family(task.family), resources.gpus_per_trial, len(sample)
    resources_here = ray.cluster_resources()
    n_cpus = max(1, int(resources_here["CPU"]))
    n_tasks = min(n_cpus, n_parts(len(rows)))
    on_gpu = min(n_tasks, int(resources_here.get("GPU", 0) / gpus + 1e-6)) if gpus else n_tasks
    all_arrays = family.arrays(space.needs, collapse=collapse)
    kinds = [
        design(untrained(space, task.kind), has_arrays=bool(all_arrays)),
        *designs(space, has_arrays=bool(all_arrays)),
    ]
    with tempfile.TemporaryDirectory(prefix="matsweep-plan-") as folder, _quiet():
        _, compile_seconds = _timed(lambda: _compile(task, sample, space, kinds, f"{folder}/compiled", collapse))
        place = f"{folder}/cache"
        make_start, make_seconds = _make(family, sample, space.needs, min(n_cpus, len(reading.pieces)), place)
        inputs, read_seconds = _timed(lambda: _read(task, sample, space, place, collapse))
        rows_ref, own_folder = ray.put(inputs.rows), f"{place}/{inputs.cache_key}"
        arrays = tuple(
            _arrays_cost(family_arrays, rows_ref, n, own_folder, gpus, on_gpu if family_arrays.on_gpu else n_tasks)
            for family_arrays in all_arrays
        )
        dataset = load_dataset(
            task, sample, space, place, used_folds=set(), seed=0, gpus_per_task=gpus, collapse=collapse
        )
        shared_rows: TrainingRows = ray.get(dataset.rows_ref)
        work = family.counted_work(inputs.rows, space.needs)
        reference, trials = _train(
            dataset, sample, work, kinds, resources, has_arrays=bool(all_arrays), folder=f"{folder}/trials"
        )
        cache_files = [path for path in Path(own_folder).glob("*") if f"-{WARM_UP}-" not in path.name]
        cache_bytes = sum(path.stat().st_size for path in cache_files)
    return Measured(
        compiled=compile_seconds,
        n_rows=n,
        size=float(reading.sizes[positions].mean()),
        make_start=make_start,
        make_row=make_seconds / n,
        read_row=read_seconds / n,
        arrays=arrays,
        reference=reference,
        trials=trials,
        read_bytes=n_bytes(inputs.rows) / n,
        shared_bytes=n_bytes(shared_rows) / n,
        cached_bytes=cache_bytes / n,
    )


def _read(task: Task, rows: TaskRows, space: SearchSpace, place: str, collapse: bool) -> FamilyRows:
    family = open_family(task.family)
    return family.read(task, rows, space.needs, place, DEFAULT_SPLIT, collapse=collapse, at_once=None)


def _compile(
    task: Task, sample: TaskRows, space: SearchSpace, kinds: Sequence[Design], place: str, collapse: bool
) -> None:
    """Have every kernel compiled, which is kept for the processes to come: read a few rows and train on them."""
    few = sample.select(list(range(min(len(sample), TO_COMPILE))), f"few of {sample.sha256}")
    family = open_family(task.family)
    reading = family.reading(few, space.needs, place)
    if reading.worker is not None:
        reading.worker(*reading.arguments).write(0, few.chunk(0, len(few)))
    inputs = _read(task, few, space, place, collapse)
    which = np.array([k for k, reason in enumerate(inputs.reasons) if not reason and np.isfinite(few.targets[k]).all()])
    if not len(which):
        return
    rows, all_rows = inputs.rows.select(which), np.arange(len(which))
    fields: dict[str, Any] = {}
    for arrays in family.arrays(space.needs, collapse=collapse):
        fields |= arrays.join(rows, iter([(all_rows, arrays.compute(rows, all_rows, "cpu"))]))
    rows = replace(rows, **fields)
    part = TrialFold(few.targets[which], all_rows, all_rows, all_rows).part(task)
    ways = {kind.reads_cached: kind for kind in reversed(kinds[1:])}  # the costliest of each way to read rows
    for kind in (kinds[0], *ways.values()):
        list(_started(kind, rows, part, most_epochs=1).epochs())


def _started(
    kind: Design, rows: Any, part: TrainingPart, *, device: str = "cpu", most_epochs: int | None = None
) -> Run:
    """A run of a config on a part of the sample."""
    model = open_model(kind.fields["model"])
    config: Any = model.config(**{field: value for field, value in kind.fields.items() if field != "model"})
    if most_epochs is not None and not kind.fits_once:
        config = config.model_copy(update={"epochs": min(config.epochs, most_epochs)})
    return model.start(config, rows, part, device)


def _make(family: Family, sample: TaskRows, need: Any, n_processes: int, place: str) -> tuple[float, float]:
    """Have each of some processes make what is read of the sample, the first one into `place`.

    Returns:
        Seconds until they were ready, and seconds that they took then; 0 where nothing is to be made.
    """
    readings = [family.reading(sample, need, f"{place}-{k}" if k else place) for k in range(n_processes)]
    workers = [
        ray.remote(num_cpus=1)(piece_reading.worker).remote(*piece_reading.arguments)
        for piece_reading in readings
        if piece_reading.worker
    ]
    first, whole = sample.chunk(0, FEWEST), sample.chunk(0, len(sample))
    _, ready = _timed(lambda: ray.get([worker.write.remote(WARM_UP, first) for worker in workers]))
    _, write_seconds = _timed(lambda: ray.get([worker.write.remote(0, whole) for worker in workers]))
    for worker in workers:
        ray.kill(worker)
    return (ready, write_seconds) if workers else (0.0, 0.0)


def _arrays_cost(
    arrays: CachedArrays, rows_ref: ray.ObjectRef, n: int, own_folder: str, gpus: float, n_tasks: int
) -> ArraysCost:
    """Compute some arrays of the sample, after as many processes as a sweep would have are ready for it."""
    share = gpus if arrays.on_gpu else 0.0
    warm_up = ray.remote(_warm_up).options(num_cpus=1, num_gpus=share)
    _, start = _timed(lambda: ray.get([warm_up.remote(rows_ref, arrays, n, share) for _ in range(n_tasks)]))
    _, seconds = _timed(lambda: cached_fields(arrays, rows_ref, n, own_folder, gpus))
    rounds = math.ceil(n_parts(n) / n_tasks)
    row = seconds / (rounds * min(n / n_parts(n), ROWS_PER_PART))
    return ArraysCost(arrays.what, start, row, n_tasks, arrays.on_gpu)


def _warm_up(rows: Any, arrays: CachedArrays, n: int, gpus: float) -> None:
    """Make a worker ready to compute arrays, kernels compiled."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = str(device_of_share(gpus))
    for count in (FEWEST, FEWER):
        arrays.compute(rows, np.arange(min(n, count)), device)


def _train(
    dataset: Dataset,
    sample: TaskRows,
    work: np.ndarray,
    kinds: Sequence[Design],
    resources: Resources,
    *,
    has_arrays: bool,
    folder: str,
) -> tuple[float, TrialCosts]:
    """Train on parts of the sample; seconds of a reference, and what trials on rows of its mean work take.

    Args:
        dataset: of the sample.
        sample: its rows.
        work: of each row.
        kinds: what every result is compared with, and what else to train.
        resources: of a trial.
        has_arrays: whether trials read cached arrays.
        folder: for Ray's record.
    """
    task, shared_rows = dataset.task, ray.get(dataset.rows_ref)
    usable = np.setdiff1d(np.arange(len(sample)), list(dataset.quarantine))
    folds = _folds(task, sample, usable, work, kinds, dataset.rows_ref, resources.gpus_per_trial)
    _, reference = _timed(lambda: _started(kinds[0], shared_rows, folds[MANY].part(task)))
    dataset.trial_folds.update({number: ray.put(fold) for number, fold in folds.items()})
    trials = measure_trials(dataset, kinds[0], kinds[1:], resources, has_arrays=has_arrays, folder=folder)
    heavier = float(work[usable].mean() / work[folds[FEW].train].mean())
    return reference, replace(trials, points=[point.scaled(heavier) for point in trials.points])


def _folds(
    task: Task,
    sample: TaskRows,
    usable: np.ndarray,
    work: np.ndarray,
    kinds: Sequence[Design],
    rows_ref: ray.ObjectRef,
    gpus: float,
) -> dict[int, TrialFold]:
    """Parts of the sample to train on: of few rows where an epoch reads them themselves, so that it ends soon."""
    most_batch = max((kind.fields.get("batch_size", 1) for kind in kinds[1:]), default=1)
    large_fold = split(sample, usable, work, len(sample), most_batch)
    n_few = len(sample)
    if by_work := [kind for kind in kinds[1:] if not kind.reads_cached and not kind.fits_once]:
        few = split(sample, usable, work, FEWER, 1)
        pace = ray.remote(_pace).options(num_cpus=1, num_gpus=gpus)
        seconds = ray.get(pace.remote(rows_ref, few.part(task), by_work[0], gpus))
        n_few = int(SECONDS_AN_EPOCH / max(seconds, 1e-9))
    return {
        FEW: split(sample, usable, work, n_few, most_batch),
        MANY: large_fold,
        HALF: split(sample, usable, work, len(large_fold.train) // 2, 1),
    }


def _pace(rows: Any, part: TrainingPart, kind: Design, gpus: float) -> float:
    """Seconds that a training row takes in an epoch, about."""
    keep_freed_memory()
    torch.set_num_threads(1)
    run = _started(kind, rows, part, device=str(device_of_share(gpus)))
    return min(result.seconds for result in run.epochs() if result.epoch) / len(part.train)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds it took."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the terminal inside."""
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False
