"""Ray Tune experiments of the sweep: what a second call does again, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from models.metrics import metric_of
from tune.experiment import run_experiment
from tune.options import SweepError
from tune.searcher import DistinctOptuna, Listed
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

    # One that ended before its first record was written is begun, also where this process has restored another.
    for record in (tmp_path / "results/experiment").glob("*state-*"):
        record.unlink()
    assert {config["x"] for config, _ in run()} == {0, 1}
    assert len((tmp_path / "runs_0").read_text()) == 2


def searcher(space):
    search = DistinctOptuna(seed=0, num_samples=100)
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


def trial_of(trial_id, config, result=None):
    """One that runs, or has ended with a result."""
    trial = Trial("any", stub=True, config=config, trial_id=trial_id)
    trial.set_status(Trial.RUNNING if result is None else Trial.TERMINATED)
    if result is not None:
        trial.run_metadata.last_result = result
    return trial


RANGES = {"x": ray.tune.uniform(0, 1), "y": ray.tune.choice(["a", "b"])}


@pytest.mark.parametrize("written_after", [1, 2])
def test_a_searcher_whose_record_is_older_than_the_trials_catches_up(tmp_path, written_after):
    """It has not seen the first trial end, or the second one begin; what it proposes is what it would have."""
    search, config = searcher(RANGES), {}
    for number in (1, 2, 3):
        config[number] = search.suggest(f"t{number}")
        search.trials[f"t{number}"] = trial_of(f"t{number}", config[number])
        if number == written_after:
            search.save(str(tmp_path / "record"))
        result = {"loss": config[number]["x"], "training_iteration": 1}
        search.trials[f"t{number}"] = trial_of(f"t{number}", config[number], result)
        search.on_trial_complete(f"t{number}", result)
    later = searcher(RANGES)
    later.max_concurrent = 1
    later.restore(str(tmp_path / "record"))
    assert not later.trials
    later.max_concurrent = 1
    later.trials |= {"t1": search.trials["t1"], "t2": search.trials["t2"]}
    assert later.suggest("t3") == config[3]
    later.trials["t3"] = trial_of("t3", config[3])
    assert later.suggest("t4") is None  # one at a time, and it runs
    later.num_samples = 3
    assert later.suggest("t4") == Searcher.FINISHED


def test_a_trial_that_the_record_of_trials_has_lost_is_run_anew(tmp_path):
    """The searcher has proposed it, and there is none."""
    search = searcher(RANGES)
    first, lost = search.suggest("t1"), search.suggest("lost")
    search.save(str(tmp_path / "record"))
    later = searcher(RANGES)
    later.restore(str(tmp_path / "record"))
    later.num_samples = 2
    later.trials["t1"] = trial_of("t1", first, {"loss": 1.0, "training_iteration": 1})
    assert later.suggest("t2") == lost
    later.trials["t2"] = trial_of("t2", lost)
    assert later.suggest("t3") == Searcher.FINISHED
    later.on_trial_complete("t2", {"loss": 2.0, "training_iteration": 1})
    assert later.tried[json.dumps(lost, sort_keys=True)] == 2.0


def test_listed_configs_are_run_once_each_and_no_more_at_once_than_allowed():
    listed = Listed([{"fold": 0}, {"fold": 1}, {"fold": 2}], max_concurrent=2)
    listed.trials["b"] = trial_of("b", {"run": {"fold": 1}})
    assert listed.suggest("a") == {"run": {"fold": 0}}
    listed.trials["a"] = trial_of("a", {"run": {"fold": 0}})
    assert listed.suggest("c") is None
    listed.trials["b"] = trial_of("b", {"run": {"fold": 1}}, {"loss": 1.0})
    assert listed.suggest("c") == {"run": {"fold": 2}}
    listed.trials["c"] = trial_of("c", {"run": {"fold": 2}})
    assert listed.suggest("d") == Searcher.FINISHED
