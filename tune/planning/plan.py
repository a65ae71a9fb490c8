"""What a sweep will take, before anything is spent: `tune/run_sweep.py --plan`.

`tune/planning/measure.py` measures a few trials here, `tune/planning/forecast.py` simulates sweeps with what they
cost, and `plan` puts the two together. Nothing is written but to a temporary folder.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from data.folds import make_folds
from data.machine.ray_session import connect
from data.stores.storage import open_folder
from data.task import Task, TaskRows
from models.family import Reading
from models.registry import open_family, planned_epochs
from tune.dataset.dataset import VALIDATION_FRACTION, untrained
from tune.dataset.parts import missing_parts, prefix_of, rows_of_part
from tune.errors import SweepError
from tune.planning.designs import steps
from tune.planning.forecast import Forecast, Phase, TrialCost, forecast
from tune.planning.measure import Measured, measure
from tune.planning.plan_table import Epoch, Memory, Plan, Step
from tune.planning.trial_costs import own_memory
from tune.records.options import Options, refuse_unsuited
from tune.spaces.space import SearchSpace
from tune.trials.resources import Resources

GPU_MARGIN = 1.1  # on a trial's memory: other rows are larger than the sample's


def plan(options: Options) -> Plan:
    """Measure a little and say what a sweep will take.

    Raises:
        SweepError: a model that does not go with the task, no trial fits this machine, or the sample could not be
            trained on.
        TaskError: as the sweep itself would, and so do DownloadError, SplitError and UnsuitedError.
    """
    age, start = _age_of_process(), time.perf_counter()
    task, rows = options.open_task()
    space = options.space.for_task(task.kind, task.quantity)
    refuse_unsuited(options, task, space)
    n_test = {fold.index: len(fold.test_ids) for fold in make_folds(task, rows.ids, rows.groups)}
    driver = own_memory(os.getpid(), now=True), own_memory(os.getpid())
    machine = _measure_here(options, task, rows, space, age, start)

    measured, reading = machine.measured, machine.reading
    costs = _Costs(measured, len(rows), n_test, float(reading.sizes.mean()) / measured.size)
    prediction = forecast(
        options,
        space,
        costs.of_trial,
        baseline=untrained(space, task.kind),
        slots=machine.slots,
        startup=measured.trials.start,
        run_end=measured.trials.run_end,
    )
    before = _before_training(options, space, costs, machine)
    every = [*before, *_training(options, space, prediction, machine.slots)]
    fixed_seconds = sum(step.seconds for step in before)
    low, high = np.percentile(fixed_seconds + prediction.search.seconds + prediction.training.seconds, [10, 90])
    return Plan(
        title=f"{task.name}, space {space.name}",
        n_rows=len(rows),
        n_sample=measured.n_rows,
        slots=machine.slots,
        device=torch.cuda.get_device_name() if options.gpus_per_trial else "CPU",
        steps=tuple(every),
        seconds=sum(step.seconds for step in every),
        low=float(low),
        high=float(high),
        at_most=fixed_seconds + float(prediction.unstopped.seconds.max()),
        epochs=tuple(costs.of_step(space, fields) for fields in steps(space)),
        fold_search=float(prediction.search.seconds.mean()) / max(1, len(options.search_folds)),
        fold_training=float(prediction.training.seconds.mean()) / len(options.folds),
        core_hours=sum(step.core_seconds for step in every) / 3600,
        gpu_hours=_gpu_seconds(measured, prediction, before) * options.gpus_per_trial / 3600,
        memory=_memory(costs, machine, *driver),
        trials_a_gpu=_trials_a_gpu(measured),
        planning=time.perf_counter() - start,
        compiling=measured.compiled,
        load=os.getloadavg()[0],
        cores=machine.n_cpus,
    )


@dataclass(frozen=True, eq=False)
class _Here:
    """What was measured on this machine.

    Attributes:
        measured: on a sample.
        reading: of all rows.
        missing: rows of each part of cached arrays that the cache lacks, by what they are.
        slots: trials at once.
        n_cpus: that Ray has.
        object_store: bytes that it holds.
        around: seconds before and after all of this.
    """

    measured: Measured
    reading: Reading
    missing: dict[str, list[int]]
    slots: int
    n_cpus: int
    object_store: float
    around: float


def _measure_here(options: Options, task: Task, rows: TaskRows, space: SearchSpace, age: float, start: float) -> _Here:
    """Measure in a Ray of this machine, which is started and ended unless there is one.

    Args:
        options: of the sweep.
        task: of the rows.
        rows: all of them.
        space: what a sweep would search.
        age: seconds that this process had lived when the plan began.
        start: when it did, by `time.perf_counter`.
    """
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent)
    own_ray = not ray.is_initialized()
    connect()
    connection_time = time.perf_counter()
    try:
        slots, resources_here = resources.slots(), ray.cluster_resources()
        if not slots:
            raise SweepError(
                f"a trial asks for {options.cpus_per_trial} CPU and {options.gpus_per_trial:g} GPU, more than this "
                "machine has: lower --cpus-per-trial or --gpus-per-trial"
            )
        reading = open_family(task.family).reading(rows, space.needs, options.cache)
        missing = _missing_parts(space, options, task.family, reading.cache_key, len(rows))
        measured = measure(task, rows, reading, space, resources, collapse=not options.every_atom)
    finally:
        end = time.perf_counter()
        if own_ray:
            ray.shutdown()
    around = age + (connection_time - start) + (time.perf_counter() - end)
    return _Here(
        measured, reading, missing, slots, int(resources_here["CPU"]), resources_here["object_store_memory"], around
    )


@dataclass(frozen=True, eq=False)
class _Costs:
    """What was measured on a sample, for all rows of a task.

    Attributes:
        measured: on the sample.
        n_rows: of the task.
        n_test: of these, test rows by fold.
        heavier: how much larger a mean row is than one of the sample.
    """

    measured: Measured
    n_rows: int
    n_test: dict[int, int]
    heavier: float

    def of_trial(self, fields: dict[str, Any], fold: int | None, test: bool) -> TrialCost:
        """What one trial takes on a fold; None is a mean one.

        Args:
            fields: `model` and what is set of its config.
            fold: that it is trained on.
            test: whether it predicts the test part.
        """
        point = self.measured.trials.point(fields)
        n_tested = float(np.mean(list(self.n_test.values()))) if fold is None else self.n_test[fold]
        n_train = (self.n_rows - n_tested) * (1 - VALIDATION_FRACTION)
        n_val = (self.n_rows - n_tested) * VALIDATION_FRACTION
        factor = self.heavier if point.by_work else 1.0
        train_seconds = point.train_row * point.n_train * point.growth(n_train)
        last = self.measured.trials.last[point.model] * (max(1.0, point.growth(n_train)) if point.is_fit else 1.0)
        return TrialCost(
            epochs=planned_epochs(fields),
            first=self.measured.trials.next + point.val_row * factor * (n_train + n_val),
            epoch=(train_seconds + point.val_row * n_val) * factor + point.report,
            last=(last + point.val_row * factor * n_tested) if test else 0.0,
        )

    def of_step(self, space: SearchSpace, fields: dict[str, Any]) -> Epoch:
        """What an epoch takes, or a fit in one go, with some values of the fields by which they differ in cost."""
        seconds, point = self.of_trial(fields, None, False).epoch, self.measured.trials.point(fields)
        costly = [str(value) for field, value in fields.items() if field not in ("model", "batch_size")]
        description = ", ".join(costly or [Path(space.model).stem])
        if not point.is_fit:
            batches = f" with batches of {fields['batch_size']}" if "batch_size" in fields else ""
            return Epoch(f"An epoch of {description}{batches}", seconds)
        sizes = f"{point.n_train / 2:.0f} and {point.n_train:.0f} training rows"
        note = f", extrapolated from fits on {sizes}, which grew as their number to the power {point.power:.1f}"
        return Epoch(f"A fit of {description}", seconds, note)


def _missing_parts(
    space: SearchSpace, options: Options, family: str, cache_key: str, n_rows: int
) -> dict[str, list[int]]:
    """Rows of each part that the cache lacks, by what the parts are of."""
    missing = {}
    for arrays in open_family(family).arrays(space.needs, collapse=not options.every_atom):
        filesystem, path = open_folder(f"{options.cache.rstrip('/')}/{cache_key}")
        numbers = missing_parts(filesystem, path, prefix_of(arrays), n_rows)
        missing[arrays.what] = [len(rows_of_part(n_rows, number)) for number in numbers]
    return missing


def _before_training(options: Options, space: SearchSpace, costs: _Costs, machine: _Here) -> list[Step]:
    """The steps up to the first trial; what the cache holds costs nothing but to be read."""
    n_references = len({*options.folds, *(options.search_folds if space.searched else [])})
    start = machine.around + n_references * machine.measured.reference
    every = [
        _certain("start and end", start, start, "Python, Ray, the task's file, a reference for each fold"),
        _read(costs, machine.reading, machine.n_cpus),
    ]
    for arrays in machine.measured.arrays:
        parts, row = machine.missing[arrays.what], arrays.row * costs.heavier
        n_tasks = min(arrays.tasks, len(parts))
        wall = _longest(parts, n_tasks) * row + arrays.start if parts else 0.0
        busy = sum(parts) * row + n_tasks * arrays.start
        note = f"of {sum(parts):,} rows, {n_tasks} at once" if parts else "in the cache"
        every.append(_certain(arrays.what, wall, busy, note))
    return every


def _read(costs: _Costs, reading: Reading, n_cpus: int) -> Step:
    """Making and reading what trials read of the rows."""
    if reading.held_bytes is not None:
        return _certain(reading.what, reading.seconds, reading.seconds, "in the cache; to be read")
    measured, missing_rows = costs.measured, list(reading.missing)
    read_seconds = measured.read_row * costs.heavier * costs.n_rows
    if not reading.pieces:
        return _certain(reading.what, read_seconds, read_seconds, "to be read")
    row, n_processes = measured.make_row * costs.heavier, min(n_cpus, len(missing_rows))
    wall = _longest(missing_rows, n_processes) * row + measured.make_start if missing_rows else 0.0
    busy = sum(missing_rows) * row + n_processes * measured.make_start
    note = f"{sum(missing_rows):,} of {costs.n_rows:,} rows to convert, {n_processes} at once"
    return _certain(reading.what, wall + read_seconds, busy + read_seconds, note)


def _training(options: Options, space: SearchSpace, prediction: Forecast, slots: int) -> list[Step]:
    """The search, and the training of what it chose."""
    search, cpus, n_folds = [], options.cpus_per_trial, len(options.folds)
    if space.searched:
        n_searches = len(options.search_folds)
        note = f"{options.num_samples} trials" + (f" on each of {n_searches} folds" if n_searches > 1 else "")
        search.append(_uncertain("search", prediction.search, cpus, f"{note}, {slots} at once"))
    n_trained = (1 + (options.seeds if space.trains else 0)) * n_folds
    note = f"{n_trained} trials, {n_folds} of them the reference alone"
    return [*search, _uncertain("train the chosen, and test", prediction.training, cpus, note)]


def _gpu_seconds(measured: Measured, prediction: Forecast, before: list[Step]) -> float:
    """Seconds that shares of a GPU are taken, all together."""
    on_gpu = {arrays.what for arrays in measured.arrays if arrays.on_gpu}
    arrays_seconds = sum(step.core_seconds for step in before if step.name in on_gpu)
    return float(prediction.search.busy.mean() + prediction.training.busy.mean()) + arrays_seconds


def _memory(costs: _Costs, machine: _Here, driver_now: int | None, driver_most: int | None) -> Memory:
    """What the machine must hold; rows and arrays pass through the driver, one after the other."""
    measured, reading, n_rows = machine.measured, machine.reading, costs.n_rows
    read_bytes = reading.held_bytes or measured.read_bytes * costs.heavier * n_rows
    array_bytes = max(0.0, (measured.shared_bytes - measured.read_bytes) * costs.heavier * n_rows)
    extra_bytes = (n_rows - measured.n_rows) * reading.own_bytes  # beyond that of the measured trials
    own_bytes, held_bytes = measured.trials.own_bytes, max(read_bytes, array_bytes)
    return Memory(
        shared=read_bytes + array_bytes,
        store_needed=read_bytes + array_bytes + (read_bytes if array_bytes else 0.0),
        store=machine.object_store,
        trial=own_bytes + extra_bytes if own_bytes else None,
        driver=max(driver_most, driver_now + held_bytes) if driver_most and driver_now else None,
        cache_on_disk=measured.cached_bytes * costs.heavier * n_rows,
    )


def _trials_a_gpu(measured: Measured) -> int | None:
    """Trials that fit on the GPU that was measured; None without one."""
    trials = measured.trials
    if not trials.gpu_bytes or not trials.gpu_total_bytes:
        return None
    return int(trials.gpu_total_bytes / (trials.gpu_bytes * GPU_MARGIN))


def _longest(rows: list[int], n_workers: int) -> int:
    """Rows of the worker that gets the most, each taking the next piece when it is free."""
    loads = [0] * n_workers
    for count in rows:
        loads[loads.index(min(loads))] += count
    return max(loads)


def _certain(name: str, seconds: float, core_seconds: float, note: str) -> Step:
    return Step(name, seconds, seconds, seconds, core_seconds, note)


def _uncertain(name: str, phase: Phase, cpus: int, note: str) -> Step:
    low, high = np.percentile(phase.seconds, [10, 90])
    return Step(name, float(phase.seconds.mean()), float(low), float(high), float(phase.busy.mean()) * cpus, note)


def _age_of_process() -> float:
    """Seconds since this process began; where /proc does not tell, seconds that it has computed."""
    try:
        start = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - start
    except OSError:
        return time.process_time()
