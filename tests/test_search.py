"""Ray Tune experiments of the sweep: what a second call does again, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray.tune
from ray.tune.search import Searcher

from models.metrics import metric_of
from tune.experiment import run_experiment
from tune.options import SweepError
from tune.searcher import DistinctOptuna
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

    # A record that Ray cannot read, or that a clock which was set back would hide, costs nothing that is done.
    newest = max((tmp_path / "results/experiment").glob("experiment_state-*"))
    content = newest.read_bytes()
    newest.write_bytes(content[:100])
    with pytest.raises(SweepError, match=r"the record of the trials in .* cannot be read"):
        run()
    later = newest.with_name("experiment_state-2999-01-01_00-00-00.json")
    newest.rename(later)
    later.write_bytes(content)
    with pytest.raises(SweepError, match="Set the clock"):
        run()
    later.rename(newest)
    assert {config["x"] for config, _ in run()} == {0, 1}
    assert len((tmp_path / "runs_0").read_text()) == 1


def searcher(space):
    search = DistinctOptuna(seed=0)
    search.set_search_properties("loss", "min", space)
    return search


@pytest.mark.parametrize(
    ("space", "size"),
    [({"x": ray.tune.randint(0, 40)}, 40), ({"x": ray.tune.randint(0, 20), "y": ray.tune.choice(["a", "b"])}, 40)],
)
def test_a_small_space_is_tried_to_its_last_config(space, size):
    search, seen = searcher(space), set()
    for k in range(size):
        params = search.suggest(f"t{k}")
        seen.add(json.dumps(params, sort_keys=True))
        search.on_trial_complete(f"t{k}", {"loss": params["x"] / 10, "training_iteration": 1})
    assert len(seen) == size
    assert search.suggest("one more") == Searcher.FINISHED


def test_a_trial_that_the_searchers_record_does_not_know_is_no_error():
    """Ray's files are written one after the other: a kill can leave the trial's without the searcher's."""
    search = searcher({"x": ray.tune.uniform(0, 1)})
    search.on_trial_result("unknown", {"loss": 1.0, "training_iteration": 1})
    search.on_trial_complete("unknown", {"loss": 1.0, "training_iteration": 1})
    assert search.suggest("known") is not None
