"""Sweeps that an earlier version has written are still read, by commands and by notebooks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import tune.compare
import tune.ensemble
import tune.leaderboard
import tune.report
import tune.run_sweep
from models.fitted import load_model
from tune.runs import load_sweep

SWEEPS = Path(__file__).parent / "old_sweeps"
FORMULAS = ["Fe2O3", "NaCl", "SiO2"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder with the sweeps in `ray_results`."""
    shutil.copytree(SWEEPS, tmp_path / "ray_results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ray_results"


def output(command, *arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(command.app, list(arguments))
    assert done.exit_code == expect, done.output
    assert "Traceback" not in done.output
    return done.output


def test_a_notebook_reads_scores_histories_trials_and_predictions(folder):
    sweep = load_sweep("small_network")
    assert sorted(sweep.predictions["member"].unique()) == ["ensemble", "reference", "seed_0", "seed_1"]
    assert len(sweep.trials) == 3
    assert sweep.histories["epoch"].max() == 4
    written = pd.read_csv(
        folder / "small_network/seed_1/preds_fold_1.csv", dtype={"id": str}, float_precision="round_trip"
    )
    read = sweep.predictions.query("member == 'seed_1' and fold == 1 and part == 'test'")
    np.testing.assert_array_equal(read["y_pred"], written["y_pred"])


def test_models_predict_what_they_did(folder):
    network = load_model("ray_results/small_network", fold=0).predict_with_std(FORMULAS)
    np.testing.assert_allclose(network.values, [-0.49889167, -0.59749951, -0.62852245], atol=1e-6)
    np.testing.assert_allclose(network.std, [0.18973843, 0.06244992, 0.14471381], atol=1e-6)
    np.testing.assert_allclose(network.trust, [0.71836612, 0.24419253, 0.89346881], atol=1e-5)
    ridge = load_model("ray_results/ridge", fold=0).predict(FORMULAS)
    np.testing.assert_allclose(ridge, [-2.028848185955121, -0.8693767938739831, -2.196226551675188], atol=1e-10)


def test_two_of_them_are_compared(folder):
    report = output(tune.compare, "ridge", "small_network")
    assert "small_network" in report
    assert any(word in report for word in ("better", "worse", "within noise", "undecided"))


def test_they_stand_on_a_leaderboard(folder):
    page = output(tune.leaderboard)
    assert "ridge" in page
    assert "small_network" in page


def test_they_are_averaged(folder):
    output(tune.ensemble, "ridge", "small_network", "--name", "both")
    of_both = pd.read_csv(next((folder / "both").rglob("preds_fold_0.csv")))
    one, other = (
        pd.read_csv(folder / path / "preds_fold_0.csv")["y_pred"].to_numpy()
        for path in ("ridge/seed_0", "small_network/ensemble")
    )
    np.testing.assert_allclose(of_both["y_pred"], (one + other) / 2)


def test_they_have_a_report(folder):
    output(tune.report, "small_network")
    assert "small_network" in (folder / "small_network/report.html").read_text()


def test_they_do_not_go_on_with_other_code(folder):
    message = output(tune.run_sweep, "--resume", "small_network", expect=1)
    assert len(message.splitlines()) < 6
