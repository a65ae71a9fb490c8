"""One trial: a config on a fold, trained epoch by epoch and reported to Ray Tune with a checkpoint each.

Ray Tune calls `run_trial`. The loop itself is `models/train.py` and knows nothing of Ray.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch

from data.allocator import keep_freed_memory
from data.task_table import Quantity
from models.config import TrainConfig
from models.device import device_name, device_of_share
from models.metrics import Kind
from models.train import FineTuning, NonFiniteLossError, TrainingRows

STATE_FILE = "state.pt"
MODEL_FILE = "model.pth"
PREDICTIONS_FILE = "predictions.npy"  # of the test rows, in their order


@dataclass(frozen=True)
class TrialFold:
    """One fold as a trial sees it: no label of its test part is in it.

    Attributes:
        targets: float64, shape (n_rows,), NaN for every row but those of `train` and `val`.
        train, val, test: row positions, int64.
    """

    targets: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class TrialTask:
    """What a trial must know of its task.

    Attributes:
        kind: regression or classification.
        quantity: what the target is to an energy model.
        about: facts to store with a model.
        gpus_per_trial: share of a GPU that Ray gave to the trial.
        cpus_per_trial: threads to use.
    """

    kind: Kind
    quantity: Quantity
    about: dict[str, str]
    gpus_per_trial: float
    cpus_per_trial: int


def run_trial(
    config: dict[str, Any], rows: TrainingRows, folds: dict[int, ray.ObjectRef], task: TrialTask, *, predict_test: bool
) -> None:
    """Train one config on one fold, reporting every epoch with a checkpoint.

    Args:
        config: `fold` and the fields of `TrainConfig`; or {"run": such a dict}.
        rows: shared by all trials.
        folds: `TrialFold`s in the object store; only the config's own is read.
        task: facts of the task.
        predict_test: whether to predict the test part with the model of the best epoch, once, at the end.
    """
    keep_freed_memory()
    torch.set_num_threads(task.cpus_per_trial)
    torch.use_deterministic_algorithms(True)
    device = device_of_share(task.gpus_per_trial)
    fields = dict(config.get("run", config))
    part: TrialFold = ray.get(folds[fields.pop("fold")])
    run = start_training(TrainConfig(**fields), rows, part, task.kind, task.quantity, task.about, device)
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            run.restore(torch.load(Path(folder) / STATE_FILE, map_location=device, weights_only=True))
    try:
        for _ in run.epochs():
            with tempfile.TemporaryDirectory() as folder:
                _report(run, Path(folder))
    except NonFiniteLossError as problem:
        if not run.history:
            raise
        # It would fail again in the same way: the trial ends with its reason instead of being tried anew.
        with tempfile.TemporaryDirectory() as folder:
            _report(run, Path(folder), failed=str(problem))
        return
    if predict_test:
        with tempfile.TemporaryDirectory() as folder:
            model = run.best_model()
            n_atoms = rows.graphs.atoms_per_graph
            predictions = model.predict_rows(run.inputs, rows.fractions, n_atoms, part.test)
            np.save(Path(folder) / PREDICTIONS_FILE, predictions)
            model.save(Path(folder) / MODEL_FILE)
            _report(run, Path(folder))


def start_training(
    config: TrainConfig,
    rows: TrainingRows,
    part: TrialFold,
    kind: Kind,
    quantity: Quantity,
    about: dict[str, str] | None = None,
    device: torch.device | str = "cpu",
) -> FineTuning:
    """A training run on what a trial sees of a fold."""
    return FineTuning(
        config, rows, part.targets, part.train, part.val, kind=kind, quantity=quantity, about=about, device=device
    )


def _report(run: FineTuning, folder: Path, **failed: str) -> None:
    """Tell Ray Tune of the last epoch, with everything needed to go on from it, or why there is none to come."""
    facts = {"trained_parameters": run.trained_parameters, "device": device_name(run.device), **failed}
    torch.save({**run.state(), **facts}, folder / STATE_FILE)
    last = asdict(run.history[-1])
    last[f"val_{run.metric.name}"] = last.pop("val_metric")
    best = {f"best_val_{run.metric.name}": run.best_metric, "best_epoch": run.best_epoch}
    ray.tune.report({**last, **best, **failed}, checkpoint=ray.tune.Checkpoint.from_directory(folder))
