"""Finished sweeps whose predictions are made up, written as a sweep leaves them; no fixture, no test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tune.records.options import Options
from tune.runs import SweepRun, load_sweep
from tune.spaces.space import load_space

REPOSITORY = Path(__file__).parents[2]


def make_rows(n_folds: int = 5, n: int = 40, *, of_each: int = 1, prefix: str = "c", seed: int = 0) -> pd.DataFrame:
    """Labelled crystals of some folds, `of_each` of them of every composition, those of one in different folds."""
    total = n_folds * n
    return pd.DataFrame(
        {
            "fold": np.arange(total) % n_folds,
            "id": [f"{prefix}-{i:04d}" for i in range(total)],
            "composition": [f"{prefix.upper()}{i // of_each}" for i in range(total)],
            "y_true": np.random.default_rng(seed).normal(size=total),
        }
    )


def write_run(
    folder: Path,
    rows: pd.DataFrame,
    members: dict[str, np.ndarray],
    *,
    val_rows: pd.DataFrame | None = None,
    val_members: dict[str, np.ndarray] | None = None,
    configs: dict[int, dict] | None = None,
    task: dict | None = None,
    sha256: str = "0123456789abcdef",
    by_chance: bool = True,
) -> Path:
    """A finished sweep; `members` are predictions of all rows by subfolder, an untrained reference is added."""
    metric = "rocauc" if (task or {}).get("kind") == "classification" else "mae"
    folds = sorted(set(rows["fold"].tolist()))
    parts = [("preds", rows, {"reference": np.full(len(rows), 0.5), **members})]
    if val_rows is not None:
        parts.append(("val", val_rows, {"reference": np.full(len(val_rows), 0.5), **(val_members or {})}))
    entries: dict[str, dict] = {}
    for prefix, of_part, predicted in parts:
        for name, y_pred in predicted.items():
            table = of_part.assign(y_pred=y_pred, abs_error=np.abs(of_part["y_true"] - y_pred))
            (folder / name).mkdir(parents=True, exist_ok=True)
            for fold in folds:
                of_fold = table[table["fold"] == fold].drop(columns="fold")
                of_fold.to_csv(folder / name / f"{prefix}_fold_{fold}.csv", index=False)
            if prefix == "preds":
                means = table.groupby("fold")["abs_error"].mean()
                by_fold = [{"fold": fold, "n_test": int((rows["fold"] == fold).sum()), metric: m}
                           for fold, m in means.items()]  # fmt: skip
                entries[name] = {"folds": by_fold, "mean": {metric: float(means.mean())}, "n_folds": len(folds)}
    for position, name in enumerate(name for name in entries if name.startswith("seed_")):
        for fold in folds:
            epochs = np.arange(6)
            history = pd.DataFrame(
                {"epoch": epochs, "train_loss": 0.1, f"val_{metric}": 0.1 * (1 + position + fold) / (1 + epochs)}
            )
            history.to_csv(folder / name / f"history_fold_{fold}.csv", index=False)
    results = {
        "sweep": folder.name,
        "options": {"search_folds": [0], "num_samples": 4, "seed": 0, "every_atom": False, "space": {"parameters": {}}},
        "record": {"git_commit": "abc", "created": "2026-11-21T20:49:52+00:00", "versions": {"torch": "2.13.0"}},
        "model": {"name": "chgnet"},
        "task": {"name": "made", "target": "e", "unit": "eV/atom", "kind": "regression", **(task or {})},
        "data": {"description": f"n={len(rows)}", "sha256": sha256},
        "notes": ["Labels are made."],
        "flags": [],
        "inert": [],
        "by_chance": by_chance,
        "cost": {"trainings": 1, "epochs": 5, "cpu_hours": 0.5, "gpu_hours": 0.0},
        "protocol": "no search.",
        "metric": metric,
        "reference": {"title": "pretrained + reference", **entries["reference"]},
        "seeds": [
            {"seed": int(name[5:]), **entry, "training": [{"fold": fold, "n_trained": 400} for fold in folds]}
            for name, entry in entries.items()
            if name.startswith("seed_")
        ],
        "chosen": [{"fold": fold, "config": (configs or {}).get(fold, {"lr": 0.001, "seed": 0})} for fold in folds],
        "trials": [],
    }
    if "ensemble" in entries:
        results["ensemble"] = entries["ensemble"]
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_options(folder: Path, **options) -> Options:
    """The sweep.json of a sweep of the demo task, by which its rows are opened again."""
    fields = {name: None for name, field in Options.model_fields.items() if field.is_required()}
    fields |= {"name": folder.name, "space": load_space("head_finetune"), "task": "demo", "search_folds": [0]}
    fields |= {"folds": [0, 1], "num_samples": 6, "seed": 0, "seeds": 2, "storage": str(folder.parent), "cache": "none"}
    fields |= {"downloads": "not-needed", "cpus_per_trial": 1, "gpus_per_trial": 0.0}
    fields |= {"every_atom": False, "tta": "none"}
    written = Options(**fields | options)
    (folder / "sweep.json").write_text(json.dumps({"options": written.model_dump(), "data_sha256": "none"}))
    return written


def predict(rows: pd.DataFrame, error: float, seed: int = 0, seeds: int = 1, jitter: float = 0.0) -> dict:
    """Predictions of several seeds whose errors are about `error` and, by seed alone, differ by `jitter` in size.

    Runs of the same `seed` have the same errors up to their size: some crystals are harder than others.
    """
    y_true = rows["y_true"].to_numpy()
    pattern = np.random.default_rng(seed).normal(size=len(rows))
    sizes = error + jitter * np.linspace(-1, 1, seeds) if seeds > 1 else [error]
    return {f"seed_{number}": y_true + size * pattern for number, size in enumerate(sizes)}


def make_run(tmp_path: Path, name: str, rows: pd.DataFrame, members: dict, **options) -> SweepRun:
    """A finished sweep, written under `ray_results` and opened."""
    return load_sweep(str(write_run(tmp_path / "ray_results" / name, rows, members, **options)))


def mean_error(run: SweepRun, member: str) -> float:
    """Mean over folds of the mean absolute error."""
    return run.members[member].test.groupby("fold")["abs_error"].mean().mean()
