"""What the terminal shows of a Ray Tune run: one table that is kept up to date, or a line at each trial's end.

The table is for people who watch. Where nobody can, in a file, in CI or with --quiet, there are lines alone.
"""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from data.machine.console import console, say
from data.metrics import Metric
from models.registry import planned_epochs
from tune.trials.fields import fields_of
from tune.trials.progress import progress_of

MOST_ROWS = 12  # running trials that the table shows
ASK_TABLE_S, ASK_LINES_S = 3.0, 30.0  # seconds between two looks at what trials say that have reported nothing


class Terminal(Callback):
    """Tells how a run goes on: trials done, the best so far, what runs now, and about how long it will take."""

    live: ClassVar[Live | None] = None  # one a process: Ray goes on with a copy of a callback after a restore

    def __init__(self, title: str, n_trials: int, metric: Metric, folder: str) -> None:
        """Prepare to tell.

        Args:
            title: of the run.
            n_trials: expected.
            metric: that trials are judged by.
            folder: of the run, path or URI.
        """
        self.title, self.n_trials, self.metric, self.folder = title, n_trials, metric, folder
        self.fitting: dict[str, tuple[Trial, float, str]] = {}  # by trial: when it began, and what it said since
        self.best: float | None = None
        self.best_trial = ""
        self.running: dict[str, tuple[Trial, dict[str, Any]]] = {}  # by trial: its last report
        self.n_done = self.n_done_here = 0

    def setup(self, **info: Any) -> None:
        """Start the clock and the table; Ray calls this after a restore too."""
        self.began = self.asked = time.monotonic()
        self.n_done_here = 0
        self.fitting.clear()  # of a driver that has ended
        if console.is_terminal and console.is_interactive and not os.environ.get("CI"):
            Terminal.live = Live(self, console=console, refresh_per_second=2, transient=True)
            Terminal.live.start()

    @staticmethod
    def close() -> None:
        """Take the table away, if there is one."""
        if Terminal.live is not None:
            Terminal.live.stop()
            Terminal.live = None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note a trial that has reported nothing yet."""
        self.fitting[trial.trial_id] = trial, time.monotonic(), ""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ask now and then how far those have come that report nothing for long; without a table, say it."""
        time_now = time.monotonic()
        if time_now - self.asked < (ASK_TABLE_S if self.live else ASK_LINES_S):
            return
        self.asked = time_now
        for trial_id, (trial, start, _) in self.fitting.items():
            if line := progress_of(f"{self.folder}/trial_{trial_id}"):
                self.fitting[trial_id] = trial, start, line
                if self.live is None:
                    fold = fields_of(trial.config)["fold"]
                    say(f"  {self.title}: fold {fold} after {_clock(time_now - start)}: {line}")

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        """Note an epoch."""
        self.fitting.pop(trial.trial_id, None)
        self.running[trial.trial_id] = trial, result

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say how a trial went."""
        result, fields = trial.last_result, fields_of(trial.config)
        self._ended(trials, trial)
        if "failed" in result:
            say(f"  {self.title}: trial {trial.trial_id} failed: {result['failed']}", style="red")
            return
        best, epochs = result[f"kept_val_{self.metric.name}"], result["epoch"]
        if self.best is None or self.metric.better(best, self.best):
            self.best, self.best_trial = best, trial.trial_id
        n_planned = planned_epochs(fields)
        stop_note = "" if epochs >= n_planned else ", stopped by ASHA"
        place = f"at epoch {result['kept_epoch']} of {epochs}{stop_note}" if n_planned else "without training"
        if n_planned and not result["kept_epoch"]:
            after = result[f"val_{self.metric.name}"]
            place = f"before training, {after:.4f} after {epochs} epochs of it{stop_note}"
        if self.live is None:
            say(
                f"  {self.title}: {self.n_done}/{self.n_trials} after {time.monotonic() - self.began:.0f} s, "
                f"val {self.metric.name} {best:.4f} (best {self.best:.4f}) {place}"
            )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a trial failed; the reason stands in the results."""
        self._ended(trials, trial)
        say(f"  {self.title}: trial {trial.trial_id} failed", style="red")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Leave one line of what the table showed."""
        if self.live is not None:
            self.close()
            best = "" if self.best is None else f", best val {self.metric.name} {self.best:.4f}"
            say(f"  {self.title}: {self.n_done}/{self.n_trials} after {time.monotonic() - self.began:.0f} s{best}")

    def _ended(self, trials: list[Trial], trial: Trial) -> None:
        self.running.pop(trial.trial_id, None)
        self.fitting.pop(trial.trial_id, None)
        self.n_done = sum(other_trial.is_finished() or other_trial is trial for other_trial in trials)
        self.n_done_here += 1

    def __rich__(self) -> Group:
        """The table and the line above it, as they are now."""
        name, seconds = self.metric.name, time.monotonic() - self.began
        best = "none ended yet" if self.best is None else f"best val {name} {self.best:.4f} (trial {self.best_trial})"
        remaining = ""
        if self.n_done_here:
            remaining = f", about {_clock(seconds / self.n_done_here * max(0, self.n_trials - self.n_done))} left"
        heading = f"{self.title}: {self.n_done} of {self.n_trials} trials, {best}, {_clock(seconds)}{remaining}"
        columns = ("trial", "fold", "epoch", f"val {name}", "best", "lr")
        table = Table(*columns, box=SIMPLE_HEAD, padding=0)
        for trial, result in list(self.running.values())[:MOST_ROWS]:
            fields = fields_of(trial.config)
            table.add_row(
                trial.trial_id,
                str(fields["fold"]),
                f"{result['epoch']} of {planned_epochs(fields)}",
                f"{result[f'val_{name}']:.4f}",
                f"{result[f'kept_val_{name}']:.4f}",
                f"{result['lr']:.2g}",
            )
        messages = [(trial, start, line) for trial, start, line in list(self.fitting.values()) if line]
        for trial, start, line in messages[: MOST_ROWS - len(self.running)]:
            fold = fields_of(trial.config)["fold"]
            table.add_row(trial.trial_id, str(fold), f"{line}, {_clock(time.monotonic() - start)}", "", "", "")
        if len(self.running) > MOST_ROWS:
            table.caption = f"and {len(self.running) - MOST_ROWS} more"
        return Group(Text(heading, style="bold"), table)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
