"""How trust, errors and marks go together: on the task's folds, on elements left out, and on crystals from files.

    python -m benchmarks.trust TASK [CRYSTAL.cif ...] --model head --seeds 3

Trains without Ray. Prints, over all folds, how many rows of the test parts are marked, errors by decile of trust on
validation and test parts, the MAE with the baseline's prediction where there is no trust, and of all predictions that
are more than 1 eV/atom from the baseline's how many are marked. docs/accuracy.md has what it printed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import typer
from pymatgen.core import Structure

from data.crystals.convert import convert_chunk
from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import convert, element_fractions, stack
from data.crystals.left_out import leave_elements_out
from data.fold import Fold
from data.folds import make_folds, split_fold
from data.tasks import open_task
from models.crystals.chgnet.network import cutoffs
from models.crystals.rows import CrystalRows
from models.crystals.trust import Trust, calibration_rows, described, fit_trust
from models.model import Prediction, TrainingPart
from models.registry import open_model

ModelName = Literal["head", "whole", "gaussian_process", "composition", "ridge"]
HEAD = {
    "lr": 0.00466,
    "batch_size": 64,
    "epochs": 100,
    "weight_decay": 0.00611,
    "loss": "mae",
}  # head_finetune's choice
WHOLE = {"freeze_depth": "full", "lr": 5e-4, "batch_size": 16, "epochs": 8, "loss": "mae"}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("chgnet", HEAD),
    "whole": ("chgnet", WHOLE),
    "gaussian_process": ("gaussian_process", {}),
    "composition": ("composition_network", {"epochs": 30}),
    "ridge": ("ridge", {}),
}
WILD = 1.0  # eV/atom from the baseline


def main(
    task: Annotated[str, typer.Argument(help="As of tune/run_sweep.py; energies per atom.")],
    crystals: Annotated[list[str] | None, typer.Argument(help="Predicted by every model beside the test rows.")] = None,
    model: Annotated[str, typer.Option(help=", ".join(CONFIGS))] = "head",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    folds: Annotated[int, typer.Option(min=1, max=5, help="So many of each split.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train one kind of model on every fold of both splits and print what its trust is worth."""
    torch.set_num_threads(threads)
    if model not in get_args(ModelName):
        raise typer.BadParameter(f"--model {model!r}: expected one of {', '.join(CONFIGS)}")
    opened, rows = open_task(task, download_dir=Path())
    converted = list(convert_chunk(rows.chunk(0, len(rows)), cutoffs("0.3.0")[0])[1])
    converted += [
        convert(crystal_from_structure(Structure.from_file(file)), cutoffs("0.3.0")[0]) for file in crystals or []
    ]
    graphs = stack(converted)
    fractions = element_fractions(graphs)
    described_rows = described(CrystalRows(fractions, graphs.atoms_per_graph.astype(np.int32), graphs), "0.3.0", "cpu")
    n, more = len(rows), np.arange(len(rows), len(converted))
    compositions = [str(np.round(row[row > 0], 4)) + str(np.flatnonzero(row)) for row in fractions[:n]]
    by_split = {"the task's folds": make_folds(opened, rows.ids, rows.groups)}
    by_split["elements left out"] = leave_elements_out(list(rows.ids), fractions[:n])[0]
    targets = np.concatenate([rows.targets, np.full(len(more), np.nan)])
    for split, all_folds in by_split.items():
        parts: dict[str, list[np.ndarray]] = {}
        for fold, seed in ((fold, seed) for fold in all_folds[:folds] for seed in range(seeds)):
            for name, values in trained(fold, seed, rows, described_rows, targets, compositions, more, model):
                parts.setdefault(name, []).append(values)
        report(split, {name: np.concatenate(values) for name, values in parts.items()}, bool(len(more)))


def trained(
    fold: Fold,
    seed: int,
    rows: Any,
    described_rows: CrystalRows,
    targets: np.ndarray,
    compositions: list[str],
    more: np.ndarray,
    model: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Errors, baseline's errors and trust of one training, on validation, test and the crystals from files."""
    usable = np.ones(len(rows), dtype=bool)
    split = split_fold(fold, rows.ids, usable, compositions, groups=rows.groups, val_fraction=0.1, seed=0)
    visible = np.full(len(targets), np.nan)
    for which in (split.train, split.val):
        visible[which] = targets[which]
    part = TrainingPart(visible, split.train, split.val, "regression", "energy_per_atom")
    name, fields = CONFIGS[model]
    entry = open_model(name)
    inputs = (
        described_rows
        if entry.reads != "compositions"
        else replace(described_rows, graphs=None, features=None, outputs=None)
    )
    run = entry.start(entry.config(**fields, seed=seed), inputs, part, "cpu")
    began = time.perf_counter()
    for _ in run.epochs():
        pass
    fitted, middle = run.fitted(), time.perf_counter()
    weights = "" if entry.reads == "compositions" else "0.3.0"
    predicted = fitted.predict_rows(inputs, calibration_rows(part)).values
    trust = fit_trust(inputs, part, predicted, weights=weights, energies=bool(weights))
    yield "seconds", np.array([[middle - began, time.perf_counter() - middle]])
    for name, which in (("val", split.val), ("test", split.test), ("more", more)):
        yield name, judged(trust, inputs, which, fitted.predict_rows(inputs, which), targets[which])


def judged(
    trust: Trust, rows: CrystalRows, which: np.ndarray, prediction: Prediction, y_true: np.ndarray
) -> np.ndarray:
    """Error, baseline's error, trust and distance to the baseline of each row, shape (n, 4)."""
    if not len(which):
        return np.empty((0, 4))
    marked = trust.mark(rows, which, prediction, of_task=True)
    assert marked.trust is not None
    by_baseline = trust.baseline.predict(rows, which)
    errors = np.abs(prediction.values - y_true), np.abs(by_baseline - y_true)
    return np.stack([*errors, marked.trust, np.abs(prediction.values - by_baseline)], axis=1)


def report(split: str, parts: dict[str, np.ndarray], has_more: bool) -> None:
    """Print the tables of a split."""
    print(f"\n{split}; trainings: {len(parts['seconds'])}, seconds of one: {parts['seconds'].mean(axis=0).round(2)}")
    for name in ("val", "test"):
        error, by_baseline, trust, _ = parts[name].T
        marked = trust < 0.5
        deciles = [f"{error[rows].mean():.3f}" for rows in np.array_split(np.argsort(-trust), 10)]
        print(
            f"{name}: {marked.sum()} of {len(marked)} marked; MAE {error.mean():.4f}, baseline {by_baseline.mean():.4f}"
        )
        print(f"  with the baseline's where marked {np.where(marked, by_baseline, error).mean():.4f}", end="")
        if marked.any() and not marked.all():
            print(f"; of the marked {error[marked].mean():.4f}, of the others {error[~marked].mean():.4f}", end="")
        print(f"\n  MAE by decile of trust, most trusted first: {' '.join(deciles)}")
    for name in ("test", "more") if has_more else ("test",):
        _, _, trust, moved = parts[name].T
        wild = moved > WILD
        print(f"{name}: {wild.sum()} of {len(wild)} more than {WILD} eV/atom from the baseline", end="")
        print(f", up to {moved.max():.1f}; marked of these: {(trust[wild] < 0.5).sum()}")


if __name__ == "__main__":
    typer.run(main)
