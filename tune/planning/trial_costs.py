"""What trials cost on this machine now: Ray Tune runs some on a few rows, as many at once as a sweep would run."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.tune import Callback
from ray.tune.experiment import Trial

from tune.dataset.dataset import Dataset
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.planning.designs import Design, design, place
from tune.trials.fields import fields_of
from tune.trials.resources import Resources
from tune.trials.search import train_chosen

MOST_SLOTS = 8  # trials at once while measuring
FEW, MANY, HALF = 0, 1, 2  # "folds": of rows that cost much in an epoch; of the other rows; half as many of these
STEEPEST = 3.0  # power of a fit in one go: that of solving a dense system


@dataclass(frozen=True)
class Point:
    """What trials of one config cost, in seconds.

    Attributes:
        model: by name.
        at: see `tune.planning.designs.place`.
        by_work: whether epochs read rows themselves, so that a row costs by its work.
        is_fit: whether it is fitted in one go.
        train_row: of a training row in an epoch, or in the whole of a fit in one go.
        val_row: of a row that is evaluated.
        report: of an epoch's checkpoint and report.
        n_train: training rows that it was measured on.
        power: of the number of training rows, that training grows by: 1 but for a fit in one go.
    """

    model: str
    at: tuple[float, ...]
    by_work: bool
    is_fit: bool
    train_row: float
    val_row: float
    report: float
    n_train: float
    power: float = 1.0

    def growth(self, n_train: float) -> float:
        """How many times as much training takes on so many rows."""
        return (n_train / self.n_train) ** self.power

    def scaled(self, work: float) -> Point:
        """The same of rows with so many times the work, where that counts."""
        factor = work if self.by_work else 1.0
        return replace(self, train_row=self.train_row * factor, val_row=self.val_row * factor)


@dataclass(frozen=True)
class TrialCosts:
    """What trials take; seconds and bytes.

    Attributes:
        points: of the configs that were measured; what every result is compared with is always among them.
        has_arrays: whether trials read cached arrays.
        start: until new processes have begun their first trials.
        next: until a process that has ended a trial begins the next.
        last: of predicting a few test rows and keeping the model, by model.
        run_end: from the end of a run's last trial until the run returns.
        own_bytes: most memory of a trial's process less what it shares; None where /proc does not tell.
        gpu_bytes: most memory that a trial has taken on the GPU; None without one.
        gpu_total_bytes: that the GPU has.
    """

    points: list[Point]
    has_arrays: bool
    start: float
    next: float
    last: dict[str, float]
    run_end: float
    own_bytes: int | None
    gpu_bytes: float | None
    gpu_total_bytes: int | None

    def point(self, fields: dict[str, Any]) -> Point:
        """What a trial costs, between those that were measured where it was not itself.

        Args:
            fields: `model` and what is set of its config.
        """
        kind = design(fields, has_arrays=self.has_arrays)
        by_work = not (kind.reads_cached or kind.fits_once)
        near = [point for point in self.points if point.model == fields["model"] and point.by_work == by_work]
        at = place(fields)

        def between(cost: str) -> float:
            return _interpolated([(point.at, getattr(point, cost)) for point in near], at)

        names = ("train_row", "val_row", "report", "n_train", "power")
        return Point(fields["model"], at, by_work, kind.fits_once, **{name: between(name) for name in names})


def _interpolated(points: Sequence[tuple[tuple[float, ...], float]], at: tuple[float, ...]) -> float:
    """A number between those known at some places, along one coordinate after the other; beyond an end that end's."""
    if not at:
        return float(np.mean([number for _, number in points]))
    along = sorted({place_of_point[0] for place_of_point, _ in points})
    numbers = [
        _interpolated(
            [
                (place_of_point[1:], number)
                for place_of_point, number in points
                if place_of_point[0] == coordinate_value
            ],
            at[1:],
        )
        for coordinate_value in along
    ]
    return float(np.interp(at[0], along, numbers))


def measure_trials(
    dataset: Dataset,
    baseline: Design,
    designs: Sequence[Design],
    resources: Resources,
    *,
    has_arrays: bool,
    folder: str,
) -> TrialCosts:
    """Train some configs, and what every result is compared with, on parts of a sample.

    Args:
        dataset: of a sample; its "folds" are `FEW`, `MANY` and `HALF`.
        baseline: what every result is compared with.
        designs: other configs.
        resources: of a trial; at least one fits.
        has_arrays: whether trials read cached arrays.
        folder: for Ray's record.

    Raises:
        SweepError: trials failed.
    """
    n_slots = min(resources.slots(), MOST_SLOTS)
    # Two in each new process first, so that the others find one that has computed before.
    baseline_folds = _folds_of(baseline)
    runs = [(fold, baseline.fields | {"seed": k}) for fold in baseline_folds for k in range(2 * n_slots)]
    points = [(fold, trial_design.fields) for trial_design in designs for fold in _folds_of(trial_design)]
    # Two in each process here too: the first one evaluates with kernels that have to be loaded.
    for k in range(math.ceil(2 * n_slots / len(points)) * len(points) if points else 0):
        fold, fields = points[k % len(points)]
        runs.append((fold, fields | {"seed": len(runs)}))
    watch = _Watch(on_gpu=resources.gpus_per_trial > 0)
    limited_resources = Resources(resources.cpus_per_trial, resources.gpus_per_trial, n_slots)
    start = time.perf_counter()
    outcomes = train_chosen(dataset, runs, resources=limited_resources, folder=folder, title="measuring", watch=[watch])
    end = time.perf_counter()
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        raise SweepError(f"{len(errors)} of {len(runs)} measured trials failed: {'; '.join(sorted(set(errors)))}")
    parts: dict[int, TrialFold] = {fold: ray.get(part) for fold, part in dataset.trial_folds.items()}
    return TrialCosts(
        points=watch.points([baseline, *designs], parts),
        has_arrays=has_arrays,
        start=float(np.mean(watch.starts(start))),
        next=float(np.mean(watch.nexts() or [0.0])),
        last=watch.lasts(),
        run_end=end - watch.reports[-1].time,
        own_bytes=watch.own_bytes,
        gpu_bytes=watch.gpu_bytes / n_slots if watch.on_gpu else None,
        gpu_total_bytes=torch.cuda.mem_get_info()[1] if watch.on_gpu else None,
    )


def _folds_of(design: Design) -> list[int]:
    """The folds that a config is measured on; a fit in one go on two, for its cost need not go with the rows."""
    if design.fits_once:
        return [MANY, HALF]
    return [MANY if design.reads_cached else FEW]


@dataclass(frozen=True)
class _Report:
    """One report of a trial, as the driver met it.

    Attributes:
        time: by `time.perf_counter`.
        pid: of the trial's process.
        trial: by id.
        fold: that it trains on.
        fields: `model` and the fields of its config.
        epoch: that has ended.
        seconds: that it took.
        previous: report of the same process, or None.
    """

    time: float
    pid: int
    trial: str
    fold: int
    fields: dict[str, Any]
    epoch: int
    seconds: float
    previous: _Report | None

    @property
    def key(self) -> tuple[int, str, tuple[float, ...]]:
        """What is measured together."""
        return self.fold, self.fields["model"], place(self.fields)

    @property
    def waited(self) -> float:
        """Seconds since the process had reported before, less those of the epoch."""
        assert self.previous is not None
        return self.time - self.seconds - self.previous.time

    @property
    def is_first(self) -> bool:
        """Whether it is the trial's first one."""
        return self.previous is None or self.previous.trial != self.trial

    @property
    def is_test(self) -> bool:
        """Whether it says that the test part was predicted, after the last epoch."""
        return not self.is_first and self.previous is not None and self.previous.epoch == self.epoch


class _Watch(Callback):
    """Keeps when reports came in, and how much memory the trials' processes have taken."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.reports: list[_Report] = []
        self.latest: dict[int, _Report] = {}  # of each process
        self.own_bytes: int | None = None
        self.gpu_bytes = 0

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        time_now, fields, pid = time.perf_counter(), fields_of(trial.config), result["pid"]
        fold, previous = fields.pop("fold"), self.latest.get(pid)
        report = _Report(time_now, pid, trial.trial_id, fold, fields, result["epoch"], result["seconds"], previous)
        self.reports.append(report)
        self.latest[pid] = report
        self.own_bytes = max(filter(None, (self.own_bytes, own_memory(pid))), default=None)
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            self.gpu_bytes = max(self.gpu_bytes, total - free)

    def starts(self, start: float) -> list[float]:
        """Seconds from a time until each process had begun its first trial."""
        return [report.time - report.seconds - start for report in self.reports if report.previous is None]

    def nexts(self) -> list[float]:
        """Seconds from the end of a trial until its process had begun the next."""
        return [report.waited for report in self.reports if report.is_first and report.previous is not None]

    def lasts(self) -> dict[str, float]:
        """Mean seconds from the last epoch until the test part was predicted, by model."""
        test_seconds = [
            (report.fields["model"], report.waited + report.seconds) for report in self.reports if report.is_test
        ]
        models = dict.fromkeys(model for model, _ in test_seconds)
        return {model: float(np.mean([seconds for of, seconds in test_seconds if of == model])) for model in models}

    def points(self, designs: Sequence[Design], parts: dict[int, TrialFold]) -> list[Point]:
        """What the configs that were measured cost."""
        points: dict[tuple[str, tuple[float, ...]], Point] = {}
        for measured_design in designs:
            of = measured_design.fields["model"], place(measured_design.fields)
            points[of] = self._fit(of, parts) if measured_design.fits_once else self._epochs(of, measured_design, parts)
        return list(points.values())

    def _epochs(self, of: tuple[str, tuple[float, ...]], measured_design: Design, parts: dict[int, TrialFold]) -> Point:
        """Of epochs: the first one of a trial is not counted."""
        (fold,) = _folds_of(measured_design)
        part, own_reports = parts[fold], [report for report in self.reports if report.key == (fold, *of)]
        val_row_seconds = [
            report.seconds / (len(part.train) + len(part.val))
            for report in self.reports
            if report.epoch == 0 and not report.is_test and report.previous and report.key[:2] == (fold, of[0])
        ]
        val_row = min(val_row_seconds, default=0.0)  # the others have compiled, or waited
        epochs = [report for report in own_reports if not report.is_first and not report.is_test]
        later_seconds = [report.seconds for report in epochs if report.epoch > 1]
        seconds = float(np.mean(later_seconds)) if later_seconds else 0.0
        return Point(
            *of,
            by_work=not measured_design.reads_cached,
            is_fit=False,
            train_row=max(0.0, (seconds - val_row * len(part.val)) / len(part.train)),
            val_row=val_row,
            report=max(0.0, float(np.mean([report.waited for report in epochs] or [0.0]))),
            n_train=len(part.train),
        )

    def _fit(self, of: tuple[str, tuple[float, ...]], parts: dict[int, TrialFold]) -> Point:
        """Of a fit in one go, which predicts its training and validation rows too, from two numbers of rows."""
        fit_seconds = {}
        for fold in (MANY, HALF):
            trials: dict[str, float] = {}
            for report in self.reports:
                if report.key == (fold, *of) and not report.is_test:
                    trials[report.trial] = trials.get(report.trial, 0.0) + report.seconds
            fit_seconds[fold] = max(min(trials.values()), 1e-9)  # the others have loaded code, or waited
        n_train, n_half = (len(parts[fold].train) for fold in (MANY, HALF))
        power = (
            math.log(fit_seconds[MANY] / fit_seconds[HALF]) / math.log(n_train / n_half) if n_half < n_train else 1.0
        )
        power = min(max(power, 0.0), STEEPEST)
        return Point(*of, False, True, fit_seconds[MANY] / n_train, 0.0, 0.0, n_train, power)


def own_memory(pid: int, *, now: bool = False) -> int | None:
    """Most memory a process has taken, or takes now, less what it shares; None where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    figures = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
    field = "VmRSS" if now else "VmHWM"
    return 1024 * (int(figures[field]) - int(figures["RssShmem"])) if {field, "RssShmem"} <= figures.keys() else None
