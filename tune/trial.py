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

from models.config import TrainConfig
from models.fitted import Quantity
from models.metrics import Kind
from models.train import FineTuning, TrainingRows

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
    config: dict[str, Any],
    rows: TrainingRows,
    folds: dict[int, TrialFold],
    task: TrialTask,
    *,
    fold: int | None = None,
) -> None:
    """Train one config; with no `fold` given, the config names it and the test part is predicted at the end.

    Args:
        config: fields of `TrainConfig`; or, for the evaluation, {"run": {"fold": ..., "config": fields}}.
        rows: shared by all trials.
        folds: by index.
        task: facts of the task.
        fold: the fold that a search works on.
    """
    torch.set_num_threads(task.cpus_per_trial)
    torch.use_deterministic_algorithms(True)
    device = "cuda" if task.gpus_per_trial and torch.cuda.is_available() else "cpu"
    if device == "cuda" and task.gpus_per_trial < 1:
        torch.cuda.set_per_process_memory_fraction(task.gpus_per_trial)  # Ray itself limits nothing
    evaluates = fold is None
    fields = config["run"]["config"] if fold is None else config
    part = folds[config["run"]["fold"] if fold is None else fold]
    run = FineTuning(
        TrainConfig(**fields),
        rows,
        part.targets,
        part.train,
        part.val,
        kind=task.kind,
        quantity=task.quantity,
        about=task.about,
        device=device,
    )
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            run.restore(torch.load(Path(folder) / STATE_FILE, map_location=device, weights_only=True))
    for _ in run.epochs():
        with tempfile.TemporaryDirectory() as folder:
            _report(run, Path(folder))
    if evaluates:
        with tempfile.TemporaryDirectory() as folder:
            model = run.best_model()
            n_atoms = rows.graphs.atoms_per_graph
            predictions = model.predict_rows(run.inputs, rows.fractions, n_atoms, part.test)
            np.save(Path(folder) / PREDICTIONS_FILE, predictions)
            model.save(Path(folder) / MODEL_FILE)
            _report(run, Path(folder), evaluated=True)


def _report(run: FineTuning, folder: Path, **extra: Any) -> None:
    torch.save({**run.state(), "trained_parameters": run.trained_parameters}, folder / STATE_FILE)
    last = asdict(run.history[-1])
    last[f"val_{run.metric.name}"] = last.pop("val_metric")
    best = {f"best_val_{run.metric.name}": run.best_metric, "best_epoch": run.best_epoch}
    ray.tune.report({**last, **best, **extra}, checkpoint=ray.tune.Checkpoint.from_directory(folder))
