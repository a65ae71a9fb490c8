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
from tune.records.members import as_written
from tune.runs import SweepRun, compared_members

LARGEST = 10  # ids in the page
COLOURS = {"A": "#0072B2", "B": "#D55E00"}  # blue and vermillion of Okabe and Ito: which colour-blind people tell apart
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
            values = _text(a.configs[fold].get(field)), _text(b.configs[fold].get(field))
            if values[0] != values[1]:
                by_value.setdefault(values, []).append(fold)
        for values, field_folds in by_value.items():
            lines.append(
                (field, "all" if len(field_folds) == len(folds) else ", ".join(map(str, field_folds)), *values)
            )
    spaces = [run.results["options"].get("space", {}) for run in (a, b)]  # an average has none
    for field_name, value_a, value_b in (
        ("model", *(space.get("model") for space in spaces)),
        ("--quantity", a.task.get("quantity"), b.task.get("quantity")),
        ("trained", _member_names(a), _member_names(b)),
        *(
            (f"--{name.replace('_', '-')}", *(run.results["options"][name] for run in (a, b)))
            for name in _PROTOCOL
            if all(name in run.results["options"] for run in (a, b))
        ),
        ("code", *(run.results["record"].get("git_commit") for run in (a, b))),
    ):
        if value_a != value_b:
            lines.append((field_name, "all", _text(value_a), _text(value_b)))
    return lines


def _text(value: Any) -> str:
    if value is None:
        return "not there"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    a, b, verdict = comparison.a, comparison.b, comparison.verdict
    lines = [
        f"# {a.name} (A) against {b.name} (B)",
        "",
        _extent(comparison),
        "",
        *(f"- {warning}" for warning in comparison.warnings),
        *([""] if comparison.warnings else []),
        f"## B is: {verdict}" if verdict in ("better", "worse") else f"## {verdict}",
        "",
        comparison.sentence,
        "",
        *_difference_lines(comparison),
        "",
        *_fold_lines(comparison),
        "",
        "## What differs between the runs",
        "",
        *_config_lines(a, b),
        "",
        *_id_lines(comparison),
        "",
        "![Validation by epoch](curves.png)",
    ]
    return "\n".join(lines) + "\n"


def _unit(comparison: Comparison) -> str:
    """The unit of the metric behind its name, ` (eV/atom)`."""
    unit = comparison.a.metric.unit_of(comparison.a.task.get("unit") or "")
    return f" ({unit})" if unit else ""


def _extent(comparison: Comparison) -> str:
    """Task, target and number of common ids."""
    task = comparison.a.task
    return (
        f"**{task['name']}**, target `{task['target']}`{_unit(comparison)}, {comparison.on} parts: "
        f"{len(comparison.paired.rows)} ids in common, {comparison.difference.n_groups} {comparison.a.words.groups}."
    )


def _scores_by_fold(comparison: Comparison) -> list[np.ndarray]:
    """The metric of A and of B by fold, means over seeds."""
    paired, metric = comparison.paired, comparison.a.metric
    return [fold_scores(paired.rows, predicted, metric).mean(axis=0) for predicted in (paired.a, paired.b)]


def _difference_lines(comparison: Comparison) -> list[str]:
    """The table of the difference and its intervals, and where they come from."""
    difference, noise, words = comparison.difference, comparison.noise, comparison.a.words
    name, means = comparison.a.metric.title, [scores.mean() for scores in _scores_by_fold(comparison)]
    band, together = "not known", "not known"
    if noise is not None:
        band, together = f"+- {noise.band:.5f}", "{:+.5f} to {:+.5f}".format(*comparison.interval)
    p_value = "" if difference.p_value is None else f"{difference.p_value:.2g}"
    cells = [f"{means[0]:.5f}", f"{means[1]:.5f}", f"{difference.value:+.5f}"]
    cells += [f"{difference.low:+.5f} to {difference.high:+.5f}", band, together, p_value or f"not for {name}"]
    heads = [f"{name}{_unit(comparison)} of A", "of B", "A - B", f"95 % interval over {words.examples}"]
    heads += ["noise of seeds", "both", "p (Wilcoxon)"]
    source = (
        f"Each is the mean over folds of the mean over seeds; A: {_member_names(comparison.a)}; "
        f"B: {_member_names(comparison.b)}. The interval comes from {RESAMPLES:,} resamples of {words.groups}"
        + (f", p from the mean difference of each {words.group}" if p_value else "")
        + (f"; the noise from {noise.source}." if noise else ".")
    )
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", f"| {' | '.join(cells)} |", "", source]


def _fold_lines(comparison: Comparison) -> list[str]:
    """The table of the metric by fold."""
    folds = np.unique(comparison.paired.rows["fold"])
    return [
        f"| {comparison.a.metric.title} by fold | A | B | A - B |",
        "|---|---|---|---|",
        *(
            f"| fold {fold} | {scores_a:.5f} | {scores_b:.5f} | {scores_a - scores_b:+.5f} |"
            for fold, scores_a, scores_b in zip(folds, *_scores_by_fold(comparison), strict=True)
        ),
    ]


def _config_lines(a: SweepRun, b: SweepRun) -> list[str]:
    """The table of the fields that differ, and which run trains nothing."""
    lines = []
    for run in (a, b):
        if compared_members(run)[0].name == "reference":
            lines += [f"{run.name} trains nothing ({run.results['reference']['title']}).", ""]
    fields = config_differences(a, b)
    lines += ["| field | folds | A | B |", "|---|---|---|---|"] if fields else ["No field of the configurations."]
    return lines + [f"| {' | '.join(field)} |" for field in fields]


def _id_lines(comparison: Comparison) -> list[str]:
    """The table of the ids whose errors differ most."""
    table = differences(comparison)
    columns = {"y_true": "true", "y_pred_a": "A", "y_pred_b": "B"}
    columns |= {"abs_error_a": "error of A", "abs_error_b": "error of B"}
    columns = {column: head for column, head in columns.items() if column in table}
    heads = ["id", "fold", comparison.a.words.group, *columns.values(), "A - B"]
    lines = [
        f"## The {min(LARGEST, len(table))} ids that differ most",
        "",
        "Predictions and errors are means over a run's seeds; all ids are in differences.csv.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in table.head(LARGEST).to_dict("records"):
        numbers = " | ".join(f"{row[column]:.4f}" for column in columns)
        lines.append(f"| {row['id']} | {row['fold']} | {row['group']} | {numbers} | {row['difference']:+.4f} |")
    return lines


def _member_names(run: SweepRun) -> str:
    return ", ".join(member.name for member in compared_members(run))


def curves(comparison: Comparison) -> bytes:
    """The validation metric by epoch as a PNG: a thin line each fold and seed, a thick one their mean."""
    a, metric = comparison.a, comparison.a.metric
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, run in (("A", comparison.a), ("B", comparison.b)):
        _draw(
            axes, run, f"val_{metric.name}", f"{label}: {run.name}", COLOURS[label], set(comparison.paired.rows["fold"])
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {metric.title}{_unit(comparison)}")
    if metric.mode == "min":
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
        fold_rows.set_index("epoch")[column].rename(f"{member.name} {fold!s}")
        for member in compared_members(run)
        if column in member.history
        for fold, fold_rows in member.history.groupby("fold")
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
    text = comparison_markdown(comparison)
    table = as_written(differences(comparison), comparison.a.words.group)
    write_whole(filesystem, f"{path}/differences.csv", table.to_csv(index=False).encode())
    write_whole(filesystem, f"{path}/curves.png", curves(comparison))
    write_whole(filesystem, f"{path}/compare.md", text.encode())
    return text
