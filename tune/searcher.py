"""Optuna's sampler for Ray Tune, which proposes no configuration twice and can begin with trials of before."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

MOST_REPEATS = 100  # proposals in a row that were tried already, after which one is drawn that was not
MOST_COUNTED = 100_000  # configs of a space that are looked through for it


class DistinctOptuna(OptunaSearch):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over configs that were not tried yet.

    A config gives the same result again, so that trying it twice would tell nothing.
    """

    def __init__(self, seed: int, earlier: Sequence[tuple[dict[str, Any], float | None]] = ()) -> None:
        """Prepare to search.

        Args:
            seed: of the sampler.
            earlier: searched fields of trials of before, and the best metric of each; None: it has none.
        """
        super().__init__(seed=seed)
        self.earlier = list(earlier)
        self.tried: dict[str, float | None] = {_key(params): value for params, value in earlier}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Take the space over from Ray Tune, which does so once; and tell Optuna of the earlier trials."""
        first = super().set_search_properties(metric, mode, config, **spec)
        if first:
            for params, value in self.earlier:
                self.add_evaluated_point(params, np.nan if value is None else value, error=value is None)
        return first

    def suggest(self, trial_id: str) -> dict | str | None:
        """The next config; FINISHED where all were tried."""
        for _ in range(MOST_REPEATS):
            params = super().suggest(trial_id)
            key = _key(params)
            if key not in self.tried:
                self.tried[key] = None
                return params
            proposed: optuna.Trial = self._ot_trials.pop(trial_id)
            value = self.tried[key]
            self._ot_study.tell(proposed, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        # The sampler sees nothing but what it knows: of a small space any of the others.
        left = self._untried()
        if not left:
            return Searcher.FINISHED
        params = left[np.random.default_rng(len(self.tried)).integers(len(left))]
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
        every = (dict(zip(values, one, strict=True)) for one in itertools.product(*values.values()))
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
