"""Schedulers that tell the searcher of every trial; ASHA's rungs survive the driver: Ray restores no scheduler."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from data.machine.console import say
from data.stores.storage import read_whole, write_whole
from tune.trials.trial import is_gone, saved_state

FILE = "rungs.json"  # in the experiment's folder, so that who deletes that deletes what its trials have set
Reported = Sequence[tuple[int, float]]  # epochs with the metric that Ray was told of each: that of the kept epoch


class ToTheEnd(FIFOScheduler):
    """Every trial runs to its end.

    Attributes:
        again: ids of trials that have ended, and go on when they are added.
    """

    def __init__(self) -> None:
        """Make a scheduler."""
        super().__init__()
        self.again: Collection[str] = ()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tell of a trial that is new, or of before."""
        super().on_trial_add(tune_controller, trial)
        _added(tune_controller, trial, self.again)


class ResumableASHA(ASHAScheduler):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934) with its rungs kept in a file.

    The file is written whenever a trial reaches a rung or is stopped, and read when the first trial is added. Only
    trials that are added stand in the rungs, beside those of an earlier batch; where the file is damaged, what they
    have reported tells. A trial that was stopped after Ray's last snapshot, and comes back running, is stopped again.

    Attributes:
        again: ids of trials that have ended, and go on when they are added.
    """

    def __init__(self, earlier: Mapping[str, Reported], **asha: Any) -> None:
        """Make a scheduler.

        Args:
            earlier: by id, what trials of this search that are no part of the experiment have reported.
            asha: arguments of Ray's `ASHAScheduler`.
        """
        super().__init__(**asha)
        self.again: Collection[str] = ()
        self.earlier = earlier
        self.stopped: dict[str, int] = {}  # the epoch after which a trial was
        self.saved: list[tuple[int, dict[str, float]]] | None = None  # rungs of an earlier driver, once read
        self.loaded = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Put a trial into the bracket, and into the rungs it has reached under an earlier driver."""
        super().on_trial_add(tune_controller, trial)
        _added(tune_controller, trial, self.again)
        if not self.loaded:
            self.loaded = True
            self._load(trial)
            for trial_id, history in self.earlier.items():
                self._enter(trial_id, history)
        if self.saved is not None:
            values_by_rung = dict(self.saved)
            for milestone, rung in self._rungs():
                if trial.trial_id in values_by_rung.get(milestone, {}):
                    rung[trial.trial_id] = values_by_rung[milestone][trial.trial_id]
        elif trial.checkpoint and (state := saved_state(trial.checkpoint)):
            self._enter(trial.trial_id, kept_values(trial.config, state["history"], self._mode))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Decide whether a trial goes on."""
        if result[self._time_attr] >= self.stopped.get(trial.trial_id, math.inf):
            return TrialScheduler.STOP
        before = self._size()
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self.stopped[trial.trial_id] = result[self._time_attr]
        if action == TrialScheduler.STOP or self._size() > before:
            self._save(trial)
        return action

    def _rungs(self) -> list[tuple[int, dict[str, float]]]:
        (bracket,) = self._brackets
        return bracket._rungs

    def _size(self) -> int:
        return sum(len(rung) for _, rung in self._rungs())

    def _enter(self, trial_id: str, history: Reported) -> None:
        """Put a trial into all rungs it has reached."""
        for milestone, rung in self._rungs():
            values = [value for epoch, value in history if epoch >= milestone]
            if values:
                rung[trial_id] = self._metric_op * values[0]

    def _save(self, trial: Trial) -> None:
        state = {"rungs": self._rungs(), "stopped": self.stopped}
        write_whole(trial.storage.storage_filesystem, _file(trial), json.dumps(state).encode())

    def _load(self, trial: Trial) -> None:
        """Read what an earlier driver has written, unless there is nothing that can be read."""
        try:
            state = json.loads(read_whole(trial.storage.storage_filesystem, _file(trial)))
            rungs = [(milestone, dict(rung)) for milestone, rung in state["rungs"]]
            self.stopped = dict(state["stopped"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            say(f"{_file(trial)} is damaged: ASHA's rungs are made again from what the trials have reported")
            return
        self.saved = rungs


def kept_values(config: Mapping[str, Any], history: Sequence[Mapping[str, Any]], mode: str) -> Reported:
    """The metric that Ray was told after each epoch of a history: that of the epoch kept by then."""
    values = [epoch["val_metric"] for epoch in history]
    if config.get("keep") != "last":
        values = list(accumulate(values, min if mode == "min" else max))
    return [(epoch["epoch"], value) for epoch, value in zip(history, values, strict=True)]


def _file(trial: Trial) -> str:
    return f"{trial.storage.experiment_fs_path}/{FILE}"


def _added(tune_controller: Any, trial: Trial, again: Collection[str]) -> None:
    """Tell the searcher, and give a trial that goes on all its restarts again: what had used them up may be over.

    And let Ray restore one whose checkpoint was deleted after Ray had noted it down. Ray gives up where there is
    nothing at all; where there is anything, `run_trial` takes the newest whole one.
    """
    trials = tune_controller.search_alg.searcher.trials
    first_time, trials[trial.trial_id] = trial.trial_id not in trials, trial  # Ray adds one that is restarted, too
    if trial.trial_id in again:
        trial.set_status(Trial.PENDING)
        tune_controller.get_live_trials().add(trial)  # where Ray keeps those that have not ended
    if trial.is_finished():
        return
    if first_time:
        trial.run_metadata.num_failures = 0
    if is_gone(trial.checkpoint):
        write_whole(trial.checkpoint.filesystem, f"{trial.checkpoint.path}/deleted", b"")
