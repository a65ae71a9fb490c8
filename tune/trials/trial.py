"""One trial: a config on a fold, trained epoch by epoch and reported to Ray Tune with a checkpoint each.

Ray Tune calls `run_trial`. The models, and the training loop itself, are in `models/` and know nothing of Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch
from pyarrow import fs

from data.machine.allocator import keep_freed_memory
from data.metrics import metric_of
from data.task import Task
from models.config import ModelConfig
from models.device import device_name, device_of_share
from models.family import Family
from models.fitted import FittedModel
from models.model import Fitted, Prediction, Run, TrainingRows
from models.registry import open_family, open_model
from models.training.train import NonFiniteLossError
from tune.arguments import Copies, Untrusted
from tune.dataset.trial_fold import TrialFold
from tune.trials.fields import fields_of
from tune.trials.preemption import load_paused, read_state, watched
from tune.trials.progress import Progress

STATE_FILE = "state.pt"
MODEL_FILE = "model.pth"
PREDICTIONS_FILE = "predictions.npz"  # of the test and the validation rows, in their order


@dataclass(frozen=True)
class TrialTask:
    """The facts of its task, and of the machine, that a trial must know.

    Attributes:
        task: its facts.
        about: those that are stored with a model.
        gpus_per_trial: share of a GPU that Ray gave to the trial.
        cpus_per_trial: threads to use.
        folder: of the Ray Tune run, path or URI; a trial's own is in it.
        copies: of each crystal to average over at test time, or None.
        untrusted: what is predicted for a row whose prediction is not trusted: it is kept, or the baseline's.
    """

    task: Task
    about: dict[str, str]
    gpus_per_trial: float
    cpus_per_trial: int
    folder: str
    copies: Copies | None = None
    untrusted: Untrusted = "keep"


def run_trial(
    config: dict[str, Any], rows: TrainingRows, folds: dict[int, ray.ObjectRef], task: TrialTask, *, predict_test: bool
) -> None:
    """Train one config on one fold, reporting every epoch with a checkpoint.

    Args:
        config: whose `fields_of` are `model`, `fold` and the fields of the model's config.
        rows: shared by all trials.
        folds: `TrialFold`s in the object store; only the config's own is read.
        task: facts of the task.
        predict_test: whether to predict the test part with the model of the kept epoch, once, at the end.
    """
    keep_freed_memory()
    torch.set_num_threads(task.cpus_per_trial)
    device = device_of_share(task.gpus_per_trial)
    fields = fields_of(config)
    fold: TrialFold = ray.get(folds[fields.pop("fold")])
    model = open_model(fields.pop("model"))
    own_folder = f"{task.folder}/trial_{ray.tune.get_context().get_trial_id()}"
    settings, part = model.config(**fields), replace(fold.part(task.task), tell=Progress(own_folder))
    run = model.start(settings, rows, part, str(device))
    reports = _Reports(run, task, device_name(device))
    checkpoint = ray.tune.get_checkpoint()
    last_state = saved_state(checkpoint) if checkpoint else None
    last_epoch = last_state["history"][-1]["epoch"] if last_state else -1
    if state := load_paused(own_folder, last_epoch) or last_state:
        run.restore(state)
    if run.history and (run.history[-1].epoch > last_epoch or is_gone(checkpoint)):
        reports.send()
    try:
        with watched(run, own_folder) as preemption:
            for _ in preemption.epochs():
                reports.send()
            preemption.end_if_told()
    except NonFiniteLossError as problem:
        if not run.history:
            raise
        # It would fail again in the same way: the trial ends with its reason instead of being tried anew.
        reports.send(failed=str(problem))
        return
    if predict_test:
        with tempfile.TemporaryDirectory() as folder:
            fitted = run.fitted()
            family = open_family(model.family)
            trust, facts = _predict(family, fitted, settings, rows, fold, task, Path(folder))
            about = task.about | family.about(settings)
            if facts.get("tta", {}).get("used"):
                about["copies"] = str(facts["tta"]["copies"])
            if task.untrusted != "keep":
                about["untrusted"] = task.untrusted
            FittedModel(model, fitted, about, trust).save(Path(folder) / MODEL_FILE)
            reports.send_with(Path(folder), **facts)


def is_gone(checkpoint: ray.tune.Checkpoint | None) -> bool:
    """Whether Ray names a checkpoint that is not there any more: it was not told of the one that took its place."""
    if checkpoint is None:
        return False
    return checkpoint.filesystem.get_file_info(f"{checkpoint.path}/{STATE_FILE}").type == fs.FileType.NotFound


def saved_state(checkpoint: ray.tune.Checkpoint) -> dict[str, Any] | None:
    """The state in a checkpoint, or in the newest whole one of its trial where it is gone or damaged; None if all are.

    Ray keeps the last two checkpoints, and a record of the trial that may be a second old: after a kill the record can
    name one that has been deleted since.
    """
    filesystem, path = checkpoint.filesystem, checkpoint.path.rstrip("/")
    files = filesystem.get_file_info(fs.FileSelector(path.rsplit("/", 1)[0], allow_not_found=True))
    checkpoints = sorted((info.path for info in files if info.base_name.startswith("checkpoint_")), reverse=True)
    for place in [path, *(checkpoint_path for checkpoint_path in checkpoints if checkpoint_path != path)]:
        if (state := read_state(filesystem, f"{place}/{STATE_FILE}")) is not None:
            return state
    return None


def _predict(
    family: Family,
    fitted: Fitted,
    config: ModelConfig,
    rows: TrainingRows,
    fold: TrialFold,
    task: TrialTask,
    folder: Path,
) -> tuple[Any, dict[str, Any]]:
    """Write predictions of the test and validation rows; what judges them, and what test-time augmentation did."""
    facts: dict[str, Any] = {}
    part, copies = fold.part(task.task), 0
    if task.copies:
        result = family.judge_copies(
            fitted,
            rows,
            fold.val,
            fold.targets[fold.val],
            part.metric,
            task.copies.number,
            only_if_better=task.copies.only_if_better,
        )
        facts["tta"] = asdict(result)
        copies = result.copies if result.used else 0

    def prediction_of(which: np.ndarray) -> Prediction:
        return family.averaged(fitted, rows, which, copies) if copies else fitted.predict_rows(rows, which)

    trust = family.fit_trust(config, rows, part, lambda which: prediction_of(which).values)
    arrays = {}
    for name, which in (("test", fold.test), ("val", fold.val)):
        prediction = prediction_of(which)
        if trust is not None:
            replace_untrusted = task.untrusted == "baseline"
            prediction = trust.mark(rows, which, prediction, of_task=True, replace_untrusted=replace_untrusted)
        arrays[name] = prediction.values
        for extra in ("std", "trust"):
            if (values := getattr(prediction, extra)) is not None:
                arrays[f"{name}_{extra}"] = values
    np.savez(folder / PREDICTIONS_FILE, allow_pickle=False, **arrays)
    return trust, facts


def kept_metric(state: Mapping[str, Any]) -> float | None:
    """The validation metric of the epoch whose model is kept, from the state of a run; None if no epoch has ended."""
    values = [epoch["val_metric"] for epoch in state["history"] if epoch["epoch"] == state["kept_epoch"]]
    return values[0] if values else None


@dataclass(frozen=True)
class _Reports:
    """Reports of a run to Ray Tune: each is of its last epoch, with everything needed to go on from it."""

    run: Run
    task: TrialTask
    device: str

    def send(self, **facts: Any) -> None:
        """Report, through a checkpoint; `facts` are kept in it, `failed` says why there is no more."""
        with tempfile.TemporaryDirectory() as folder:
            self.send_with(Path(folder), **facts)

    def send_with(self, folder: Path, **facts: Any) -> None:
        """Report as `send` does, through a checkpoint that holds the files in `folder` too."""
        run, name = self.run, metric_of(self.task.task).name
        state = {**run.state(), "trained_parameters": run.trained_parameters, "device": self.device, **facts}
        torch.save(state, folder / STATE_FILE)
        report = asdict(run.history[-1])
        report[f"val_{name}"] = report.pop("val_metric")
        report[f"val_{name}_current"] = report.pop("val_metric_current")
        report |= {f"kept_val_{name}": kept_metric(state), "kept_epoch": run.kept_epoch}
        report |= {key: value for key, value in facts.items() if key == "failed"}
        ray.tune.report(report, checkpoint=ray.tune.Checkpoint.from_directory(folder))
