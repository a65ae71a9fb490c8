"""How long a search takes, simulated from what its trials cost: no clock and no Ray, the same for the same seed.

The trials of a search share a number of slots; ASHA (`tune/trials/scheduler.py`) stops some at its rungs. How good
a trial will be is not known, so each gets a random quality, and many simulations give a mean and a range.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.search.optuna import OptunaSearch

from tune.records.options import Options
from tune.spaces.space import SearchSpace

RANDOM_SUGGESTIONS = 10  # that Optuna's sampler makes before it looks at results; these are known beforehand


@dataclass(frozen=True)
class TrialCost:
    """What one trial takes, in seconds.

    Attributes:
        epochs: of its config.
        first: from the moment it gets a slot until epoch 0, the evaluation before training, is reported.
        epoch: each epoch after it, its report included.
        last: after the last epoch: the prediction of the test part.
    """

    epochs: int
    first: float
    epoch: float
    last: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole trial, if nothing stops it."""
        return self.first + self.epochs * self.epoch + self.last


@dataclass(frozen=True)
class Simulated:
    """How a search, or the training of what was chosen, went.

    Attributes:
        seconds: from its beginning to the end of its last trial.
        busy: seconds that slots were taken, all together.
        epochs: that each trial did.
    """

    seconds: float
    busy: float
    epochs: list[int]


class Rungs:
    """ASHA's rule as Ray's `ASHAScheduler` has it; greater is better."""

    def __init__(self, grace_epochs: int, reduction_factor: float, most_epochs: int) -> None:
        """Place the rungs."""
        self.keep = 1 / reduction_factor
        n_rungs = int(math.log(most_epochs / grace_epochs) / math.log(reduction_factor) + 1)
        # A trial reports whole epochs and meets a rung at the first one not below it.
        milestones = [math.ceil(grace_epochs * reduction_factor**k) for k in range(n_rungs)]
        self.recorded: dict[int, list[float]] = {milestone: [] for milestone in milestones}

    def goes_on(self, epoch: int, value: float) -> bool:
        """Record a trial's value at a rung; whether it is among the best of those that came before it."""
        rung = self.recorded[epoch]
        survives = not rung or value >= np.percentile(rung, (1 - self.keep) * 100)
        rung.append(value)
        return bool(survives)


def simulate(
    trials: Sequence[TrialCost],
    *,
    slots: int,
    startup: float = 0.0,
    rungs: Rungs | None = None,
    qualities: Sequence[float] = (),
) -> Simulated:
    """Run trials in their order, each in the slot that is free first.

    Args:
        trials: what each costs.
        slots: trials at once.
        startup: seconds until a slot takes its first trial.
        rungs: of ASHA; None lets every trial finish.
        qualities: of each trial, needed with rungs.
    """
    milestones = list(rungs.recorded) if rungs else []
    waiting = iter(range(len(trials)))
    events: list[tuple[float, int, int]] = []  # when a trial has done so many epochs
    epochs = [0] * len(trials)
    busy = 0.0

    def push(now: float, k: int, done: int) -> None:
        """Let a trial train up to its next rung, or its end."""
        goal = min((m for m in milestones if done < m < trials[k].epochs), default=trials[k].epochs)
        heapq.heappush(events, (now + (goal - done) * trials[k].epoch, k, goal))

    def start(now: float) -> None:
        k = next(waiting, None)
        if k is not None:
            push(now + trials[k].first, k, 0)

    for _ in range(slots):
        start(startup)
    n_slots = len(events)
    now = 0.0
    while events:
        now, k, done = heapq.heappop(events)
        epochs[k] = done
        survives = rungs is None or done not in rungs.recorded or rungs.goes_on(done, qualities[k])
        if survives and done < trials[k].epochs:
            push(now, k, done)
            continue
        busy += trials[k].first + done * trials[k].epoch + trials[k].last
        now += trials[k].last
        start(now)
    return Simulated(now, busy + n_slots * startup, epochs)


def known_configs(space: SearchSpace, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """The configs a search will begin with: the sampler draws the first ones at random, with the sweep's seed."""
    logging.getLogger("optuna").setLevel(logging.CRITICAL)
    searcher = OptunaSearch(seed=seed)
    searcher.set_search_properties("any", "min", space.ray_space())
    return [dict(searcher.suggest(str(k))) for k in range(min(num_samples, RANDOM_SUGGESTIONS))]


def random_config(space: SearchSpace, rng: np.random.RandomState) -> dict[str, Any]:
    """A config drawn from the ranges of a space."""
    ranges = space.ray_space()
    return {
        field: value.sample(random_state=rng) if field in space.searched else value for field, value in ranges.items()
    }


@dataclass(frozen=True, eq=False)
class Phase:
    """Searches, or trainings of what they chose: one entry a simulation, float64, shape (n_simulations,).

    Attributes:
        seconds: from beginning to end.
        busy: seconds that slots were taken, all together.
    """

    seconds: np.ndarray
    busy: np.ndarray


@dataclass(frozen=True, eq=False)
class Forecast:
    """Simulated sweeps.

    Attributes:
        search: all searches, one after the other.
        training: the reference and what was chosen, on every fold and with every seed.
        unstopped: both, were no trial stopped and always the costliest config chosen.
    """

    search: Phase
    training: Phase
    unstopped: Phase


def forecast(
    options: Options,
    space: SearchSpace,
    cost: Callable[[dict[str, Any], int, bool], TrialCost],
    *,
    baseline: dict[str, Any],
    slots: int,
    startup: float = 0.0,
    run_end: float = 0.0,
    n_simulations: int = 50,
) -> Forecast:
    """Simulate sweeps.

    Args:
        options: of the sweep.
        space: searched, as its task's kind wants it.
        cost: of a trial: by `model` and the fields of its config, its fold, and whether it predicts the test part.
        baseline: what every result is compared with: `model` and the fields of its config.
        slots: trials at once.
        startup: seconds until new processes take their first trials, at the start of each run of trials.
        run_end: seconds that a run takes after its last trial.
        n_simulations: how many.
    """
    model, most_epochs = {"model": space.model}, space.most("epochs")
    config = {**model, **space.config(**space.parameters).model_dump()} if not space.searched else {}
    first_configs = known_configs(space, options.num_samples, options.seed) if space.searched else []
    simulations = []

    def run(trials: list[TrialCost], rungs: Rungs | None = None, qualities: Sequence[float] = ()) -> np.ndarray:
        simulated = simulate(trials, slots=slots, startup=startup, rungs=rungs, qualities=qualities)
        return np.array([simulated.seconds + run_end, simulated.busy])

    for number in range(n_simulations):
        rng = np.random.RandomState(number)
        search, unstopped = np.zeros(2), np.zeros(2)
        best, costliest = {}, {}
        for fold in options.search_folds if space.searched else []:
            field_sets = first_configs + [
                random_config(space, rng) for _ in range(options.num_samples - len(first_configs))
            ]
            configs = [{**model, **fields} for fields in field_sets]
            trials = [cost(config, fold, False) for config in configs]
            qualities = rng.random_sample(len(trials))
            rungs = Rungs(min(space.grace_epochs, most_epochs), space.reduction_factor, most_epochs)
            search += run(trials, rungs, qualities.tolist())
            unstopped += run(trials)
            best[fold] = configs[int(np.argmax(qualities))]
            costliest[fold] = configs[int(np.argmax([trial.seconds for trial in trials]))]
        last = []
        for winners in (best, costliest):
            trainings = [(fold, baseline) for fold in options.folds]
            if space.trains:
                first = next(iter(winners.values()), config)
                trainings += [(fold, winners.get(fold, first)) for _ in range(options.seeds) for fold in options.folds]
            last.append(run([cost(fields, fold, True) for fold, fields in trainings]))
        simulations.append([search, last[0], unstopped + last[1]])
    phases = np.array(simulations)  # n_simulations, phase, seconds or busy
    return Forecast(*(Phase(phases[:, k, 0], phases[:, k, 1]) for k in range(3)))
