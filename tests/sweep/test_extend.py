"""A finished sweep gets more trials, in a wider space if wanted; what was done stays."""

from __future__ import annotations

import json

import pytest
import yaml
from sweeps import new, prepare, run_here

from tune.errors import SweepError
from tune.records.folder import Folder
from tune.records.options import Batch, check_record, load_options
from tune.runs import load_sweep
from tune.spaces.space import SearchSpace, load_space
from tune.sweep.extend import changes, outside

# With a learning rate of 1 and this weight decay every step makes weights nine times as large, and forty of them inf.
FIXED = {"epochs": 2, "loss": "mse", "weight_decay": 10, "batch_size": 2, "width": 16, "rounds": 1}
MODEL = "composition_network"
NARROW = {**FIXED, "lr": {"choice": [0.0001, 0.0002, 0.0003]}}
WIDE = {**FIXED, "lr": {"choice": [0.0001, 0.0002, 0.0003, 1.0]}, "epochs": {"choice": [2, 3]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two spaces and 60 ids of the demo."""
    spaces = {
        name: yaml.safe_dump({"model": MODEL, "num_samples": 8, "grace_epochs": 2, "parameters": parameters})
        for name, parameters in (("narrow", NARROW), ("wide", WIDE))
    }
    return prepare(tmp_path_factory.mktemp("extend"), every=16, **spaces)


def run(folder, *arguments, expect=0):
    return " ".join(run_here(folder, *arguments, expect=expect).split())


@pytest.fixture(scope="module")
def steps(folder, ray_session):
    """Results of a sweep of three configs, and again after it was extended, after its failures were repeated."""
    path = folder / "results/grown/results.json"
    results, said = [], []
    for arguments in (
        [*new(folder, "grown", "narrow"), "--folds=0"],
        ["--extend=grown", "--num-samples=+4", f"--space={folder}/wide.yaml"],
        ["--extend=grown", "--only-failed"],
    ):
        said.append(run(folder, *arguments))
        results.append(json.loads(path.read_text()))
    return results, said


def by_id(results):
    return {trial["trial"]: trial | {"rank": 0} for trial in results["trials"]}


def test_no_config_is_tried_twice(steps):
    results, said = steps
    assert len(results[0]["trials"]) == 3  # of the eight that were asked for
    assert "all 3 configurations of the space were tried" in said[0]
    for one in results:
        configs = [json.dumps({"epochs": 2, **trial["config"]}, sort_keys=True) for trial in one["trials"]]
        assert len(set(configs)) == len(configs)


def test_trials_that_were_done_stay_as_they_are(steps):
    (before, after, _), said = steps
    assert len(after["trials"]) == 7
    for name, trial in by_id(before).items():
        assert by_id(after)[name] == trial | {"config": {"epochs": 2, **trial["config"]}}
    assert "3 trials are there, 0 of them failed" in said[1]
    assert "lr: choice [0.0001, 0.0002, 0.0003] -> choice [0.0001, 0.0002, 0.0003, 1.0]" in said[1]
    assert "epochs: 2 -> choice [2, 3]" in said[1]
    assert [batch["num_samples"] for batch in after["options"]["batches"]] == [8, 4]
    kept = [trial["kept_val_mae"] for trial in after["trials"] if "failed" not in trial]
    assert kept == sorted(kept)
    assert after["chosen"][0]["config"]["lr"] == after["trials"][0]["config"]["lr"]


def test_a_lever_that_came_with_the_wider_space_was_proven(steps):
    (before, after, _), _ = steps
    levers = [[(check["lever"], check["values"]) for check in one["levers"]] for one in (before, after)]
    assert ("epochs", [2, 3]) not in levers[0]
    assert ("epochs", [2, 3]) in levers[1]
    assert levers[1][: len(levers[0])] == levers[0]


def test_a_failing_trial_is_reported_and_the_sweep_goes_on(steps, folder):
    """A learning rate that blows up in some trials costs those trials and nothing else."""
    trials = steps[0][1]["trials"]
    failed = [trial for trial in trials if "failed" in trial]
    assert {trial["config"]["lr"] for trial in failed} == {1.0}
    assert all("after epoch" in trial["failed"] or "in epoch" in trial["failed"] for trial in failed)
    assert all(trial["kept_val_mae"] > 0 for trial in trials if trial not in failed)
    assert "failed: " in (folder / "results/grown/RESULTS.md").read_text()


def test_failed_trials_are_run_again_and_no_other(steps):
    (_, before, after), said = steps
    failed = [{name for name, trial in by_id(one).items() if "failed" in trial} for one in (before, after)]
    assert len(failed[0]) == len(failed[1]) > 0  # the same config fails again
    assert not failed[0] & failed[1]
    assert f"{len(failed[0])} of 7 trials failed and are run again" in said[2]
    assert set(by_id(before)) - failed[0] == set(by_id(after)) - failed[1]
    assert after["seeds"] == before["seeds"]


def test_readers_see_all_trials(steps, folder):
    sweep = load_sweep(str(folder / "results/grown"))
    assert len(sweep.trials) == 7
    assert set(sweep.histories["trial"].dropna()) >= {
        trial["trial"] for trial in steps[0][-1]["trials"] if "kept_val_mae" in trial
    }


def test_resumed_once_more_nothing_changes(steps, folder):
    run(folder, "--resume=grown")
    again = json.loads((folder / "results/grown/results.json").read_text())
    assert by_id(again) == by_id(steps[0][-1])
    assert again["seeds"] == steps[0][-1]["seeds"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--extend=nothing"], "no sweep 'nothing'"),
        (["--extend=grown", "--seeds=2"], "leave out --seeds"),
        (["--extend=grown", "--resume=grown"], "leave out --extend"),
        (["--extend=grown", "--only-failed", "--num-samples=2"], "leave out --num-samples and --space"),
        (["--extend=grown", "--space=full_finetune"], "leaves out what was tried"),
        (["--only-failed"], "goes with --extend"),
        (["--extend=../results/grown"], "--extend '../results/grown': expected the name of a folder"),
        (["--resume=../results/grown"], "--resume '../results/grown': expected the name of a folder"),
    ],
)
def test_what_cannot_be_extended_is_said(steps, folder, arguments, expected):
    assert expected in run(folder, *arguments, expect=1)


def test_another_version_of_the_code_is_refused(steps, folder):
    path = folder / "results/grown/sweep.json"
    text = path.read_text()
    try:
        path.write_text(text.replace(json.loads(text)["code_sha256"], "0" * 64))
        for option in ("--extend", "--resume"):
            assert "the code that trains has changed" in run(folder, f"{option}=grown", expect=1)
    finally:
        path.write_text(text)


def test_an_extension_that_another_one_has_overtaken_is_refused(steps, folder):
    """While it waited for data, for Ray or for the other one to end."""
    now = load_options(f"{folder}/results", "grown")
    before = now.model_copy(update={"batches": now.batches[:-1]})
    late = before.model_copy(update={"batches": [*before.batches, Batch(num_samples=5, space=now.space)]})
    data = json.loads((folder / "results/grown/sweep.json").read_text())["data_sha256"]
    for options in (now, now.model_copy(update={"batches": [*now.batches, late.batches[-1]]})):
        check_record(Folder(f"{folder}/results/grown"), options, data)
    with pytest.raises(SweepError, match="grown was extended by another command in the meantime"):
        check_record(Folder(f"{folder}/results/grown"), late, data)


def test_an_extension_that_was_killed_is_not_asked_for_twice(steps, folder):
    """Its results are those of before, its options are not."""
    path = folder / "results/grown/sweep.json"
    text = path.read_text()
    record = json.loads(text)
    record["options"]["batches"].append(record["options"]["batches"][-1])
    try:
        path.write_text(json.dumps(record))
        assert "First: `python tune/run_sweep.py --resume grown " in run(folder, "--extend=grown", expect=1)
    finally:
        path.write_text(text)


def test_an_extension_that_is_refused_leaves_the_sweep_as_it_was(steps, folder):
    inert = {**WIDE, "gradient_clip": {"choice": [1e9, 2e9, 1.0]}}  # no gradient is that long
    (folder / "inert.yaml").write_text(yaml.safe_dump({"model": MODEL, "grace_epochs": 2, "parameters": inert}))
    files = [folder / f"results/grown/{name}.json" for name in ("sweep", "results")]
    before = [file.read_text() for file in files]
    assert "lever gradient_clip does nothing" in run(folder, "--extend=grown", f"--space={folder}/inert.yaml", expect=1)
    assert [file.read_text() for file in files] == before


@pytest.mark.parametrize("content", ["", "{}", '{"options": {', "null", "[]"])
@pytest.mark.parametrize(
    ("name", "says"),
    [("results", "delete it, and going on with the sweep makes it again"), ("sweep", "put back a copy")],
)
def test_a_damaged_file_that_is_needed_is_named(steps, folder, name, says, content):
    path = folder / f"results/grown/{name}.json"
    text = path.read_text()
    try:
        path.write_text(content)
        said = run(folder, "--extend=grown", "--num-samples=1", expect=1)
        assert f"{name}.json is damaged: {says}" in said
    finally:
        path.write_text(text)


@pytest.mark.parametrize("content", ["", "{}", '[{"lever": "lr"', '[{"lever": "lr"}]'])
def test_a_damaged_file_that_can_be_made_again_counts_as_none(tmp_path, content):
    (tmp_path / "levers.json").write_text(content)
    assert Folder(str(tmp_path)).read_json("levers.json") is None


def test_levers_that_are_damaged_are_proven_again(steps, folder):
    path = folder / "results/grown/levers.json"
    known = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert "lever lr" in run(folder, "--resume=grown")
    assert {check["lever"] for check in json.loads(path.read_text())} == {check["lever"] for check in known}


def space(**parameters):
    return SearchSpace(name="x", parameters={"freeze_depth": "readout", **parameters})


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [
        ({"lr": {"loguniform": [1e-4, 1e-2]}}, {"lr": {"loguniform": [1e-5, 1e-2]}}, True),
        ({"lr": {"loguniform": [1e-4, 1e-2]}}, {"lr": {"loguniform": [1e-3, 1e-1]}}, False),
        ({"lr": {"loguniform": [1e-4, 1e-2]}}, {"lr": {"choice": [1e-4, 1e-2]}}, False),
        ({"lr": 1e-3}, {"lr": {"loguniform": [1e-4, 1e-2]}}, True),
        ({"lr": 1e-3}, {"lr": 2e-3}, False),
        ({"lr": {"choice": [1e-3, 2e-3]}}, {"lr": {"uniform": [1e-3, 1e-2]}}, True),
        ({"epochs": {"choice": [2, 40]}}, {"epochs": {"int": [1, 30]}}, False),
        ({}, {"loss": {"choice": ["mae", "huber"]}}, True),
        ({}, {"loss": {"choice": ["mse", "huber"]}}, False),
        ({"loss": {"choice": ["mse", "huber"]}}, {}, False),
        ({}, {"batch_size": 32}, True),  # which is the default
    ],
)
def test_a_wider_space_holds_all_of_the_old_one(old, new, fits):
    assert (outside(space(**old), space(**new)) == []) == fits


def test_a_space_does_not_differ_from_itself():
    assert changes(load_space("head_finetune"), load_space("head_finetune")) == []
