"""How many trials share a GPU: what `--gpus-per-trial auto` measures.

Ray hands out shares and limits nothing, so a share is also the part of the memory that torch may use in a trial
(`models/device.py`). Where a probe was too hopeful, memory runs out in a trial, which then computes its batches in more
passes (`models/training/train.py`).
"""

from __future__ import annotations

import math
import os
import resource
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from data.machine.console import say
from data.task import Task
from models.device import device_of_share
from models.model import TrainingRows
from models.registry import open_family, open_model
from tune.dataset.dataset import Dataset
from tune.dataset.trial_fold import TrialFold
from tune.records.folder import Folder
from tune.records.options import Options
from tune.spaces.space import SearchSpace, combinations

FILE = "packing.json"
MARGIN = 1.15  # of memory beyond what the probe has taken
USABLE = 0.95  # of a GPU's memory


@dataclass(frozen=True)
class Probe:
    """The GPU memory that the most demanding trial of one kind takes.

    Attributes:
        config: that was tried.
        used_bytes: of the GPU's memory, everything included that torch and CUDA keep for a process.
        total_bytes: of the GPU.
    """

    config: dict[str, Any]
    used_bytes: int
    total_bytes: int


def share_of_gpu(options: Options, space: SearchSpace, dataset: Dataset, folder: Folder) -> float:
    """The share for each trial; measured once, and again where the sweep was extended by what takes more memory.

    Raises:
        NoGPUError: torch finds no GPU where Ray has one.
    """
    record = folder.read_json(FILE)
    if record is None or [entry["config"] for entry in record["probes"]] != list(most_demanding(space).values()):
        fold = options.search_folds[0] if space.searched else options.folds[0]
        probes = probe(space, dataset, fold)
        record = {"share": share(probes), "probes": [asdict(entry) for entry in probes]}
        folder.write_json(FILE, record)
        for entry in probes:
            label = ", ".join(_costly(space, entry.config)) or space.model
            say(f"  GPU memory, {label}: {entry.used_bytes / 1e9:.2f} of {entry.total_bytes / 1e9:.1f} GB")
        say(f"  {1 / record['share']:.0f} trials share a GPU (--gpus-per-trial {record['share']:g})")
    return record["share"]


def share(probes: list[Probe]) -> float:
    """Largest share 1/n that holds every probe with a margin, cut to three decimals as Ray counts; at most 1."""
    n = min(int(USABLE * probe.total_bytes / (MARGIN * probe.used_bytes)) for probe in probes)
    return math.floor(1000 / max(1, n)) / 1000


def most_demanding(space: SearchSpace) -> dict[tuple[str, ...], dict[str, Any]]:
    """A config with the largest batches for each kind of trial; the model's costly fields tell the kinds apart."""
    by_kind: dict[tuple[str, ...], dict[str, Any]] = {}
    for config in combinations(space):
        kind = _costly(space, config)
        if kind not in by_kind or config.get("batch_size", 0) > by_kind[kind].get("batch_size", 0):
            by_kind[kind] = config
    return by_kind


def _costly(space: SearchSpace, config: dict[str, Any]) -> tuple[str, ...]:
    """Values of the fields by which the model's trials differ in cost."""
    fields = space.config.model_fields
    return tuple(str(config.get(field, fields[field].default)) for field in open_model(space.model).costly)


def probe(space: SearchSpace, dataset: Dataset, fold: int, device: str = "cuda") -> list[Probe]:
    """Train one epoch of each kind of trial on the largest rows of a fold, each in a process of its own."""
    by_kind = most_demanding(space)
    # max_calls: the next one begins with a fresh process, whose memory is its own.
    remote = ray.remote(num_cpus=1, num_gpus=float(device == "cuda"), max_calls=1)(_probe)
    fold_ref = dataset.trial_folds[fold]
    task = dataset.task
    refs = [remote.remote(dataset.rows_ref, fold_ref, space.model, config, task, device) for config in by_kind.values()]
    return [
        Probe(config, *used_and_total) for config, used_and_total in zip(by_kind.values(), ray.get(refs), strict=True)
    ]


def _probe(
    rows: TrainingRows, fold: TrialFold, name: str, fields: dict[str, Any], task: Task, device: str
) -> tuple[int, int]:
    device_of_share(float(device == "cuda"))
    model = open_model(name)
    config = model.config(**fields)
    if "epochs" in type(config).model_fields and model.trains(fields):
        config = config.model_copy(update={"epochs": 1})
    config = config.model_copy(update=model.demanding)
    n_rows = 2 * getattr(config, "batch_size", 1)
    family = open_family(model.family)
    # Passes are as large as a trial's: with small batches these take the most.
    n_judged = max(n_rows, family.ROWS_PER_PASS)
    largest = fold.train[np.argsort(-family.work(rows)[fold.train], kind="stable")]
    part = replace(fold.part(task), train=largest[:n_rows], val=largest[:n_judged])
    run = model.start(config, rows, part, device)
    for _ in run.epochs():
        pass
    if device == "cpu":
        most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return 1024 * most_kib, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free, total = torch.cuda.mem_get_info()  # torch gives back nothing, so that what is taken is the most it took
    return total - free, total
