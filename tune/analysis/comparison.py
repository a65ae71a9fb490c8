"""Two finished sweeps on the examples that both predicted: what `tune/compare.py` shows, and queues rank by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.registry import open_facts
from tune.analysis.paired import (
    Difference,
    PairedPredictions,
    abs_errors,
    difference,
    fold_scores,
    paired_predictions,
)
from tune.analysis.verdict import Noise, seed_noise, verdict_on
from tune.arguments import On
from tune.errors import RunError
from tune.runs import SweepRun, by_chance, chose_by_validation, compared_members, predictions, refuse_different

_CHOSEN_OTHERWISE = (
    "The epoch or the config of one of the runs was chosen on validation, that of the other one was not: "
    "validation flatters the first. Compare runs that were chosen alike (`keep: last`, no search), or "
    "with --on test to report."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs on their common examples.

    Attributes:
        a: the first run.
        b: the second.
        on: the parts that were compared, test or validation.
        paired: the predictions on the common ids.
        difference: A minus B, with its interval.
        noise: what the seed alone does; None if nothing tells.
        verdict: of B against A: identical (inert), better, worse, within noise or undecided.
        sentence: that explains the verdict.
        warnings: what a reader must know.
    """

    a: SweepRun
    b: SweepRun
    on: On
    paired: PairedPredictions
    difference: Difference
    noise: Noise | None
    verdict: str
    sentence: str
    warnings: list[str]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the difference's 95 % interval, over examples and, where something tells of them, over seeds."""
        return self.difference.with_seeds(0.0 if self.noise is None else self.noise.band)


def compare(a: SweepRun, b: SweepRun, noise: SweepRun | None = None, on: On = "test") -> Comparison:
    """Compare two runs.

    Args:
        a: the first run.
        b: the second, which is judged against the first.
        noise: a run with several seeds that tells what the seed alone does.
        on: compare predictions of the test parts or of the validation parts.

    Raises:
        RunError: different tasks, targets or rows, no common ids, no predictions of the validation parts, or a
            noise run that tells nothing about these.
    """
    refuse_different(a, b)
    tables = {run: [predictions(run, member, on) for member in compared_members(run)] for run in (a, b)}
    paired = paired_predictions(tables[a], tables[b], a.metric)
    sizes = {run: len(run_tables[0]) for run, run_tables in tables.items()}
    warnings = [*_part_warnings(paired, sizes, on), *_noise_warnings(a, b, noise), *_weights_warnings(a, b, on)]
    a_minus_b = difference(paired, a.metric)
    band = _noise(a, b, noise, paired, on)
    verdict, sentence = verdict_on(paired, a.metric, a_minus_b, band, a.words)
    if on == "validation" and len({chose_by_validation(run) for run in (a, b)}) > 1:
        verdict, sentence = "undecided", _CHOSEN_OTHERWISE
    return Comparison(a, b, on, paired, a_minus_b, band, verdict, sentence, warnings)


def _part_warnings(paired: PairedPredictions, sizes: dict[SweepRun, int], on: On) -> list[str]:
    """What a reader must know of the compared parts, given how many ids each run has in them."""
    warnings = []
    words = next(iter(sizes)).words
    if on == "test":
        warnings.append(
            f"These are test {words.examples}: report with this page, and do not choose by it. To choose a "
            "configuration by it is to choose on test data; choose with --on validation."
        )
    surplus = {run.name: n - len(paired.rows) for run, n in sizes.items() if n > len(paired.rows)}
    if surplus:
        folds = sorted(int(fold) for fold in paired.rows["fold"].unique())
        warnings.append(
            f"The runs agree only partly in their {on} parts: {len(paired.rows)} ids of fold(s) {folds} are compared; "
            f"{', '.join(f'{name} has {n} more' for name, n in surplus.items())}."
        )
    return warnings


def _noise_warnings(a: SweepRun, b: SweepRun, noise: SweepRun | None) -> list[str]:
    """What a reader must know of the noise of seeds."""
    warnings = []
    if not _share_seeds(a, b) and any(compared_members(run)[0].name == "ensemble" for run in (a, b)):
        warnings.append("The seed noise is that of one training; an ensemble's own is smaller.")
    if noise is None:
        return warnings
    noise_training = _trained(noise)
    if other_runs := [run.name for run in (a, b) if by_chance(run) and _trained(run) != noise_training]:
        warnings.append(
            f"--noise {noise.name} is of {noise_training}; {' and '.join(other_runs)} trained otherwise, and seeds "
            "may do more or less to that."
        )
    return warnings


def _weights_warnings(a: SweepRun, b: SweepRun, on: On) -> list[str]:
    """Of averages on validation parts: that these chose their weights."""
    if on == "test":
        return []
    return [
        f"The weights of {run.name} were chosen by these validation parts, which flatters it a little."
        for run in (a, b)
        if run.results["options"].get("weights") == "validation"
    ]


def _noise(a: SweepRun, b: SweepRun, noise: SweepRun | None, paired: PairedPredictions, on: On) -> Noise | None:
    """What the seed alone does to the difference of two runs; None where nothing tells."""
    noise_scores = None if noise is None else _noise_scores(noise, a, paired, on)
    if _share_seeds(a, b):
        # Another seed would move an ensemble and its members together: what it leaves of their difference is small.
        return Noise(0.0, "both sides having the same seeds: none")
    scores_a, scores_b = (
        fold_scores(paired.rows, predicted, a.metric).mean(axis=1) if by_chance(run) else np.empty(0)
        for run, predicted in ((a, paired.a), (b, paired.b))
    )
    return seed_noise(scores_a, scores_b, noise_scores)


def _share_seeds(a: SweepRun, b: SweepRun) -> bool:
    """Whether one of two runs is the ensemble of all the seeds that the other is."""
    return _is_ensemble_of(a, b) or _is_ensemble_of(b, a)


def _is_ensemble_of(a: SweepRun, b: SweepRun) -> bool:
    """Whether A is the ensemble of all the seeds that B is."""
    return (a.address, compared_members(a)[0].name) == (b.address, "ensemble") and set(b.members) > {"ensemble"}


def _trained(run: SweepRun) -> str:
    """Model of a run and how it was trained, in words."""
    model = str(run.results["model"]["name"]) if "model" in run.results else "an average"
    facts = open_facts(run.family)
    return model if facts is None else f"{model} {facts.training_note(list(run.configs.values()))}".rstrip()


def _noise_scores(noise: SweepRun, a: SweepRun, paired: PairedPredictions, on: On) -> np.ndarray:
    """Metric by seed of a noise run on the compared ids, as far as it has them; shape (seeds,)."""
    refuse_different(a, noise)
    members = compared_members(noise)
    if len(members) < 2:
        raise RunError(f"--noise {noise.name}: it has one seed, at least two are needed (run_sweep.py --seeds)")
    tables = [predictions(noise, member, on) for member in members]
    common = tables[0].merge(paired.rows[["fold", "id"]], on=["fold", "id"])
    common_pairs = paired_predictions(tables, [common], a.metric)
    missing_folds = sorted(
        {int(fold) for fold in paired.rows["fold"]} - {int(fold) for fold in common_pairs.rows["fold"]}
    )
    if missing_folds:
        raise RunError(f"--noise {noise.name}: it has none of the compared ids of fold(s) {missing_folds}")
    return fold_scores(common_pairs.rows, common_pairs.a, a.metric).mean(axis=1)


def differences(comparison: Comparison) -> pd.DataFrame:
    """One row an id: predictions and absolute errors, means over a run's seeds; the largest difference first.

    Where predictions are no numbers the first of the values that the metric is made of stands in place of the errors.
    """
    paired, table = comparison.paired, comparison.paired.rows.copy()
    if paired.a.ndim == 2:
        table["y_pred_a"], table["y_pred_b"] = paired.a.mean(axis=0), paired.b.mean(axis=0)
    table["abs_error_a"], table["abs_error_b"] = abs_errors(paired)
    table["difference"] = table["abs_error_a"] - table["abs_error_b"]
    return table.sort_values("difference", key=np.abs, ascending=False, kind="stable", ignore_index=True)
