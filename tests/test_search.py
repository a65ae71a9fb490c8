"""Ray Tune experiments of the sweep: what a second call does again, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.tune

from models.metrics import metric_of
from tune.experiment import run_experiment
from tune.terminal import Terminal
from tune.tracking import Tracking


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_failed_gets_another_chance_and_no_other_runs_again(tmp_path):
    def trial(config, folder=""):
        """Counts its runs in a file; fails as long as the file it needs is not there."""
        log = Path(folder, f"runs_{config['x']}")
        log.write_text((log.read_text() if log.exists() else "") + "x")
        if config["x"] == 1 and not Path(folder, "needed").exists():
            raise FileNotFoundError("the disk is full")
        losses = {"train_loss": 1.0, "val_loss": 1.0, "lr": 0.1, "seconds": 0.0}
        metrics = {"val_mae": 1.0, "val_mae_current": 1.0, "kept_val_mae": 1.0}
        ray.tune.report({"epoch": 1, "kept_epoch": 1, **losses, **metrics})

    def run():
        metric = metric_of("regression")
        return run_experiment(
            ray.tune.with_parameters(trial, folder=str(tmp_path)),
            {"x": ray.tune.grid_search([0, 1])},
            ray.tune.TuneConfig(
                metric="kept_val_mae", mode="min", trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}"
            ),
            f"{tmp_path}/results/experiment",
            "test",
            [Tracking(metric, f"{tmp_path}/results/experiment", {}), Terminal("test", 2, metric)],
        )

    first = {config["x"]: result for config, result in run()}
    assert first[0].error is None
    assert "the disk is full" in str(first[1].error)
    times = {x: len((tmp_path / f"runs_{x}").read_text()) for x in (0, 1)}
    assert times[0] == 1
    (tmp_path / "needed").touch()
    second = {config["x"]: result for config, result in run()}
    assert second[1].error is None
    assert second[1].metrics["kept_val_mae"] == 1.0
    assert len((tmp_path / "runs_0").read_text()) == 1
    assert len((tmp_path / "runs_1").read_text()) == times[1] + 1
