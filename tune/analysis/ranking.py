"""Runs of the same rows, and other people's models on the same ids, ranked: what `tune/leaderboard.py` shows.

Everyone is compared with the best alone, on the same resamples of groups (`models/bootstrap.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from data.fold import DEFAULT_SPLIT
from data.metrics import Metric, scores_of
from data.task_words import TaskWords, task_words
from models.bootstrap import MIN_GROUPS, RESAMPLES, group_numbers, interval, resampled_scores
from tune.analysis.entries import Entry, run_entries
from tune.analysis.paired import Difference, fold_scores, paired_predictions
from tune.analysis.peers import peer_tables
from tune.errors import RunError
from tune.runs import SweepRun, split_of

# Resamples times groups: some ten seconds for ten models of 130,000 examples.
_BUDGET, _BUDGET_OF_AREAS = 200_000_000, 50_000_000


@dataclass(frozen=True)
class SeedSpread:
    """How much a metric differs from seed to seed, learnt from all runs of the ranked folds that have several.

    Attributes:
        std: standard deviation of one training.
        freedom: degrees of freedom it was estimated with.
    """

    std: float
    freedom: int

    def band(self, *n_seeds: int) -> float:
        """What 95 % of differences between two equally good models are below, either way.

            band = t(0.975, freedom) std sqrt(1 / n_A + 1 / n_B)

        Args:
            n_seeds: how many seeds each of the two is the mean of; 0 of one that trains nothing adds no term.
        """
        return float(t.ppf(0.975, self.freedom) * self.std * np.sqrt(sum(1 / n for n in n_seeds if n)))


@dataclass(frozen=True, eq=False)
class Place:
    """An entry and how it stands to the best.

    Attributes:
        entry: the entry.
        scores: mean over folds of the task's scores; the largest error is the largest of all.
        by_fold: the metric of each fold.
        rank: 1 for the best and for all that cannot be told from it; None of an entry that lacks ids.
        tied: with others, for the difference to the best is noise.
        difference: to the best, positive where this one is worse; None of the best itself, or without common ids.
        n_common: ids that the difference is over.
    """

    entry: Entry
    scores: dict[str, float]
    by_fold: dict[int, float]
    rank: int | None
    tied: bool
    difference: Difference | None
    n_common: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """All entries of the same task, target, rows and kind of folds, best first; those that lack ids last.

    Attributes:
        task: facts of the task.
        data: of the rows: description, sha256.
        metric: that decides.
        places: of the entries.
        spread: what seeds do; None where no run has several.
        n_resamples: of the intervals.
        runs: that are ranked.
    """

    task: dict[str, Any]
    data: dict[str, Any]
    metric: Metric
    places: list[Place]
    spread: SeedSpread | None
    n_resamples: int
    runs: list[SweepRun]

    @property
    def words(self) -> TaskWords:
        """What the task calls its examples and their groups."""
        return task_words(self.task)


def rankings(runs: Sequence[SweepRun], peers: dict[str, pd.DataFrame]) -> list[Ranking]:
    """Rank runs and peers, each with those of its own task, target and rows.

    Args:
        runs: of any tasks.
        peers: predictions by file, as `tune.analysis.peers.read_peers` gives them.

    Raises:
        RunError: a peer lacks some ids, labels differ, or a file of peers has none of any task's ids.
    """
    alike: dict[tuple[str, ...], list[SweepRun]] = {}
    for run in runs:
        key = (run.task["name"], run.task["target"], run.task["kind"], run.data_sha256, split_of(run))
        alike.setdefault(key, []).append(run)
    used_files: set[str] = set()
    results = []
    for same_rows in alike.values():
        entries = run_entries(same_rows)
        longest = max((entry.table for entry in entries), key=len)
        rows = longest[[name for name in ("fold", "id", "group", "y_true") if name in longest]]
        # Peers were trained on the task's own folds: what another split leaves out, they have seen.
        task_peers = peers if split_of(same_rows[0]) == DEFAULT_SPLIT else {}
        for file, table in task_peers.items():
            tables_of_peers = peer_tables(table, rows, file)
            used_files |= {file} if tables_of_peers else set()
            flags = ["trained on the whole task"] if any("subset" in entry.flags for entry in entries) else []
            entries += [
                Entry(name, "peer", predicted, "", 1, flags, None) for name, predicted in tables_of_peers.items()
            ]
        results.append(rank(entries, same_rows))
    if unused_files := [file for file in peers if file not in used_files]:
        raise RunError(f"--peers {unused_files[0]}: it has none of the test ids of these runs, so of which task is it?")
    return sorted(results, key=lambda ranking: (ranking.task["name"], -len(ranking.places[0].entry.table)))


def rank(entries: Sequence[Entry], runs: list[SweepRun]) -> Ranking:
    """Rank entries of the same task, target and rows."""
    metric = runs[0].metric
    sign = 1.0 if metric.mode == "min" else -1.0
    most = max(len(entry.table) for entry in entries)
    whole = [entry for entry in entries if len(entry.table) == most]
    folds = set(whole[0].table["fold"])
    whole = [entry for entry in whole if set(entry.table["fold"]) == folds]
    paired = paired_predictions([entry.table for entry in whole], [], metric)
    values = fold_scores(paired.rows, paired.a, metric)
    order = np.argsort(sign * values.mean(axis=1), kind="stable").tolist()
    first = order[0]
    best = whole[first]
    n_groups = int(group_numbers(paired.rows).max()) + 1
    n_resamples = resamples_for(n_groups, metric)
    resampled = resampled_scores(paired.rows, list(paired.a[:, None]), metric, n_resamples)
    # Each run once, whichever of its members are ranked; the mean over fewer folds is spread otherwise.
    by_run = {run.address: seed_scores(run) for run in runs if set(run.folds) == folds}
    spread = pooled_spread(list(by_run.values()))
    names = np.unique(paired.rows["fold"]).tolist()
    places = []
    for position, k in enumerate(order, start=1):
        entry, behind, is_tied = whole[k], None, False
        if k != first:
            value = sign * float(values[k].mean() - values[first].mean())
            low, high = interval(sign * (resampled[:, k] - resampled[:, first]))
            behind = Difference(value, low, high, None, n_groups)
            is_tied = is_noise(behind, spread, entry.n_draws, best.n_draws)
        by_fold = dict(zip(names, values[k].tolist(), strict=True))
        rank_of_entry = 1 if is_tied else position
        places.append(Place(entry, mean_scores(entry.table, metric), by_fold, rank_of_entry, is_tied, behind, most))
    if any(place.tied for place in places):
        places[0] = Place(best, places[0].scores, places[0].by_fold, 1, True, None, most)
    for entry in entries:
        if entry not in whole:
            places.append(_place_apart(entry, best, metric))
    return Ranking(runs[0].task, runs[0].results["data"], metric, places, spread, n_resamples, runs)


def is_noise(difference: Difference, spread: SeedSpread | None, *n_seeds: int) -> bool:
    """Whether a difference to the best says nothing: its interval over examples and seeds together holds 0.

    Where no run has several seeds, nothing is known of them, and examples alone decide.
    """
    low, high = difference.with_seeds(0.0 if spread is None else spread.band(*n_seeds))
    return difference.n_groups < MIN_GROUPS or low <= 0 <= high


def resamples_for(n_groups: int, metric: Metric) -> int:
    """How many resamples are worth their time: 10,000, fewer where there are many groups."""
    return int(np.clip((_BUDGET_OF_AREAS if metric.of_all else _BUDGET) // n_groups, 500, RESAMPLES))


def mean_scores(table: pd.DataFrame, metric: Metric) -> dict[str, float]:
    """Means over folds of what Matbench scores, and the largest error of all."""
    by_fold = [scores_of(metric, fold_rows) for _, fold_rows in table.groupby("fold")]
    means = {name: float(np.mean([scores[name] for scores in by_fold])) for name in by_fold[0]}
    return means | {name: max(scores[name] for scores in by_fold) for name in ("max_error",) if name in means}


def seed_scores(run: SweepRun) -> np.ndarray:
    """Metric of each seed of a run, the mean over its folds, shape (seeds,)."""
    return np.array([entry["mean"][run.metric.name] for entry in run.results["seeds"]], dtype=float)


def pooled_spread(by_run: Sequence[np.ndarray]) -> SeedSpread | None:
    """The pooled standard deviation sqrt(sum (n_i - 1) s_i^2 / sum (n_i - 1)); None where no run has two seeds.

    Args:
        by_run: metric of each seed of a run, each the mean over folds, shape (n_i,).
    """
    several = [scores for scores in by_run if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in several)
    if not freedom:
        return None
    squares = sum(float(((scores - scores.mean()) ** 2).sum()) for scores in several)
    return SeedSpread(float(np.sqrt(squares / freedom)), freedom)


def _place_apart(entry: Entry, best: Entry, metric: Metric) -> Place:
    """The place of an entry that lacks ids: no rank, and the difference to the best on what both have."""
    alone = paired_predictions([entry.table], [], metric)
    fold_values = fold_scores(alone.rows, alone.a, metric)[0]
    by_fold = dict(zip(np.unique(entry.table["fold"]).tolist(), fold_values.tolist(), strict=True))
    scores = mean_scores(entry.table, metric)
    try:
        paired = paired_predictions([entry.table], [best.table], metric)
    except RunError:
        return Place(entry, scores, by_fold, None, False, None, 0)
    sign = 1.0 if metric.mode == "min" else -1.0
    n_groups = int(group_numbers(paired.rows).max()) + 1
    resampled = resampled_scores(paired.rows, [paired.a, paired.b], metric, resamples_for(n_groups, metric))
    low, high = interval(sign * (resampled[:, 0] - resampled[:, 1]))
    values = [float(fold_scores(paired.rows, predicted, metric).mean()) for predicted in (paired.a, paired.b)]
    behind = Difference(sign * (values[0] - values[1]), low, high, None, n_groups)
    return Place(entry, scores, by_fold, None, False, behind, len(paired.rows))
