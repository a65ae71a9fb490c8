"""Finished sweeps of whole tasks of Matbench, whose labels and predictions are made up; no fixture, no test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from finished_runs import write_run

from data.crystals.task_table import official_ids, official_task
from data.folds import make_folds
from tune.analysis.matbench_record import quiet_matbench

SMALL = "matbench_jdft2d"
OPTIONS = {
    "task": "mine.json.gz",
    "search_folds": [0],
    "folds": [0, 1, 2, 3, 4],
    "num_samples": 4,
    "seed": 0,
    "seeds": 2,
    "every_atom": False,
    "tta": "auto",
    "space": {"name": "mine", "description": "Mine.", "model": "chgnet", "seeds": 2, "num_samples": 4,
              "grace_epochs": 2, "reduction_factor": 3, "parameters": {"lr": 0.001, "epochs": 2}},
}  # fmt: skip


def official_rows(name: str, labels: pd.Series | None = None) -> pd.DataFrame:
    """All rows of an official task in its folds; labels are made, and spread as Matbench publishes it."""
    with quiet_matbench():
        from matbench.metadata import mbv01_metadata

        published = mbv01_metadata[name]
    task = official_task(name)
    ids = official_ids(task)
    if labels is None:
        drawn = np.random.default_rng(0).normal(size=len(ids))
        if task.kind == "classification":
            drawn = (np.argsort(np.argsort(drawn)) < round(published["frac_true"] * len(ids))).astype(float)
        else:
            drawn *= published["mad"] / np.abs(drawn - drawn.mean()).mean()
        labels = pd.Series(drawn, index=ids)
    parts = [pd.DataFrame({"fold": fold.index, "id": fold.test_ids}) for fold in make_folds(task, ids, None)]
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(composition="NaCl", y_true=labels.loc[rows["id"]].to_numpy())


def official_run(folder: Path, name: str, rows: pd.DataFrame, members: dict, **results) -> Path:
    """A finished sweep of an official task."""
    task = {"name": name, "official": name, "target": official_task(name).target, "kind": official_task(name).kind}
    write_run(folder, rows, members, task=task)
    written = json.loads((folder / "results.json").read_text())
    written |= {"options": {**OPTIONS, "folds": sorted(set(rows["fold"].tolist()))}, "model": {"name": "chgnet"}}
    written["record"] = {"git_commit": "abc", "versions": {"torch": "2.13.0", "chgnet": "0.4.2"}}
    (folder / "results.json").write_text(json.dumps(written | results))
    return folder
