"""Ray Tune experiments of the sweep: what a second call does again, and what it does not."""

from __future__ import annotations

import errno
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import ray.tune
import torch
from marks import whole_only
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from sqlalchemy import URL
from sweeps import new, outcome, prepare, run_here

from data.metrics import METRICS
from data.stores.storage import StorageError, open_folder
from tune.arguments import gpu_share, own_name
from tune.errors import SweepError
from tune.records.folder import refuse_name
from tune.spaces.space import SearchSpace
from tune.trials.experiment import run_experiment
from tune.trials.scheduler import FILE, ResumableASHA, kept_values
from tune.trials.searcher import DistinctOptuna, Listed
from tune.trials.terminal import Terminal
from tune.trials.tracking import Tracking
from tune.trials.trial import STATE_FILE


@pytest.mark.whole
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
        metric = METRICS["mae"]
        return run_experiment(
            ray.tune.with_parameters(trial, folder=str(tmp_path)),
            {"x": ray.tune.grid_search([0, 1])},
            ray.tune.TuneConfig(
                metric="kept_val_mae", mode="min", trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}"
            ),
            f"{tmp_path}/results/experiment",
            "test",
            [
                Tracking(metric, f"{tmp_path}/results/experiment", {}),
                Terminal("test", 2, metric, f"{tmp_path}/results/experiment"),
            ],
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


def watched_by(callback, folder):
    """Run an experiment of one trial, which ends after its first report."""

    def trial(config):
        losses = {"train_loss": 1.0, "val_loss": 1.0, "lr": 0.1, "seconds": 0.0}
        metrics = {"val_mae": 1.0, "val_mae_current": 1.0, "kept_val_mae": 1.0}
        ray.tune.report({"epoch": 1, "kept_epoch": 1, **losses, **metrics})

    tune_config = ray.tune.TuneConfig(metric="kept_val_mae", mode="min")
    return run_experiment(trial, {}, tune_config, f"{folder}/results/experiment", "test", [callback])


class Breaking(ray.tune.Callback):
    """Fails as the driver's code, or a library of it, may."""

    def __init__(self, problem):
        self.problem = problem

    def on_trial_result(self, iteration, trials, trial, result, **info):
        raise self.problem


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), r"OSError: \[Errno 28\] No space .*: '/x/y'"),
        (KeyError("epoch"), "KeyError: 'epoch'"),
    ],
)
def test_what_ends_the_driver_is_told_in_a_sentence_that_says_where(tmp_path, problem, expected):
    with pytest.raises(SweepError, match=rf"^test was ended by .*test_search\.py, line \d+: {expected}\. .*go on$"):
        watched_by(Breaking(problem), tmp_path)


@pytest.mark.usefixtures("ray_session")
def test_a_disk_without_room_for_the_events_of_a_sweep_in_a_bucket_ends_it_in_a_sentence(
    tmp_path, disk_of, monkeypatch, capfd
):
    disk = disk_of("2m")
    (disk / "ballast").write_bytes(bytes((2 << 20) - 8192))
    monkeypatch.chdir(disk)
    tracking = Tracking(METRICS["mae"], "s3://bucket/results/full/search", {})
    with pytest.raises(StorageError, match=rf"^cannot write {disk}/ray_results/full/search, .*No space left.*space"):
        watched_by(tracking, tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_for_events_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "search").write_text("mine")
    trial = trial_of("a", {})
    with pytest.raises(StorageError, match=rf"^cannot write {tmp_path}/search, .*: File exists\. Make"):
        Tracking(METRICS["mae"], f"{tmp_path}/search", {}).on_trial_result(1, [trial], trial, {})


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


class Rungs:
    """ASHA with rungs at epochs 2 and 4, of which one trial in two survives each, in an experiment's folder."""

    def __init__(self, folder, earlier=()):
        self.folder, self.trials = str(folder), {}
        self.asha = ResumableASHA(dict(earlier), time_attr="epoch", grace_period=2, max_t=8, reduction_factor=2)
        self.asha.set_search_properties("loss", "min")
        self.controller = SimpleNamespace(search_alg=SimpleNamespace(searcher=SimpleNamespace(trials=self.trials)))

    def add(self, name, losses=()):
        """A trial; one of before, whose checkpoint tells its losses after each epoch."""
        trial = trial_of(name, {})
        filesystem, path = open_folder(self.folder)
        trial.storage = SimpleNamespace(storage_filesystem=filesystem, experiment_fs_path=path)
        if losses:
            checkpoint = Path(self.folder, f"trial_{name}/checkpoint_000000")
            checkpoint.mkdir(parents=True, exist_ok=True)
            history = [{"epoch": epoch, "val_metric": loss} for epoch, loss in enumerate(losses)]
            torch.save({"history": history}, checkpoint / STATE_FILE)
            trial.run_metadata.checkpoint_manager.register_checkpoint(
                SimpleNamespace(checkpoint=ray.tune.Checkpoint(str(checkpoint), filesystem), metrics={}, index=0)
            )
        self.asha.on_trial_add(self.controller, trial)

    def report(self, name, epoch, loss):
        return self.asha.on_trial_result(self.controller, self.trials[name], {"epoch": epoch, "loss": loss})

    def recorded(self):
        return [(milestone, dict(recorded)) for milestone, recorded in self.asha._rungs() if recorded]


@pytest.fixture
def rungs(tmp_path):
    """A good trial that has passed the first rung, and a bad one that was stopped at it."""
    rungs = Rungs(tmp_path)
    for name, loss in (("good", 0.5), ("bad", 0.9)):
        rungs.add(name)
        assert rungs.report(name, 1, 1.0) == TrialScheduler.CONTINUE
        assert rungs.report(name, 2, loss) == (TrialScheduler.STOP if name == "bad" else TrialScheduler.CONTINUE)
    return rungs


BEFORE = [(2, {"good": -0.5, "bad": -0.9})]


def test_a_trial_that_was_stopped_is_stopped_again_by_the_next_driver(rungs, tmp_path):
    later = Rungs(tmp_path)
    later.add("good")
    later.add("bad")
    assert later.recorded() == BEFORE
    assert later.report("bad", 1, 1.0) == TrialScheduler.CONTINUE  # from an older checkpoint: up to where it was
    assert later.report("bad", 2, 0.9) == TrialScheduler.STOP
    later.add("next")
    assert later.report("next", 2, 0.8) == TrialScheduler.STOP


def test_trials_that_are_gone_judge_no_others(rungs, tmp_path):
    later = Rungs(tmp_path)
    later.add("new")
    assert later.recorded() == []
    assert later.report("new", 2, 2.0) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("damage", [b"", b'{"rungs": [[2, {"go', b"{}", b"[1]"])
def test_damaged_rungs_are_made_again_from_what_trials_have_reported(rungs, tmp_path, capsys, damage):
    (tmp_path / FILE).write_bytes(damage)
    later = Rungs(tmp_path)
    later.add("good", losses=[1.0, 1.0, 0.5, 0.4])
    later.add("bad", losses=[1.0, 1.0, 0.9])
    later.add("new")
    assert later.recorded() == BEFORE
    assert "are made again" in capsys.readouterr().err
    assert later.report("new", 2, 0.8) == TrialScheduler.STOP
    again = Rungs(tmp_path)
    again.add("bad")
    assert again.recorded() == [(2, {"bad": -0.9})]


def test_an_extended_search_goes_by_its_earlier_trials_too(tmp_path):
    earlier = {"old": kept_values({}, [{"epoch": epoch, "val_metric": 1 - epoch / 10} for epoch in range(5)], "min")}
    more = Rungs(tmp_path, earlier)
    more.add("new")
    assert more.recorded() == [(4, {"old": -0.6}), (2, {"old": -0.8})]
    assert more.report("new", 2, 0.85) == TrialScheduler.STOP


def test_a_rung_holds_what_was_kept_by_then():
    history = [{"epoch": epoch, "val_metric": value} for epoch, value in enumerate([3.0, 1.0, 2.0])]
    assert kept_values({}, history, "min") == [(0, 3.0), (1, 1.0), (2, 1.0)]
    assert kept_values({}, history, "max") == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert kept_values({"keep": "last"}, history, "min") == [(0, 3.0), (1, 1.0), (2, 2.0)]


def tracked(folder, *names):
    """What tracks a search, once trials of it have ended."""
    space = SearchSpace(name="x", parameters={"freeze_depth": "readout", "lr": {"choice": [0.1, 0.2]}})
    tracking = Tracking(METRICS["mae"], f"{folder}/search", {}, space)
    ended = [trial_of(name, {"lr": 0.1, "epochs": 3}, {"kept_val_mae": 1.0, "failed": "so"}) for name in names]
    tracking.on_experiment_end(ended)
    return tracking


def in_study(folder):
    address = URL.create("sqlite", database=f"{folder}/optuna.db").render_as_string()
    return {trial.user_attrs["trial"] for trial in optuna.load_study(storage=address, study_name="search").trials}


@pytest.mark.parametrize("name", ["what?x=1", "a#b", "50%41", "{x}", "grün"])
def test_a_study_is_in_the_folder_of_its_sweep(tmp_path, name):
    tracked(tmp_path / name, "a")
    assert (tmp_path / name / "optuna.db").exists()
    assert in_study(tmp_path / name) == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("damage", ["cut", "within", "text", "foreign"])
def test_a_damaged_study_is_moved_aside_and_made_anew(tmp_path, damage, capsys):
    tracked(tmp_path, "a", "b")
    file = tmp_path / "optuna.db"
    content = file.read_bytes()
    if damage == "foreign":
        file.unlink()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE studies (name TEXT)")
    else:
        middle = content[:9000] + b"x" * 31000 + content[40000:]
        file.write_bytes({"cut": content[:5000], "within": middle, "text": b"not a database\n" * 50}[damage])
    before = file.read_bytes()
    tracking = tracked(tmp_path, "a", "b", "c")
    assert in_study(tmp_path) == {"a", "b", "c"}
    moved = (tmp_path / "optuna.db.damaged").read_bytes()
    assert moved == before or damage == "foreign"  # Optuna has put tables beside it before it noticed
    assert "optuna.db is damaged or not a study of this sweep" in capsys.readouterr().err
    tracking.on_experiment_end([trial_of("d", {"lr": 0.2, "epochs": 3}, {"failed": "so"})])
    assert in_study(tmp_path) == {"a", "b", "c", "d"}


def test_a_study_that_cannot_be_written_ends_no_search_and_is_left(tmp_path):
    (tmp_path / "optuna.db").mkdir()
    tracked(tmp_path, "a")
    assert (tmp_path / "optuna.db").is_dir()


@pytest.mark.parametrize(
    "name", ["a?b", "a#b", "a%41", "a/b", "../a", ".", "..", ".a", "", " a", "a ", "a\nb", "a\x1b", "-a"]
)
def test_a_name_that_means_something_else_in_an_address_is_refused(name):
    with pytest.raises(SweepError, match="expected the name of a folder in results"):
        refuse_name("--name", name, "results")


@pytest.mark.parametrize("name", ["a", "A.b_c-d+e", "lr=0.01", "of today", "_x", "2026", "größer"])
def test_a_plain_name_is_taken(name):
    refuse_name("--resume", name, "results")


def test_the_name_of_a_sweep_comes_of_its_task_and_space():
    assert [own_name(name) for name in ("demo", "/data/my(new) #1.csv", "???")] == ["demo", "mynew1", "sweep"]


@pytest.mark.parametrize(
    ("text", "share"), [("0", 0), ("0.25", 0.25), ("0.0001", 0.0001), ("1", 1), ("2", 2), ("auto", 1)]
)
def test_a_share_of_a_gpu_is_what_ray_can_count(text, share):
    assert gpu_share(text) == share


@pytest.mark.parametrize("text", ["0.00001", "0.33333", "1.5", "-1", "nan", "inf", "all"])
def test_another_share_of_a_gpu_is_refused(text):
    with pytest.raises(SweepError, match="expected auto, a share"):
        gpu_share(text)


SMALL = """\
model: composition_network
num_samples: 4
grace_epochs: 1
reduction_factor: 2
parameters: {epochs: 4, width: 16, rounds: 1, head_width: 16, head_depth: 1, lr: {loguniform: [0.0005, 0.01]}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_session):
    """The folder of a sweep that has ended, and its trials, choice and scores."""
    folder = prepare(tmp_path_factory.mktemp("search"), every=16, small=SMALL)
    run_here(folder, *new(folder, "done"), "--folds=0")
    return folder, outcome((folder / "results/done/results.json").read_text())


def checkpoints(folder, search):
    """States in the last checkpoints of a search's trials, by trial."""
    trials = sorted((folder / "results/done").glob(f"{search}/trial_*"))
    return {trial.name: max(trial.glob(f"checkpoint_*/{STATE_FILE}")) for trial in trials if trial.is_dir()}


@pytest.mark.parametrize(
    ("search", "damage"),
    [
        ("search_fold_0", "cut"),
        ("evaluate-*", "gone"),
        *whole_only(("search_fold_0", "gone"), ("search_fold_0", "all"), ("evaluate-*", "cut"), ("evaluate-*", "all")),
    ],
)
def test_a_damaged_checkpoint_costs_its_trial_alone(finished, search, damage):
    folder, expected = finished
    before = checkpoints(folder, search)
    times = {name: file.stat().st_mtime_ns for name, file in before.items()}
    hit = next(iter(before))
    for file in [before[hit], *(before[hit].parent.parent.glob(f"*/{STATE_FILE}") if damage == "all" else [])]:
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-300])
    said = " ".join(run_here(folder, "--resume=done").split())
    assert "is gone or damaged; its trial goes on" in said
    assert outcome((folder / "results/done/results.json").read_text()) == expected
    after = checkpoints(folder, search)
    assert set(after) == set(before)
    assert {name for name, file in after.items() if file.stat().st_mtime_ns != times[name]} == {hit}


@pytest.mark.parametrize("damage", [b"", *whole_only(b"gone")])
def test_damaged_rungs_of_a_sweep_that_has_ended_change_nothing(finished, damage):
    folder, expected = finished
    file = folder / f"results/done/search_fold_0/{FILE}"
    if damage == b"gone":
        file.unlink()
    else:
        file.write_bytes(damage)
    run_here(folder, "--resume=done")
    assert outcome((folder / "results/done/results.json").read_text()) == expected
