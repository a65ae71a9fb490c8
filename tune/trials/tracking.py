"""What other programs watch a Ray Tune run by: TensorBoard events of every trial, and the search as an Optuna study.

    tensorboard --logdir ray_results
    optuna-dashboard sqlite:///ray_results/NAME/optuna.db

The lines and the table on the terminal are `tune/trials/terminal.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState, create_trial
from ray.tune import Callback
from ray.tune.experiment import Trial
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from torch.utils.tensorboard import SummaryWriter

from data.machine.console import say
from data.metrics import Metric
from data.stores.storage import StorageError
from models.registry import planned_epochs
from tune.spaces.space import SearchSpace
from tune.trials.fields import fields_of
from tune.trials.trial import saved_state

STUDIES = "optuna.db"
# What Optuna raises where the file is damaged, or another program's.
_STUDY_FAULTS = (optuna.exceptions.OptunaError, SQLAlchemyError, RuntimeError, ValueError, KeyError, TypeError)
# With less left, the disk counts as full: TensorBoard's thread would tell of it by a traceback on the terminal.
_RESERVE = 1 << 20
MANY = 2000  # points above which a parity plot shows their density


def local_folder(folder: str) -> Path:
    """Where events of a run are kept: beside it, or under `ray_results/` here where it is on remote storage."""
    return Path("ray_results", *folder.split("/")[-2:]) if "://" in folder else Path(folder)


class Tracking(Callback):
    """Writes scalars by epoch and, at a trial's end, its hyper-parameters with the best metric and its predictions."""

    def __init__(
        self, metric: Metric, folder: str, val_targets: dict[int, np.ndarray], space: SearchSpace | None = None
    ) -> None:
        """Prepare to track.

        Args:
            metric: that trials are judged by.
            folder: of the run, path or URI.
            val_targets: of each fold's validation rows, in the order of a trial's predictions.
            space: that is searched; without one there is no Optuna study.
        """
        self.metric, self.val_targets, self.space = metric, val_targets, space
        self.events = local_folder(folder)
        self.writers: dict[str, SummaryWriter] = {}
        self.study: optuna.Study | None = None
        self.in_study: set[str] = set()

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        """Write the scalars of an epoch; StorageError where they cannot be written."""
        value = f"val_{self.metric.name}"
        with self._room():
            writer = self._writer(trial)
            for name in ("train_loss", "val_loss", value, f"{value}_current", f"kept_{value}", "lr", "seconds"):
                writer.add_scalar(name, result[name], result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write the hyper-parameters, with the best value rather than the last, and validation predictions.

        StorageError where they cannot be written.
        """
        best = trial.last_result[f"kept_val_{self.metric.name}"]
        fields = fields_of(trial.config)
        hparams = {key: value for key, value in fields.items() if isinstance(value, int | float | str | bool)}
        state = _state(trial)
        with self._room():
            writer = self._writer(trial)
            writer.add_hparams(hparams, {f"hparam/kept_val_{self.metric.name}": best}, run_name=".")
            if state is not None:
                figure = _parity(self.val_targets[fields["fold"]], state["val_predictions"].numpy(), self.metric)
                writer.add_figure("validation of the kept epoch", figure, trial.last_result["kept_epoch"])
            self._close(trial)
        self._bring_up_to_date([trial], lambda _: state)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close its events; why it failed is what counts, and not that they are cut short."""
        with suppress(OSError):
            self._close(trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Bring the study up to date: an earlier driver may have died between a trial's end and its entry."""
        self._bring_up_to_date(trials, _state)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say in a sentence that events cannot be written: Ray would give a traceback of TensorBoard's."""
        folder = self.events.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder).free < _RESERVE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield
        except OSError as problem:
            raise StorageError(
                f"cannot write {folder}, where events for TensorBoard are kept: {problem.strerror or problem}. Make "
                "space there, or make it a folder that you may write to; then go on"
            ) from problem

    def _writer(self, trial: Trial) -> SummaryWriter:
        if trial.trial_id not in self.writers:
            self.writers[trial.trial_id] = SummaryWriter(self.events / f"trial_{trial.trial_id}")
        return self.writers[trial.trial_id]

    def _close(self, trial: Trial) -> None:
        if trial.trial_id in self.writers:
            self.writers.pop(trial.trial_id).close()

    def _bring_up_to_date(self, trials: list[Trial], state_of: Callable[[Trial], dict[str, Any] | None]) -> None:
        """Add trials that the study lacks; `read` gives a trial's state. It is a copy for people: it ends no sweep."""
        if self.space is None:
            return
        for attempt in (1, 2):
            try:
                for trial in trials:
                    if trial.trial_id not in self._known():
                        self._add_to_study(trial, state_of(trial), self.space)
                return
            except _STUDY_FAULTS as problem:
                self.study = None
                if _of_the_disk(problem) or attempt == 2:
                    return  # it may be full, or the file locked: the search's end adds what is missing
                self._move_aside()

    def _move_aside(self) -> None:
        """A damaged file out of the way; the end of each search fills the new one."""
        file = self.events.parent / STUDIES
        say(f"{file} is damaged or not a study of this sweep: it is now {file.name}.damaged, and is made anew")
        for suffix in ("-journal", ""):  # a journal that stayed would be taken for the new file's
            with suppress(OSError):
                Path(f"{file}{suffix}").replace(f"{file}.damaged{suffix}")

    def _known(self) -> set[str]:
        """Trials in the study, which is opened the first time."""
        if self.study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self.events.parent.mkdir(parents=True, exist_ok=True)
            self.study = optuna.create_study(
                # Written by SQLAlchemy: in an address of its kind a `?` of the path begins the options.
                storage=URL.create("sqlite", database=str(self.events.parent / STUDIES)).render_as_string(),
                study_name=self.events.name,
                direction="minimize" if self.metric.mode == "min" else "maximize",
                load_if_exists=True,
            )
            self.in_study = {study_trial.user_attrs.get("trial", "") for study_trial in self.study.trials}
        return self.in_study

    def _add_to_study(self, trial: Trial, state: dict[str, Any] | None, space: SearchSpace) -> None:
        """A copy of the search for people: the sampler's own study lives in Ray's snapshots, which a resume needs."""
        assert self.study is not None
        history = state["history"] if state else []
        value = trial.last_result.get(f"kept_val_{self.metric.name}")
        if value is None or "failed" in trial.last_result:
            end_state = TrialState.FAIL
        else:
            whole = history[-1]["epoch"] >= planned_epochs(trial.config)
            end_state = TrialState.COMPLETE if whole else TrialState.PRUNED
        entry = create_trial(
            state=end_state,
            value=None if end_state == TrialState.FAIL else value,
            params={field: trial.config[field] for field in space.searched},
            distributions=space.distributions(),
            intermediate_values={epoch["epoch"]: epoch["val_metric"] for epoch in history},
            user_attrs={"trial": trial.trial_id},
        )
        entry.datetime_complete = datetime.now()
        entry.datetime_start = entry.datetime_complete - timedelta(seconds=sum(epoch["seconds"] for epoch in history))
        self.study.add_trial(entry)
        self.in_study.add(trial.trial_id)


def _state(trial: Trial) -> dict[str, Any] | None:
    """The state in a trial's newest whole checkpoint; None where it has none."""
    return saved_state(trial.checkpoint) if trial.checkpoint else None


def _of_the_disk(problem: Exception) -> bool:
    """Whether an error is not of what is in the file: SQLite says so, by itself or as what Optuna's error came of."""
    cause = problem if isinstance(problem, OperationalError) else problem.__cause__
    content_error = "SQLITE_ERROR"  # a table or column that is not there
    return isinstance(cause, OperationalError) and getattr(cause.orig, "sqlite_errorname", "") != content_error


def _parity(labels: np.ndarray, predictions: np.ndarray, metric: Metric) -> Figure:
    """Predictions over labels; of a classification how the predicted probabilities are spread."""
    # The driver draws while trials wait, and margins that are fitted to the text take three times as long.
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0.19, 0.13, 0.77, 0.78))
    bins = np.linspace(0, 1, 21).tolist()
    if predictions.ndim > labels.ndim:
        true_class_probabilities = np.take_along_axis(
            predictions, np.maximum(labels, 0).astype(int)[..., None], axis=-1
        )
        axes.hist(true_class_probabilities[labels >= 0].ravel(), bins=bins)
        axes.set(xlabel="predicted probability of the true class", ylabel="labels")
        return figure
    if metric.mode == "max":
        for label in (0, 1):
            axes.hist(predictions[labels == label], bins=bins, label=str(bool(label)), alpha=0.6)
        axes.set(xlabel="predicted probability", ylabel="rows")
        axes.legend(title="label")
        return figure
    score = metric.value(labels, predictions)
    labels, predictions = labels.ravel(), predictions.ravel()
    ends = [min(labels.min(), predictions.min()), max(labels.max(), predictions.max())]
    if len(labels) > MANY:
        axes.hexbin(labels, predictions, gridsize=60, bins="log", cmap="viridis")
    else:
        axes.plot(labels, predictions, ".", markersize=4, alpha=0.5)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel="label", ylabel="prediction", title=f"{metric.title} {score:.4f}")
    return figure
