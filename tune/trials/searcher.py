"""What Ray Tune asks for trials: Optuna's sampler, which proposes no configuration twice, or a list of configurations.

Ray's record of an experiment is several files, written one after the other, and a driver that dies between two of them
leaves a searcher that knows of more trials than there are, or of fewer, or takes one that has ended for one that runs.
So here the trials themselves, of which the scheduler tells (`tune/trials/scheduler.py`), say what is left to do.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.search.optuna import OptunaSearch

from tune.trials.fields import fields_of, not_searched

MOST_REPEATS = 100  # proposals in a row that were tried already, after which one is drawn that was not
MOST_COUNTED = 100_000  # configs of a space that are looked through for it


class Trials(dict[str, Trial]):
    """Trials that there are, by id; a record on a disk holds none of them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Trials, ()

    def leave_room(self, max_concurrent: int | None) -> bool:
        """Whether one more may run."""
        return max_concurrent is None or sum(not trial.is_finished() for trial in self.values()) < max_concurrent


class Generator(SearchGenerator):
    """Ray's, which goes by its searcher alone, and not by a count of its own."""

    def is_finished(self) -> bool:
        """Whether the searcher has said so since this process began."""
        return self._finished

    def restore_from_dir(self, dirpath: str) -> None:
        """Read the record of an earlier driver."""
        super().restore_from_dir(dirpath)
        self._finished = False


class Listed(Searcher):
    """Configs that are given, in their order, each as `not_searched` has them."""

    def __init__(self, runs: Sequence[dict[str, Any]], max_concurrent: int | None) -> None:
        """Keep what is to be run, and how many at once (None: as many as fit)."""
        super().__init__()
        self.runs, self.max_concurrent, self.trials = list(runs), max_concurrent, Trials()

    def suggest(self, trial_id: str) -> dict | str | None:
        """The first one that no trial has; FINISHED where all have one."""
        configs = [fields_of(trial.config) for trial in self.trials.values()]
        remaining_runs = [run for run in self.runs if run not in configs]
        if not remaining_runs:
            return Searcher.FINISHED
        return not_searched(remaining_runs[0]) if self.trials.leave_room(self.max_concurrent) else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the trials tell."""

    def save(self, checkpoint_path: str) -> None:
        """Write a record, which Ray asks for."""
        Path(checkpoint_path).write_bytes(pickle.dumps(None))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the trials tell."""


class DistinctOptuna(OptunaSearch):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over configs that were not tried yet.

    A config gives the same result again, so that trying it twice would tell nothing.
    """

    def __init__(
        self,
        seed: int,
        num_samples: int,
        max_concurrent: int | None = None,
        earlier: Sequence[tuple[dict[str, Any], float | None]] = (),
    ) -> None:
        """Prepare to search.

        Args:
            seed: of the sampler.
            num_samples: trials in all.
            max_concurrent: trials at once; None: as many as fit.
            earlier: searched fields of trials of before, and the best metric of each; None: it has none.
        """
        super().__init__(seed=seed)
        self.num_samples, self.max_concurrent, self.trials = num_samples, max_concurrent, Trials()
        self.behind = False  # than the trials, as far as it knows
        self.lost: list[optuna.Trial] = []  # that were proposed, and are no trials
        self.earlier = list(earlier)
        self.tried: dict[str, float | None] = {_key(params): value for params, value in earlier}

    def restore(self, checkpoint_path: str) -> None:
        """Read the record of an earlier driver, which may be older than that of the trials."""
        super().restore(checkpoint_path)
        self.behind = True

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Take the space over from Ray Tune, which does so once; and tell Optuna of the earlier trials."""
        first = super().set_search_properties(metric, mode, config, **spec)
        if first:
            for params, value in self.earlier:
                self.add_evaluated_point(params, np.nan if value is None else value, error=value is None)
        return first

    def suggest(self, trial_id: str) -> dict | str | None:
        """The next config; FINISHED where there are enough trials, or all were tried."""
        if self.behind:
            self.behind = False
            self._catch_up()
        if len(self.trials) >= self.num_samples:
            return Searcher.FINISHED
        if not self.trials.leave_room(self.max_concurrent):
            return None
        if self.lost:
            self._ot_trials[trial_id] = self.lost.pop(0)
            return dict(self._ot_trials[trial_id].params)
        return self._propose(trial_id)

    def _catch_up(self) -> None:
        """Take note of what the trials have done since the record was written."""
        for trial_id, trial in self.trials.items():
            if trial_id in self._ot_trials and trial.is_finished() and trial_id not in self._completed_trials:
                self._tell_end(trial)
        for trial_id, trial in self.trials.items():
            if trial_id in self._ot_trials:
                continue
            params = {field: trial.config[field] for field in self._space}
            if super().suggest(trial_id) != params:  # as far as it was, the sampler proposes the same once more
                self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
                self._ot_study.enqueue_trial(params)
                super().suggest(trial_id)
            self.tried.setdefault(_key(params), None)
            if trial.is_finished():
                self._tell_end(trial)
        self.lost = [
            self._ot_trials.pop(optuna_id) for optuna_id in list(self._ot_trials) if optuna_id not in self.trials
        ]

    def _tell_end(self, trial: Trial) -> None:
        is_failure = trial.status == Trial.ERROR
        self.on_trial_complete(trial.trial_id, None if is_failure else trial.last_result, is_failure)

    def _propose(self, trial_id: str) -> dict | str | None:
        for _ in range(MOST_REPEATS):
            params = super().suggest(trial_id)
            key = _key(params)
            if key not in self.tried:
                self.tried[key] = None
                return params
            proposal: optuna.Trial = self._ot_trials.pop(trial_id)
            value = self.tried[key]
            self._ot_study.tell(proposal, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        # The sampler sees nothing but what it knows: of a small space any of the others.
        candidates = self._untried()
        if not candidates:
            return Searcher.FINISHED
        params = candidates[np.random.default_rng(len(self.tried)).integers(len(candidates))]
        self.tried[_key(params)] = None
        self._ot_study.enqueue_trial(params)
        return super().suggest(trial_id)

    def _untried(self) -> list[dict[str, Any]]:
        """Configs that were not tried, of a space in which they can be counted."""
        values: dict[str, Sequence[Any]] = {}
        for field, distribution in self._space.items():
            if isinstance(distribution, CategoricalDistribution):
                values[field] = distribution.choices
            elif isinstance(distribution, IntDistribution):
                values[field] = range(distribution.low, distribution.high + 1, distribution.step)
            else:
                return []
        if math.prod(map(len, values.values())) > MOST_COUNTED:
            return []
        every = (dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))
        return [params for params in every if _key(params) not in self.tried]

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """Note an epoch; nothing for a trial that the searcher's record, written before the trial's, does not know."""
        if trial_id in self._ot_trials:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Note what a config has reached."""
        if trial_id not in self._ot_trials:
            return
        if result and self.metric in result:
            self.tried[_key(self._ot_trials[trial_id].params)] = result[self.metric]
        super().on_trial_complete(trial_id, result, error)


def _key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
