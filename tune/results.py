"""What a sweep leaves: results.json, RESULTS.md, and per fold histories, predictions and models."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.storage import open_folder, write_whole
from models.metrics import metric_of
from tune.dataset import Dataset
from tune.evaluate import FoldScore, model_file
from tune.search import Outcome

LIBRARIES = ("torch", "ray", "chgnet", "pymatgen", "matbench", "optuna", "pandas", "pyarrow", "numpy", "numba")
OVERLAP = (
    "CHGNet was pretrained on Materials Project data, which this task comes from: its test crystals, or close "
    "relatives, may have been seen in pretraining. Do not rank it against models trained from scratch without saying so."
)


class Folder:
    """The sweep's folder on any storage; files appear whole or not at all."""

    def __init__(self, address: str) -> None:
        """Open a path or URI."""
        self.address = address.rstrip("/")
        self.filesystem, self.path = open_folder(address)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the sweep."""
        data = content.encode() if isinstance(content, str) else content
        write_whole(self.filesystem, f"{self.path}/{name}", data)

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table."""
        self.write(name, table.to_csv(index=False))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file without a null in it.

        Raises:
            ValueError: a value is None or not finite; the message says where.
        """
        refuse_null(content, name)
        self.write(name, json.dumps(content, indent=1))


def refuse_null(value: Any, where: str) -> None:
    """Raise ValueError at the first None or non-finite number inside a JSON-like value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} is {value}: results hold no empty value")
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_null(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            refuse_null(item, f"{where}[{position}]")


def run_record() -> dict[str, Any]:
    """Code version, library versions and machine, for the record of a run."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in LIBRARIES},
    }


def git_commit() -> str:
    """Commit of the code, marked when there are changes on top; says so where git cannot tell."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return run.stdout.strip()


def write_history(folder: Folder, name: str, outcome: Outcome, metric_name: str) -> None:
    """Write the epochs of one trial."""
    table = pd.DataFrame(outcome.history).rename(columns={"val_metric": f"val_{metric_name}"})
    folder.write_csv(name, table)


def write_trials(folder: Folder, searches: dict[int, list[Outcome]], metric_name: str) -> list[dict[str, Any]]:
    """Write the history of every searched trial, and return the ranking of each search."""
    ranking = []
    for fold, outcomes in searches.items():
        for rank, outcome in enumerate(outcomes, start=1):
            entry: dict[str, Any] = {
                "search_fold": fold,
                "rank": rank,
                "trial": outcome.trial_id,
                "config": outcome.config,
                "epochs_done": outcome.history[-1]["epoch"] if outcome.history else 0,
            }
            if outcome.best_metric is not None:
                entry[f"best_val_{metric_name}"] = outcome.best_metric
                entry["best_epoch"] = outcome.best_epoch
                file = f"search_fold_{fold}/trial_{outcome.trial_id}/history_fold_{fold}.csv"
                write_history(folder, file, outcome, metric_name)
            if outcome.error is not None:
                entry["failed"] = outcome.error
            ranking.append(entry)
    return ranking


def write_evaluation(
    folder: Folder, name: str, outcomes: Sequence[Outcome], scores: Sequence[FoldScore], metric_name: str
) -> None:
    """Write history, predictions and model of one config on every fold, under a folder of its own."""
    for outcome, score in zip(outcomes, scores, strict=True):
        write_history(folder, f"{name}/history_fold_{score.fold}.csv", outcome, metric_name)
        folder.write_csv(f"{name}/preds_fold_{score.fold}.csv", score.predictions)
        folder.write(f"{name}/model_fold_{score.fold}.pth", model_file(outcome))


def summary(scores: Sequence[FoldScore]) -> dict[str, Any]:
    """Scores by fold, their mean, and their standard deviation over folds where there are several."""
    names = list(scores[0].scores)
    by_fold = [{"fold": score.fold, "n_test": len(score.predictions), **score.scores} for score in scores]
    mean = {name: float(np.mean([score.scores[name] for score in scores])) for name in names}
    result: dict[str, Any] = {"folds": by_fold, "mean": mean, "n_folds": len(scores)}
    if len(scores) > 1:
        result["std_over_folds"] = {
            name: float(np.std([score.scores[name] for score in scores], ddof=1)) for name in names
        }
    return result


def results_markdown(results: dict[str, Any], dataset: Dataset) -> str:
    """The table a person reads."""
    task, metric = dataset.task, metric_of(dataset.task.kind)
    unit = f" ({task.unit})" if task.unit and metric.name == "mae" else ""
    folds = [entry["fold"] for entry in results["reference"]["folds"]]
    lines = [
        f"# {results['sweep']}",
        "",
        f"**{task.name}**, target `{task.target}`{unit}: {results['data']['description']}.",
        "",
        *(f"- {note}" for note in results["notes"]),
        f"- Protocol: {results['protocol']}",
        "",
        f"| {metric.name.upper()}{unit} on the test parts | "
        + " | ".join(f"fold {fold}" for fold in folds)
        + " | mean | std over folds |",
        "|---" * (len(folds) + 3) + "|",
    ]
    for title, entry in _table_rows(results):
        cells = [f"{fold[metric.name]:.4f}" for fold in entry["folds"]]
        spread = f"{entry['std_over_folds'][metric.name]:.4f}" if "std_over_folds" in entry else "one fold"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | **{entry['mean'][metric.name]:.4f}** | {spread} |")
    if "seed_std" in results:
        lines += ["", f"Standard deviation of the mean over seeds: {results['seed_std']:.5f}{unit}."]
    lines += ["", "## Chosen configuration", ""]
    lines += [
        f"- fold {chosen['fold']}: " + ", ".join(f"{k} {_short(v)}" for k, v in chosen["config"].items())
        for chosen in results["chosen"]
    ]
    if results["trials"]:
        best = f"best_val_{metric.name}"
        fields = sorted({field for trial in results["trials"] for field in trial["config"]})
        lines += ["", "## Trials, ranked on validation", ""]
        lines.append(f"| search fold | rank | val {metric.name} | epochs | " + " | ".join(fields) + " |")
        lines.append("|---" * (len(fields) + 4) + "|")
        for trial in results["trials"]:
            value = f"{trial[best]:.4f}" if best in trial else "no epoch"
            value += f" (failed: {trial['failed']})" if "failed" in trial else ""
            config = " | ".join(_short(trial["config"].get(field, "default")) for field in fields)
            lines.append(f"| {trial['search_fold']} | {trial['rank']} | {value} | {trial['epochs_done']} | {config} |")
    record = results["record"]
    lines += [
        "",
        f"Code {record['git_commit']}, {record['created']}, Python {record['python']}; data "
        f"{results['data']['sha256'][:12]}; "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _table_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = [(results["reference"]["title"], results["reference"])]
    rows += [(f"fine-tuned, seed {entry['seed']}", entry) for entry in results["seeds"]]
    if "ensemble" in results:
        rows.append((f"ensemble of {len(results['seeds'])} seeds", results["ensemble"]))
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
