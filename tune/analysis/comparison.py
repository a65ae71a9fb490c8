"""Two finished sweeps on the crystals that both predicted: what `tune/compare.py` shows, and queues rank by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tune.analysis.paired import Difference, Pair, abs_errors, difference, fold_scores, pair_up
from tune.analysis.verdict import Noise, judge, seed_noise
from tune.arguments import On
from tune.errors import RunError
from tune.runs import SweepRun, by_chance, chose_by_validation, judged, predictions, refuse_different


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs on their common crystals.

    Attributes:
        a: the first run.
        b: the second.
        on: the parts that were compared, test or validation.
        pair: the predictions on the common ids.
        difference: A minus B, with its interval.
        noise: what the seed alone does; None if nothing tells.
        verdict: of B against A: identical (inert), better, worse, within noise or undecided.
        sentence: that explains the verdict.
        warnings: what a reader must know.
    """

    a: SweepRun
    b: SweepRun
    on: On
    pair: Pair
    difference: Difference
    noise: Noise | None
    verdict: str
    sentence: str
    warnings: list[str]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the difference's 95 % interval, over crystals and, where something tells of them, over seeds."""
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
    tables = {run: [predictions(run, member, on) for member in judged(run)] for run in (a, b)}
    pair = pair_up(tables[a], tables[b])
    warnings = []
    if on == "test":
        warnings.append(
            "These are test crystals: report with this page, and do not choose by it. To choose a configuration by "
            "it is to choose on test data; choose with --on validation."
        )
    lacking = [(run, len(tables[run][0]) - len(pair.rows)) for run in (a, b)]
    if any(n for _, n in lacking):
        told = ", ".join(f"{run.name} has {n} more" for run, n in lacking if n)
        folds = sorted(int(fold) for fold in pair.rows["fold"].unique())
        warnings.append(
            f"The runs agree only partly in their {on} parts: {len(pair.rows)} ids of fold(s) {folds} are compared; "
            f"{told}."
        )
    own_seeds = _is_ensemble_of(a, b) or _is_ensemble_of(b, a)
    if not own_seeds and any(judged(run)[0].name == "ensemble" for run in (a, b)):
        warnings.append("The seed noise is that of one training; an ensemble's own is smaller.")
    other = None if noise is None else _noise_scores(noise, a, pair, on)
    odd = [run.name for run in (a, b) if noise is not None and by_chance(run) and _trained(run) != _trained(noise)]
    if noise is not None and odd:
        warnings.append(
            f"--noise {noise.name} is of {_trained(noise)}; {' and '.join(odd)} trained otherwise, and seeds may do "
            "more or less to that."
        )
    if on == "validation":
        warnings += [
            f"The weights of {run.name} were chosen by these validation parts, which flatters it a little."
            for run in (a, b)
            if run.results["options"].get("weights") == "validation"
        ]
    found = difference(pair, a.metric)
    of_a, of_b = (
        fold_scores(pair.rows, predicted, a.metric).mean(axis=1) if by_chance(run) else np.empty(0)
        for run, predicted in ((a, pair.a), (b, pair.b))
    )
    # Another seed would move an ensemble and its members together: what it leaves of their difference is small.
    band = Noise(0.0, "both sides having the same seeds: none") if own_seeds else seed_noise(of_a, of_b, other)
    verdict, sentence = judge(pair, a.metric, found, band)
    if on == "validation" and len({chose_by_validation(run) for run in (a, b)}) > 1:
        verdict, sentence = (
            "undecided",
            (
                "The epoch or the config of one of the runs was chosen on validation, that of the other one was not: "
                "validation flatters the first. Compare runs that were chosen alike (`keep: last`, no search), or "
                "with --on test to report."
            ),
        )
    return Comparison(a, b, on, pair, found, band, verdict, sentence, warnings)


def _is_ensemble_of(a: SweepRun, b: SweepRun) -> bool:
    """Whether A is the ensemble of all the seeds that B is."""
    return (a.address, judged(a)[0].name) == (b.address, "ensemble") and set(b.members) > {"ensemble"}


def _trained(run: SweepRun) -> str:
    """Model and freeze depth of a run, in words."""
    depths = sorted({str(config["freeze_depth"]) for config in run.configs.values() if "freeze_depth" in config})
    model = run.results["model"]["name"] if "model" in run.results else "an average"
    return f"{model} with freeze depth {', '.join(depths)}" if depths else str(model)


def _noise_scores(noise: SweepRun, a: SweepRun, pair: Pair, on: On) -> np.ndarray:
    """Metric by seed of a noise run on the compared ids, as far as it has them; shape (seeds,)."""
    refuse_different(a, noise)
    members = judged(noise)
    if len(members) < 2:
        raise RunError(f"--noise {noise.name}: it has one seed, at least two are needed (run_sweep.py --seeds)")
    own = pair_up([predictions(noise, member, on) for member in members], [pair.rows.assign(y_pred=0.0)])
    lacking = sorted({int(fold) for fold in pair.rows["fold"]} - {int(fold) for fold in own.rows["fold"]})
    if lacking:
        raise RunError(f"--noise {noise.name}: it has none of the compared ids of fold(s) {lacking}")
    return fold_scores(own.rows, own.a, a.metric).mean(axis=1)


def differences(comparison: Comparison) -> pd.DataFrame:
    """One row an id: predictions and absolute errors, means over a run's seeds; the largest difference first."""
    pair = comparison.pair
    table = pair.rows.assign(y_pred_a=pair.a.mean(axis=0), y_pred_b=pair.b.mean(axis=0))
    table["abs_error_a"], table["abs_error_b"] = abs_errors(pair)
    table["difference"] = table["abs_error_a"] - table["abs_error_b"]
    return table.sort_values("difference", key=np.abs, ascending=False, kind="stable", ignore_index=True)
