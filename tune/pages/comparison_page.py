"""The comparison of two runs for people: compare.md, differences.csv and curves.png. Called by `tune/compare.py`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from data.stores.storage import open_folder, write_whole
from models.bootstrap import RESAMPLES
from tune.analysis.comparison import Comparison, differences
from tune.analysis.paired import fold_scores
from tune.runs import SweepRun, judged

SHOWN = 10  # ids in the report
COLOURS = {"A": "#0072B2", "B": "#D55E00"}  # blue and vermillion of Okabe and Ito: told apart by colour-blind people
# Options that may change a result.
_PROTOCOL = ("search_folds", "num_samples", "seed", "every_atom", "tta", "untrusted")


def config_differences(a: SweepRun, b: SweepRun) -> list[tuple[str, str, str, str]]:
    """Every field that differs: its name, the folds (`all` if it is the same in all), its value in A and in B."""
    lines = []
    folds = [fold for fold in a.configs if fold in b.configs]
    fields = dict.fromkeys(field for run in (a, b) for fold in folds for field in run.configs[fold])
    fields.pop("seed", None)  # each training has its own, listed below
    for field in fields:
        by_value: dict[tuple[str, str], list[int]] = {}
        for fold in folds:
            values = _shown(a.configs[fold].get(field)), _shown(b.configs[fold].get(field))
            if values[0] != values[1]:
                by_value.setdefault(values, []).append(fold)
        for values, where in by_value.items():
            lines.append((field, "all" if len(where) == len(folds) else ", ".join(map(str, where)), *values))
    spaces = [run.results["options"].get("space", {}) for run in (a, b)]  # an average has none
    for what, value_a, value_b in (
        ("model", *(space.get("model") for space in spaces)),
        ("--quantity", a.task.get("quantity"), b.task.get("quantity")),
        ("trained", _judged_by(a), _judged_by(b)),
        *(
            (f"--{name.replace('_', '-')}", *(run.results["options"][name] for run in (a, b)))
            for name in _PROTOCOL
            if all(name in run.results["options"] for run in (a, b))
        ),
        ("code", *(run.results["record"].get("git_commit") for run in (a, b))),
    ):
        if value_a != value_b:
            lines.append((what, "all", _shown(value_a), _shown(value_b)))
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def report(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    a, b, pair, found = comparison.a, comparison.b, comparison.pair, comparison.difference
    task, name = a.task, a.metric.name.upper()
    unit = f" ({task['unit']})" if task.get("unit") and a.metric.name == "mae" else ""
    by_fold = [fold_scores(pair.rows, predicted, a.metric).mean(axis=0) for predicted in (pair.a, pair.b)]
    means = [scores.mean() for scores in by_fold]
    band = "not known" if comparison.noise is None else f"+- {comparison.noise.band:.5f}"
    p_value = "" if found.p_value is None else f"{found.p_value:.2g}"
    about = (
        f"**{task['name']}**, target `{task['target']}`{unit}, {comparison.on} parts: {len(pair.rows)} ids in common, "
        f"{found.n_compositions} compositions."
    )
    numbers = (f"{means[0]:.5f}", f"{means[1]:.5f}", f"{found.value:+.5f}", f"{found.low:+.5f} to {found.high:+.5f}")
    together = "not known"
    if comparison.noise is not None:
        together = "{:+.5f} to {:+.5f}".format(*comparison.interval)
    explained = (
        f"Each is the mean over folds of the mean over seeds; A: {_judged_by(a)}; B: {_judged_by(b)}. The interval "
        f"comes from {RESAMPLES:,} resamples of compositions"
        + (", p from the mean difference of each composition" if p_value else "")
        + (f"; the noise from {comparison.noise.source}." if comparison.noise else ".")
    )
    lines = [
        f"# {a.name} (A) against {b.name} (B)",
        "",
        about,
        "",
        *(f"- {warning}" for warning in comparison.warnings),
        *([""] if comparison.warnings else []),
        f"## B is: {comparison.verdict}" if comparison.verdict in ("better", "worse") else f"## {comparison.verdict}",
        "",
        comparison.sentence,
        "",
        f"| {name}{unit} of A | of B | A - B | 95 % interval over crystals | noise of seeds | both | p (Wilcoxon) |",
        "|---|---|---|---|---|---|---|",
        f"| {' | '.join(numbers)} | {band} | {together} | {p_value or 'not for ' + name} |",
        "",
        explained,
        "",
        f"| {name} by fold | A | B | A - B |",
        "|---|---|---|---|",
        *(
            f"| fold {fold} | {one:.5f} | {two:.5f} | {one - two:+.5f} |"
            for fold, one, two in zip(np.unique(pair.rows["fold"]), *by_fold, strict=True)
        ),
        "",
        "## What differs between the runs",
        "",
    ]
    fields = config_differences(a, b)
    for run in (a, b):
        if judged(run)[0].name == "reference":
            lines += [f"{run.name} trains nothing ({run.results['reference']['title']}).", ""]
    lines += ["| field | folds | A | B |", "|---|---|---|---|"] if fields else ["No field of the configurations."]
    lines += [f"| {' | '.join(field)} |" for field in fields]
    lines += [
        "",
        f"## The {min(SHOWN, len(pair.rows))} ids that differ most",
        "",
        "Predictions and errors are means over a run's seeds; all ids are in differences.csv.",
        "",
        "| id | fold | composition | true | A | B | error of A | error of B | A - B |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    columns = ("y_true", "y_pred_a", "y_pred_b", "abs_error_a", "abs_error_b")
    for row in differences(comparison).head(SHOWN).to_dict("records"):
        told = " | ".join(f"{row[column]:.4f}" for column in columns)
        lines.append(f"| {row['id']} | {row['fold']} | {row['composition']} | {told} | {row['difference']:+.4f} |")
    lines += ["", "![Validation by epoch](curves.png)"]
    return "\n".join(lines) + "\n"


def _judged_by(run: SweepRun) -> str:
    return ", ".join(member.name for member in judged(run))


def curves(comparison: Comparison) -> bytes:
    """The validation metric by epoch as a PNG: a thin line each fold and seed, a thick one their mean."""
    a, metric = comparison.a, comparison.a.metric
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, run in (("A", comparison.a), ("B", comparison.b)):
        _draw(
            axes, run, f"val_{metric.name}", f"{label}: {run.name}", COLOURS[label], set(comparison.pair.rows["fold"])
        )
    unit = f" ({a.task['unit']})" if a.task.get("unit") and metric.name == "mae" else ""
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {metric.name.upper()}{unit}")
    if metric.name == "mae":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.set_title(f"{a.task['name']}: thin, each fold and seed; thick, their mean while all go on", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axes: Axes, run: SweepRun, column: str, label: str, colour: str, folds: set[int]) -> None:
    lines = [
        of_fold.set_index("epoch")[column].rename(f"{member.name} {fold!s}")
        for member in judged(run)
        if column in member.history
        for fold, of_fold in member.history.groupby("fold")
        if fold in folds
    ]
    if not lines:
        axes.plot([], [], color=colour, label=f"{label} (no history)")
        return
    for line in lines:
        axes.plot(line.index, line, color=colour, linewidth=0.5, alpha=0.5)
    mean = pd.concat(lines, axis=1).mean(axis=1, skipna=False).dropna()
    # Of the untrained reference there is one point, which a line alone would not show.
    axes.plot(mean.index, mean, color=colour, linewidth=2, label=label, marker="o" if len(mean) == 1 else "")


def write_comparison(comparison: Comparison, folder: str) -> str:
    """Write the comparison into a folder, a path or URI, and return its text."""
    filesystem, path = open_folder(folder)
    text = report(comparison)
    write_whole(filesystem, f"{path}/differences.csv", differences(comparison).to_csv(index=False).encode())
    write_whole(filesystem, f"{path}/curves.png", curves(comparison))
    write_whole(filesystem, f"{path}/compare.md", text.encode())
    return text
