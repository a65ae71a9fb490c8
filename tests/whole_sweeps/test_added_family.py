"""A family of one's own, added as docs/code.md says: a folder in `data/`, one in `models/`, and their lines.

Its targets are arrays, one of three classes, or numbers judged by a metric with a scale. The commands then run on it as
on crystals.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sweeps import REPOSITORY

from data.machine.module_files import PACKAGES
from data.metrics import METRICS

ADDED = Path(__file__).parent / "added_family"
LINES = {
    "data/families.py": ("FAMILIES = {", 'FAMILIES = {\n    "curves": "data.curves.family",\n'),
    "models/registry.py": ("FAMILIES = {", 'FAMILIES = {\n    "curves": "models.curves.family",\n'),
}
MODELS = """\
MODELS = {
    "curve_mean": ("models.curves.network", "MEAN"),
    "curve_network": ("models.curves.network", "NETWORK"),
"""
SPACE = """\
description: a small network of curves
model: curve_network
num_samples: 2
seeds: 2
grace_epochs: 5
parameters:
  lr: {loguniform: [0.003, 0.03]}
  epochs: 20
  batch_size: 16
"""
HORIZON = (8,)
TASKS = ("waves", "shapes", "phases")
pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the code with the family added."""
    folder = tmp_path_factory.mktemp("tree")
    for package in (*PACKAGES, "search_spaces"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("data", "models"):
        shutil.copytree(ADDED / package, folder / package, dirs_exist_ok=True)
    for file, (before, after) in LINES.items():
        text = (folder / file).read_text()
        assert before in text
        text = text.replace(before, after, 1)
        (folder / file).write_text(text.replace("MODELS = {\n", MODELS, 1) if file == "models/registry.py" else text)
    (folder / "curves.yaml").write_text(SPACE)
    return folder


def run(tree: Path, *arguments: str) -> str:
    """What a command prints that is run with the copy's code."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "MATSWEEP_CACHE": str(tree / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def swept(tree) -> dict[str, Path]:
    """A sweep of each task of the family."""
    for task in TASKS:
        run(tree, "tune/run_sweep.py", "--space=curves.yaml", f"--task={task}", f"--name={task}", "--folds=0,1")
    return {task: tree / "ray_results" / task for task in TASKS}


def test_predictions_are_arrays_beside_a_table_of_what_each_example_is_judged_by(swept):
    folder = swept["waves"] / "ensemble"
    table, arrays = pd.read_csv(folder / "preds_fold_0.csv"), np.load(folder / "preds_fold_0.npz")
    assert list(table.columns) == ["id", "source", "relative_error", "squared_error"]
    assert arrays["y_true"].shape == arrays["y_pred"].shape == arrays["std"].shape == (len(table), *HORIZON)
    results = json.loads((swept["waves"] / "results.json").read_text())
    assert results["metric"] == "relative_l2"
    expected = METRICS["relative_l2"].value(arrays["y_true"], arrays["y_pred"])
    assert results["ensemble"]["folds"][0]["relative_l2"] == pytest.approx(expected)
    assert table["relative_error"].mean() == pytest.approx(expected)
    assert expected < 0.7 < results["reference"]["mean"]["relative_l2"]  # curves can be learned


def test_sources_stay_together(swept):
    parts = [pd.read_csv(swept["waves"] / "seed_0" / f"{part}_fold_0.csv") for part in ("preds", "val")]
    trained = {f"source {k}" for k in range(60)} - set(parts[1]["source"])
    assert trained
    assert len(parts[1]) % 2 == 0 or len(parts[1]) >= 4


def test_classes_are_judged_by_accuracy(swept):
    arrays = np.load(swept["shapes"] / "seed_1" / "preds_fold_1.npz")
    assert arrays["y_pred"].shape == (len(arrays["y_true"]), 3)
    np.testing.assert_allclose(arrays["y_pred"].sum(axis=1), 1)
    results = json.loads((swept["shapes"] / "results.json").read_text())
    right = (arrays["y_pred"].argmax(axis=1) == arrays["y_true"]).mean()
    assert results["seeds"][1]["folds"][1]["accuracy"] == pytest.approx(right)
    assert results["seeds"][1]["mean"]["accuracy"] > 0.7 > results["reference"]["mean"]["accuracy"]


def test_a_metric_with_a_scale_goes_by_the_training_targets_of_the_fold(tree, swept):
    results = json.loads((swept["phases"] / "results.json").read_text())
    for entry in results["seeds"][0]["folds"]:
        table = pd.read_csv(swept["phases"] / "seed_0" / f"preds_fold_{entry['fold']}.csv")
        by_hand = np.sqrt(((table["y_true"] - table["y_pred"]) ** 2).mean()) / results["scales"][str(entry["fold"])]
        assert entry["rmse_over_std"] == pytest.approx(by_hand)
        assert np.sqrt(table["squared_error_over_variance"].mean()) == pytest.approx(by_hand)
    # Each fold is predicted by the mean of its own training targets: worse than their spread by chance alone.
    assert results["reference"]["mean"]["rmse_over_std"] == pytest.approx(1.0, abs=0.3)
    assert "RMSE / std of the training targets" in run(tree, "tune/compare.py", "phases/seed_0", "phases/seed_1")
    run(tree, "tune/ensemble.py", "phases/seed_0", "phases/seed_1", "--name", "two")
    both = json.loads((tree / "ray_results/two/results.json").read_text())
    expected = results["ensemble"]["mean"]["rmse_over_std"]
    assert both["ensemble"]["mean"]["rmse_over_std"] == pytest.approx(expected)


def test_a_damaged_file_of_arrays_is_named(tree, swept):
    shutil.copytree(swept["waves"], tree / "ray_results/damaged")
    (tree / "ray_results/damaged/ensemble/preds_fold_1.npz").write_bytes(b"PK nothing")
    done = subprocess.run(
        [sys.executable, "tune/ensemble.py", "damaged", "waves/seed_0", "--name", "never"],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ensemble/preds_fold_1.npz is damaged" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_trained_model_predicts_new_curves(tree, swept):
    program = "import numpy as np; from models.fitted import load_model; curve = np.sin(np.arange(16) / 2.5); "
    program += "print(load_model('ray_results/waves', 0).predict([curve, -curve]).shape)"
    assert run(tree, "-c", program).strip() == "(2, 8)"


def test_every_command_that_reads_results_reads_these(tree, swept):
    printed = run(tree, "tune/compare.py", "waves", "waves/reference")
    assert "relative L2" in printed
    assert "worse" in printed  # the reference
    assert "relative L2" in run(tree, "tune/leaderboard.py")
    run(tree, "tune/report.py", "waves")
    run(tree, "tune/report.py", "shapes")
    run(tree, "tune/ensemble.py", "waves", "waves/reference", "--name", "mean")
    mean = np.load(tree / "ray_results/mean/ensemble/preds_fold_0.npz")
    parts = [np.load(swept["waves"] / member / "preds_fold_0.npz") for member in ("ensemble", "reference")]
    np.testing.assert_allclose(mean["y_pred"], np.mean([part["y_pred"] for part in parts], axis=0))


def test_a_plan_is_made_for_it(tree):
    assert "An epoch of curve_network with batches of 16" in run(
        tree, "tune/run_sweep.py", "--space=curves.yaml", "--task=waves", "--plan", "--folds=0"
    )


def test_a_sweep_of_it_imports_nothing_of_crystals(tree, swept):
    program = (
        "import sys, runpy; sys.argv = ['tune/run_sweep.py', '--space=curves.yaml', '--task=shapes', '--name=again', "
        "'--folds=0', '--seeds=1']\n"
        "try: runpy.run_path('tune/run_sweep.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'chgnet', 'pymatgen', 'ase', 'spglib'}\n"
        "print('imported:', *sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    assert run(tree, "-c", program).strip().endswith("imported:")
