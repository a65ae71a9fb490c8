"""Results for people: RESULTS.md and what the terminal shows at the end."""

from __future__ import annotations

import shlex
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data.machine.console import console, say
from data.metrics import METRICS
from data.task_words import task_words
from tune.analysis.trusted import trust_sentence
from tune.records.folder import Folder


def results_markdown(results: dict[str, Any]) -> str:
    """The page RESULTS.md: what was swept, scores, the chosen configuration, levers and trials."""
    task, metric = results["task"], results["metric"]
    unit = METRICS[metric].unit_of(task["unit"])
    unit = f" ({unit})" if unit else ""
    folds = [entry["fold"] for entry in results["reference"]["folds"]]
    lines = [
        f"# {results['sweep']}",
        "",
        f"**{task['name']}**, target `{task['target']}`{unit}: {_extent(results)}.",
        "",
        *(f"- {note}" for note in results["notes"]),
        f"- Protocol: {results['protocol']}",
        "",
        f"| {METRICS[metric].title}{unit} on the test parts | "
        + " | ".join(f"fold {fold}" for fold in folds)
        + " | mean | std over folds |",
        "|---" * (len(folds) + 3) + "|",
    ]
    for title, entry in _table_rows(results):
        cells = [f"{fold[metric]:.4f}" for fold in entry["folds"]]
        spread = f"{entry['std_over_folds'][metric]:.4f}" if "std_over_folds" in entry else "one fold"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | **{entry['mean'][metric]:.4f}** | {spread} |")
    if "seed_std" in results:
        lines += ["", f"Standard deviation of the mean over seeds: {results['seed_std']:.5f}{unit}."]
    if sentences := _trust(results):
        lines += ["", "## What to trust", ""]
        lines += [f"- {title}: {sentence}." for title, sentence in sentences]
    lines += ["", "## Chosen configuration", ""]
    lines += [f"- {_folds(folds)}: {config or 'all defaults'}" for config, folds in _chosen(results).items()]
    lines += _lever_lines(results["levers"], unit)
    lines += [f"- {warning}" for warning in _inert(results)]
    lines += _trial_lines(results["trials"], metric)
    record = results["record"]
    lines += [
        "",
        f"Code {record['git_commit']}, {record['created']}, Python {record['python']}; data "
        f"{results['data']['sha256'][:12]}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _lever_lines(levers: list[dict[str, Any]], unit: str) -> list[str]:
    """The section on the levers; nothing where there are none. `unit` is that of the target, in brackets."""
    if not levers:
        return []
    return [
        "",
        "## Levers",
        "",
        "Tiny runs that differ in one lever alone, before the sweep:",
        "",
        f"| lever | values | largest difference of predictions{unit} | rows |",
        "|---|---|---|---|",
        *(
            f"| {check['lever']} | {' and '.join(map(_short, check['values']))} | {_short(check['difference'])} "
            f"| {check['rows']} |"
            for check in levers
        ),
    ]


def _trial_lines(trials: list[dict[str, Any]], metric: str) -> list[str]:
    """The section on the trials of the searches; nothing where nothing was searched."""
    if not trials:
        return []
    best = f"kept_val_{metric}"
    fields = sorted({field for trial in trials for field in trial["config"]})
    lines = ["", "## Trials, ranked on validation", ""]
    lines.append(f"| search fold | rank | val {metric} | epochs done | " + " | ".join(fields) + " |")
    lines.append("|---" * (len(fields) + 4) + "|")
    for trial in trials:
        value = f"{trial[best]:.4f}" if best in trial else "no epoch"
        value += f" (failed: {trial['failed']})" if "failed" in trial else ""
        config = " | ".join(_short(trial["config"].get(field, "default")) for field in fields)
        lines.append(f"| {trial['search_fold']} | {trial['rank']} | {value} | {trial['epochs_done']} | {config} |")
    return lines


def _extent(results: dict[str, Any]) -> str:
    """How many rows there are, and how many of them are scored where that is not all."""
    data = results["data"]
    rest = "" if data["n_scored"] == data["n_rows"] else f", {data['n_scored']} of them scored"
    return f"{data['description']}{rest}"


def _chosen(results: dict[str, Any]) -> dict[str, list[int]]:
    """The folds of each configuration that was chosen: what the space sets of it; the rest are defaults."""
    parameters = results["options"]["space"]["parameters"]
    folds: dict[str, list[int]] = {}
    for entry in results["chosen"]:
        config = ", ".join(f"{name} {_short(value)}" for name, value in entry["config"].items() if name in parameters)
        folds.setdefault(config, []).append(entry["fold"])
    return folds


def _folds(folds: list[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _inert(results: dict[str, Any]) -> list[str]:
    return [
        f"INERT: trials {' and '.join(pair['trials'])} of fold {pair['fold']} gave identical predictions, so "
        f"{', '.join(pair['levers'])}, in which they differ, did nothing"
        for pair in results["inert"]
    ]


def _table_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = [(results["reference"]["title"], results["reference"])]
    title = results["model"].get("title", results["model"]["name"])
    rows += [(f"{title}, seed {entry['seed']}", entry) for entry in results["seeds"]]
    if "ensemble" in results:
        rows.append((f"ensemble of {len(results['seeds'])} seeds", results["ensemble"]))
    return rows


def _trust(results: dict[str, Any]) -> list[tuple[str, str]]:
    """A sentence for each row of the main table that says which of its predictions are not trusted."""
    group_name = task_words(results["task"]).group
    untrusted = results["options"].get("untrusted", "keep")
    sentences = [
        (title, trust_sentence(entry, results["metric"], group_name, untrusted))
        for title, entry in _table_rows(results)
    ]
    return [(title, sentence) for title, sentence in sentences if sentence]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_summary(results: dict[str, Any], folder: Folder) -> None:
    """The ranking, the best configuration, the scores, and where everything is."""
    metric = results["metric"]
    unit = METRICS[metric].unit_of(results["task"]["unit"])
    ranked_trials = [trial for trial in results["trials"] if f"kept_val_{metric}" in trial]
    if ranked_trials:
        fields = [field for field in results["options"]["searched"] if field != "epochs"]
        columns = ("fold", "rank", f"val {metric}", "epochs", *fields)
        table = Table(*columns, title="Ranking on validation", box=SIMPLE_HEAD, padding=0)
        per_fold = 10 if len({trial["search_fold"] for trial in ranked_trials}) == 1 else 3
        for trial in [trial for trial in ranked_trials if trial["rank"] <= per_fold]:
            table.add_row(
                str(trial["search_fold"]),
                str(trial["rank"]),
                f"{trial[f'kept_val_{metric}']:.4f}",
                f"{trial['epochs_done']} of {trial['epochs']}",
                *(_short(trial["config"][field]) for field in fields),
            )
        console.print(table)
    for config, folds in _chosen(results).items():
        say(
            f"{'Best configuration' if ranked_trials else 'Configuration'}, {_folds(folds)}: {config or 'all defaults'}"
        )
    for title, entry in _table_rows(results):
        spread = f" +- {entry['std_over_folds'][metric]:.4f} over folds" if "std_over_folds" in entry else ""
        score = f"{entry['mean'][metric]:.4f}{spread} {unit}".rstrip()
        say(f"Test {metric}, {entry['n_folds']} fold(s), {title}: {score} ({_extent(results)})")
    if sentences := _trust(results):
        title, sentence = sentences[-1]
        say(f"{title}: {sentence}", style="" if sentence.startswith("all ") else "yellow")
    for warning in _inert(results):
        say(warning, style="yellow")
    for note in results["notes"]:
        say(f"Note: {note}")
    say(f"Everything is in {folder.address} (start with RESULTS.md)")
    logdir = f"ray_results/{results['sweep']}" if "://" in folder.address else folder.address
    say(f"Curves: tensorboard --logdir {shlex.quote(logdir)}")
