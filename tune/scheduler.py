"""Schedulers that tell the searcher of every trial; ASHA's rungs survive the driver: Ray restores no scheduler."""

from __future__ import annotations

import json
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from data.storage import open_folder, read_whole, write_whole
from tune.trial import is_gone


class ToTheEnd(FIFOScheduler):
    """Every trial runs to its end."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tell of a trial that is new, or of before."""
        super().on_trial_add(tune_controller, trial)
        _added(tune_controller, trial)


class ResumableASHA(ASHAScheduler):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934) with its rungs kept in a file.

    The file is written whenever a trial reaches a rung or is stopped, and read when the first trial is
    added. A trial that was stopped after Ray's last snapshot, and comes back running, is stopped again.
    """

    def __init__(self, state_file: str, **asha: Any) -> None:
        """Make a scheduler.

        Args:
            state_file: path or URI of the JSON file of the rungs.
            asha: arguments of Ray's `ASHAScheduler`.
        """
        super().__init__(**asha)
        self.state_file = state_file
        self.stopped: set[str] = set()
        self.loaded = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Put a trial into the bracket; before the first one, read what an earlier driver had recorded."""
        super().on_trial_add(tune_controller, trial)
        _added(tune_controller, trial)
        if not self.loaded:
            self.loaded = True
            self._load()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Decide whether a trial goes on."""
        if trial.trial_id in self.stopped:
            return TrialScheduler.STOP
        before = self._size()
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        if action == TrialScheduler.STOP or self._size() > before:
            self._save()
        return action

    def _rungs(self) -> list[tuple[int, dict[str, float]]]:
        (bracket,) = self._brackets
        return bracket._rungs

    def _size(self) -> int:
        return sum(len(recorded) for _, recorded in self._rungs())

    def _save(self) -> None:
        state = {"rungs": self._rungs(), "stopped": sorted(self.stopped)}
        filesystem, path = open_folder(self.state_file)
        write_whole(filesystem, path, json.dumps(state).encode())

    def _load(self) -> None:
        filesystem, path = open_folder(self.state_file)
        try:
            state = json.loads(read_whole(filesystem, path))
        except FileNotFoundError:
            return
        self.stopped = set(state["stopped"])
        saved = dict(state["rungs"])
        for milestone, recorded in self._rungs():  # more or others than before where a sweep was extended
            recorded.update(saved.get(milestone, {}))


def _added(tune_controller: Any, trial: Trial) -> None:
    """Tell the searcher; and let Ray restore a trial whose checkpoint was deleted after Ray had noted it down.

    Ray gives up where there is nothing at all; where there is anything, `run_trial` takes the newest whole one.
    """
    tune_controller.search_alg.searcher.trials[trial.trial_id] = trial
    if not trial.is_finished() and is_gone(trial.checkpoint):
        write_whole(trial.checkpoint.filesystem, f"{trial.checkpoint.path}/deleted", b"")
