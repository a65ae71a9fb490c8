"""Live view of a Ray Tune run: TensorBoard events for every trial, a line a trial on the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from torch.utils.tensorboard import SummaryWriter

from data.build_cache import say
from models.metrics import Metric


class Tracking(Callback):
    """Writes scalars by epoch and, at a trial's end, its hyper-parameters with the best metric."""

    def __init__(self, title: str, n_trials: int, metric: Metric, folder: str) -> None:
        """Prepare to track.

        Args:
            title: of the run, for the terminal.
            n_trials: expected.
            metric: that trials are judged by.
            folder: of the run; on remote storage the events stay under `ray_results/` here.
        """
        self.title, self.n_trials, self.metric = title, n_trials, metric
        self.events = Path("ray_results", *folder.split("/")[-2:]) if "://" in folder else Path(folder)
        self.writers: dict[str, SummaryWriter] = {}
        self.best: float | None = None

    def setup(self, **info: Any) -> None:
        """Start the clock; Ray calls this after a restore too."""
        self.began = time.monotonic()

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        """Write the scalars of an epoch."""
        writer = self._writer(trial)
        value = f"val_{self.metric.name}"
        for name in ("train_loss", "val_loss", value, f"{value}_current", f"kept_{value}", "lr", "seconds"):
            writer.add_scalar(name, result[name], result["epoch"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Write the hyper-parameters, with the best value rather than the last, and say how it went."""
        best = trial.last_result[f"kept_val_{self.metric.name}"]
        fields = trial.config.get("run", trial.config)
        hparams = {key: value for key, value in fields.items() if isinstance(value, int | float | str | bool)}
        self._writer(trial).add_hparams(hparams, {f"hparam/kept_val_{self.metric.name}": best}, run_name=".")
        self._close(trial)
        if self.best is None or self.metric.better(best, self.best):
            self.best = best
        epochs = trial.last_result["epoch"]
        n_done = sum(one.is_finished() or one is trial for one in trials)
        stopped = "" if epochs >= fields.get("epochs", epochs) else ", stopped by ASHA"
        if "failed" in trial.last_result:
            say(f"  {self.title}: trial {trial.trial_id} failed: {trial.last_result['failed']}", style="red")
            return
        say(
            f"  {self.title}: {n_done}/{self.n_trials} after {time.monotonic() - self.began:.0f} s, "
            f"val {self.metric.name} {best:.4f} (best {self.best:.4f}) at epoch "
            f"{trial.last_result['kept_epoch']} of {epochs}{stopped}"
        )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a trial failed; the reason stands in the results."""
        self._close(trial)
        say(f"  {self.title}: trial {trial.trial_id} failed", style="red")

    def _writer(self, trial: Trial) -> SummaryWriter:
        if trial.trial_id not in self.writers:
            self.writers[trial.trial_id] = SummaryWriter(self.events / f"trial_{trial.trial_id}")
        return self.writers[trial.trial_id]

    def _close(self, trial: Trial) -> None:
        if trial.trial_id in self.writers:
            self.writers.pop(trial.trial_id).close()
