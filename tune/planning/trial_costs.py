"""What trials cost on this machine now: Ray Tune runs some on a few rows, as many at once as a sweep would run."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.tune import Callback
from ray.tune.experiment import Trial

from models.crystals.chgnet.model import FROM_FEATURES, CHGNetConfig
from models.crystals.chgnet.network import FREEZE_DEPTHS
from tune.dataset.dataset import Dataset, untrained
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.spaces.space import SearchSpace
from tune.trials.fields import fields_of
from tune.trials.resources import Resources
from tune.trials.search import train_chosen

MOST_SLOTS = 8  # trials at once while measuring
GRAPH_EPOCHS, FEATURE_EPOCHS = 3, 8  # of measured trials; the first one warms up and is not counted


@dataclass(frozen=True)
class Point:
    """Cost of epochs at one freeze depth and batch size, in seconds.

    Attributes:
        freeze_depth: of the config.
        batch_size: of the config.
        from_features: whether the backbone's output is read, not the graphs.
        train_row: of a training row in an epoch.
        val_row: of a row that is evaluated.
        report: of an epoch's checkpoint and report.
    """

    freeze_depth: str
    batch_size: int
    from_features: bool
    train_row: float
    val_row: float
    report: float


@dataclass(frozen=True)
class TrialCosts:
    """What trials take; seconds and bytes.

    Attributes:
        points: of training; freeze depth "none" is always among them.
        start: until new processes have begun their first trials.
        next: until a process that has ended a trial begins the next.
        last: of predicting a few test rows and keeping the model.
        run_end: from the end of a run's last trial until the run returns.
        own_bytes: most memory of a trial's process less what it shares; None where /proc does not tell.
        gpu_bytes: most memory that a trial has taken on the GPU; None without one.
        gpu_total_bytes: that the GPU has.
    """

    points: list[Point]
    start: float
    next: float
    last: float
    run_end: float
    own_bytes: int | None
    gpu_bytes: float | None
    gpu_total_bytes: int | None

    def point(self, freeze_depth: str, batch_size: int) -> Point:
        """Cost at any freeze depth and batch size, between measured ones where it was not measured itself.

        A row costs its own work and a share of its batch; each interaction block that trains adds its share.
        """
        near = [p for p in self.points if p.freeze_depth == freeze_depth]
        near = near or [p for p in self.points if not p.from_features]
        depths = sorted({FREEZE_DEPTHS.index(p.freeze_depth) for p in near})

        def between(cost: str) -> float:
            at_depths = []
            for depth in depths:
                here = [p for p in near if p.freeze_depth == FREEZE_DEPTHS[depth]]
                known = sorted((1 / p.batch_size, getattr(p, cost)) for p in here)
                at_depths.append(np.interp(1 / batch_size, [x for x, _ in known], [y for _, y in known]))
            return float(np.interp(FREEZE_DEPTHS.index(freeze_depth), depths, at_depths))

        costs = (between(cost) for cost in ("train_row", "val_row", "report"))
        return Point(freeze_depth, batch_size, near[0].from_features, *costs)


def batch_sizes(space: SearchSpace) -> list[int]:
    """The smallest and the largest batch size of a space."""
    value = space.parameters.get("batch_size", CHGNetConfig.model_fields["batch_size"].default)
    bounds = next(iter(value.values())) if isinstance(value, dict) else [value]
    return sorted({min(bounds), max(bounds)})


def freeze_depths(space: SearchSpace) -> list[str]:
    """Freeze depths that a space can take, from the readout backwards."""
    value = space.parameters.get("freeze_depth", CHGNetConfig.model_fields["freeze_depth"].default)
    return sorted(value["choice"] if isinstance(value, dict) else [value], key=FREEZE_DEPTHS.index)


def measure_trials(
    dataset: Dataset, space: SearchSpace, resources: Resources, *, has_features: bool, folder: str
) -> TrialCosts:
    """Train at the freeze depths and batch sizes that span those of a space.

    Args:
        dataset: of a sample; its "fold" 0 is for trials that read graphs, its "fold" 1 for those that read features.
        space: what a sweep would search.
        resources: of its trials; at least one fits.
        has_features: whether the backbone's output is known.
        folder: for Ray's record.

    Raises:
        SweepError: trials failed.
    """
    n_slots = min(resources.slots(), MOST_SLOTS)
    none = untrained(space, dataset.task.kind)
    # Two in each new process first, so that the others find one that has computed before.
    runs: list[tuple[int, dict[str, Any]]] = [(int(has_features), none | {"seed": k}) for k in range(2 * n_slots)]
    depths = [depth for depth in freeze_depths(space) if depth != "none"]
    light = [depth for depth in depths if has_features and depth in FROM_FEATURES]
    heavy = [depth for depth in depths if depth not in light]
    points = [
        (depth, size) for depth in dict.fromkeys([*heavy[-1:], *heavy[:1], *light]) for size in batch_sizes(space)
    ]
    # Two in each process here too: the first one evaluates with kernels that have to be loaded.
    for k in range(math.ceil(2 * n_slots / len(points)) * len(points) if points else 0):
        depth, size = points[k % len(points)]
        epochs = FEATURE_EPOCHS if depth in light else GRAPH_EPOCHS
        config = none | {"freeze_depth": depth, "batch_size": size, "epochs": epochs, "lr": 1e-4, "seed": k}
        runs.append((int(depth in light), config))
    watch = _Watch(on_gpu=resources.gpus_per_trial > 0)
    limited = Resources(resources.cpus_per_trial, resources.gpus_per_trial, n_slots)
    began = time.perf_counter()
    outcomes = train_chosen(dataset, runs, resources=limited, folder=folder, title="measuring", watch=[watch])
    ended = time.perf_counter()
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise SweepError(f"{len(failed)} of {len(runs)} measured trials failed: {'; '.join(sorted(set(failed)))}")
    parts: dict[int, TrialFold] = {fold: ray.get(part) for fold, part in dataset.trial_folds.items()}
    return watch.costs(began, ended, parts, n_slots)


@dataclass(frozen=True)
class _Report:
    """One report of a trial, as the driver met it."""

    time: float
    pid: int
    trial: str
    run: dict[str, Any]
    epoch: int
    seconds: float


class _Watch(Callback):
    """Keeps when reports came in, and how much memory the trials' processes have taken."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.reports: list[_Report] = []
        self.own_bytes: int | None = None
        self.gpu_bytes = 0

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        now, run = time.perf_counter(), fields_of(trial.config)
        self.reports.append(_Report(now, result["pid"], trial.trial_id, run, result["epoch"], result["seconds"]))
        self.own_bytes = max(filter(None, (self.own_bytes, own_memory(result["pid"]))), default=None)
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            self.gpu_bytes = max(self.gpu_bytes, total - free)

    def costs(self, began: float, ended: float, parts: dict[int, TrialFold], n_slots: int) -> TrialCosts:
        """What the reports of a run that began and ended at these times tell."""
        fresh, reused, last = [], [], []
        evaluated: dict[int, list[float]] = {}  # seconds a row, by fold
        epochs: dict[tuple[int, str, int], list[_Report]] = {}
        reports: dict[tuple[int, str, int], list[float]] = {}
        previous_of: dict[int, _Report] = {}
        for report in self.reports:
            fold, depth, size = point = report.run["fold"], report.run["freeze_depth"], report.run["batch_size"]
            epochs.setdefault(point, [])
            reports.setdefault(point, [])
            previous = previous_of.get(report.pid)
            previous_of[report.pid] = report
            if previous is None:
                fresh.append(report.time - report.seconds - began)
            elif previous.trial != report.trial:
                reused.append(report.time - report.seconds - previous.time)
                n_rows = len(parts[fold].train) + len(parts[fold].val)
                evaluated.setdefault(fold, []).append(report.seconds / n_rows)
            elif previous.epoch == report.epoch:  # the test part was predicted
                last.append(report.time - previous.time)
            else:
                reports[point].append(report.time - report.seconds - previous.time)
                if report.epoch > 1:
                    epochs[point].append(report)
        points = []
        for (fold, depth, size), counted in epochs.items():
            val_row = min(evaluated[fold])  # the others have compiled, or waited
            seconds = np.mean([report.seconds for report in counted]) if counted else 0.0
            train_row = (seconds - val_row * len(parts[fold].val)) / len(parts[fold].train)
            report_seconds = np.mean(reports[fold, depth, size] or [0.0])
            costs = max(0.0, float(train_row)), val_row, max(0.0, float(report_seconds))
            points.append(Point(depth, size, fold == 1, *costs))
        return TrialCosts(
            points=points,
            start=float(np.mean(fresh)),
            next=float(np.mean(reused)) if reused else 0.0,
            last=float(np.mean(last)),
            run_end=ended - self.reports[-1].time,
            own_bytes=self.own_bytes,
            gpu_bytes=self.gpu_bytes / n_slots if self.on_gpu else None,
            gpu_total_bytes=torch.cuda.mem_get_info()[1] if self.on_gpu else None,
        )


def own_memory(pid: int, *, now: bool = False) -> int | None:
    """Most memory a process has taken, or takes now, less what it shares; None where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
    taken = "VmRSS" if now else "VmHWM"
    return 1024 * (int(found[taken]) - int(found["RssShmem"])) if {taken, "RssShmem"} <= found.keys() else None
