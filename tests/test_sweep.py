"""The sweep as a user runs it: the real command, real Ray, real crystals; killed and resumed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
COLUMNS = ["epoch", "train_loss", "val_loss", "val_mae", "val_mae_current", "lr", "seconds", "fingerprint"]
SPACE = """\
description: small, for tests
num_samples: 4
grace_epochs: 4
parameters:
  freeze_depth: readout
  lr: {loguniform: [0.0005, 0.01]}
  epochs: {choice: [12, 24]}
  loss: huber
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small space and 120 ids of the demo, and the caches of all sweeps of this module."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(SPACE)
    ids = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet", columns=["id"])["id"]
    (folder / "ids.txt").write_text("\n".join(ids.iloc[::8]))
    return folder


def command(folder, *arguments):
    """The command line of a sweep that keeps everything under `folder`."""
    return [
        sys.executable,
        "tune/run_sweep.py",
        f"--storage={folder}/results",
        *arguments,
    ]


def environment(folder):
    """Caches of its own, so that no test meets what another run has left."""
    return {**os.environ, "MATSWEEP_CACHE": str(folder / "cache")}


def first_time(folder, name):
    """Arguments of a new sweep with one trial at a time, so that their order is the same every time."""
    return [f"--space={folder}/small.yaml", f"--ids={folder}/ids.txt", f"--name={name}", "--max-concurrent=1"]


def run(folder, *arguments, expect=0):
    """Run the command to its end and return what it printed."""
    done = subprocess.run(
        command(folder, *arguments),
        cwd=REPOSITORY,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted sweep on two folds with two seeds: its folder and its output."""
    output = run(folder, *first_time(folder, "whole"), "--folds=0,3", "--seeds=2")
    return folder / "results/whole", output


def test_results_hold_no_empty_value(whole):
    results = json.loads((whole[0] / "results.json").read_text())

    def check(value):
        assert value is not None
        if isinstance(value, float):
            assert np.isfinite(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            check(item)

    check(results)
    assert len(results["trials"]) == 4
    assert results["data"]["sha256"]
    assert results["record"]["versions"]["chgnet"] == "0.4.2"
    assert any("not DFT" in note for note in results["notes"])
    assert "searched on fold(s) [0]" in results["protocol"]


def test_predictions_cover_each_test_crystal_once_and_score_as_reported(whole, folder):
    results = json.loads((whole[0] / "results.json").read_text())
    ids = (folder / "ids.txt").read_text().split()
    seen = []
    for position, fold in enumerate([0, 3]):
        table = pd.read_csv(whole[0] / f"seed_0/preds_fold_{fold}.csv")
        assert list(table.columns) == ["id", "composition", "y_true", "y_pred", "abs_error"]
        assert table["abs_error"].mean() == pytest.approx(results["seeds"][0]["folds"][position]["mae"])
        seen += list(table["id"])
    assert len(seen) == len(set(seen))
    assert set(seen) < set(ids)


def test_every_trial_leaves_a_history_of_consecutive_epochs(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    for trial in results["trials"]:
        history = pd.read_csv(whole[0] / f"search_fold_0/trial_{trial['trial']}/history_fold_0.csv")
        assert list(history.columns) == COLUMNS
        assert list(history["epoch"]) == list(range(trial["epochs_done"] + 1))
        assert history["val_mae"].min() == pytest.approx(trial["kept_val_mae"])
    ranked = [trial["kept_val_mae"] for trial in results["trials"]]
    assert ranked == sorted(ranked)


def test_the_chosen_config_gives_in_the_end_what_it_gave_in_the_search(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    best = results["trials"][0]
    searched = pd.read_csv(whole[0] / f"search_fold_0/trial_{best['trial']}/history_fold_0.csv")
    chosen = pd.read_csv(whole[0] / "seed_0/history_fold_0.csv")
    common = min(len(searched), len(chosen))
    pd.testing.assert_frame_equal(
        searched.drop(columns="seconds").iloc[:common], chosen.drop(columns="seconds").iloc[:common]
    )


def test_the_ensemble_is_the_mean_of_the_seeds(whole):
    members = [pd.read_csv(whole[0] / f"seed_{seed}/preds_fold_0.csv") for seed in (0, 1)]
    together = pd.read_csv(whole[0] / "ensemble/preds_fold_0.csv")
    np.testing.assert_allclose(together["y_pred"], (members[0]["y_pred"] + members[1]["y_pred"]) / 2)
    assert (members[0]["y_pred"] != members[1]["y_pred"]).any()


def test_a_model_file_predicts_with_models_alone(whole):
    """In a process that never imports Ray or tune, on structures that pymatgen built."""
    script = """
import sys
import pandas as pd
from pymatgen.core import Structure
from models.fitted import load_model
model, table, demo = sys.argv[1:]
table = pd.read_csv(table).set_index("id")["y_pred"]
rows = pd.read_parquet(demo).set_index("id").loc[table.index[:8]]
structures = [
    Structure(r.lattice.reshape(3, 3), r.numbers, r.frac_coords.reshape(-1, 3)) for r in rows.itertuples()
]
worst = abs(load_model(model).predict(structures) - table.iloc[:8].to_numpy()).max()
assert worst < 2e-5, worst
assert "ray" not in sys.modules and "tune" not in sys.modules
"""
    done = subprocess.run(
        [
            sys.executable, "-c", script, whole[0] / "seed_0/model_fold_0.pth", whole[0] / "seed_0/preds_fold_0.csv",
            REPOSITORY / "data/demo/demo.parquet",
        ],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_tensorboard_shows_the_best_value(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    results = json.loads((whole[0] / "results.json").read_text())
    for trial in results["trials"]:
        events = EventAccumulator(str(whole[0] / f"search_fold_0/trial_{trial['trial']}"))
        events.Reload()
        assert len(events.Scalars("val_mae")) == trial["epochs_done"] + 1
        shown = events.Scalars("hparam/kept_val_mae")[-1].value
        assert shown == pytest.approx(trial["kept_val_mae"], rel=1e-5)
        content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert hparams["lr"].number_value == pytest.approx(trial["config"]["lr"])


def test_the_command_says_where_everything_is_and_that_labels_are_a_models(whole):
    path, output = whole
    assert "tensorboard --logdir" in output
    assert str(path) in output
    assert "not DFT" in output
    assert "not DFT" in (path / "RESULTS.md").read_text()


def test_a_taken_name_is_refused(whole, folder):
    output = run(folder, *first_time(folder, "whole"), expect=1)
    assert "--resume it, or choose another --name" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_goes_on_where_it_was(folder, whole, stop):
    """kill -9, or Ctrl-C, in the middle of the search; then --resume gives what the whole sweep gave."""
    name = f"stopped-by-{stop.name}"
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        driver = subprocess.Popen(
            command(folder, *first_time(folder, name), "--folds=0,3", "--seeds=2"),
            cwd=REPOSITORY,
            env=environment(folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A test run in the background ignores Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        )
    deadline = time.monotonic() + 300
    while log.read_text().count("search fold 0:") < 2:
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    time.sleep(1.2)  # one snapshot of Ray's
    os.kill(driver.pid, stop)
    code = driver.wait(timeout=120)
    assert not (folder / f"results/{name}/RESULTS.md").exists()
    if stop == signal.SIGINT:
        assert code == 130
        assert f"--resume {name}" in log.read_text()
    output = run(folder, f"--resume={name}")
    before, after = (json.loads((folder / f"results/{one}/results.json").read_text()) for one in ("whole", name))
    assert after["trials"] == [
        {**trial, "trial": other["trial"]} for trial, other in zip(before["trials"], after["trials"], strict=True)
    ]
    assert after["chosen"] == before["chosen"]
    assert after["seeds"] == before["seeds"]
    again = output.count("search fold 0:")
    assert again <= 3, f"more than the running and the coming trials were run after the stop:\n{output}"


def test_the_same_seed_gives_the_same_predictions(folder, whole):
    run(folder, *first_time(folder, "again"), "--folds=3", "--seeds=2")
    for seed in (0, 1):
        first, second = (
            (folder / f"results/{name}/seed_{seed}/preds_fold_3.csv").read_text() for name in ("whole", "again")
        )
        assert first == second


def test_a_failing_trial_is_reported_and_the_sweep_goes_on(folder):
    """A learning rate that blows up in some trials costs those trials and nothing else."""
    (folder / "wild.yaml").write_text(
        "num_samples: 5\ngrace_epochs: 2\nparameters:\n  freeze_depth: full\n  epochs: 2\n  loss: mse\n"
        "  lr: {choice: [0.0001, 1.0]}\n  weight_decay: 10\n"
    )
    output = run(folder, f"--space={folder}/wild.yaml", f"--ids={folder}/ids.txt", "--name=wild", "--folds=0")
    results = json.loads((folder / "results/wild/results.json").read_text())
    assert len(results["trials"]) == 5
    failed = [trial for trial in results["trials"] if "failed" in trial]
    assert 0 < len(failed) < 5
    assert all("after epoch" in trial["failed"] or "in epoch" in trial["failed"] for trial in failed)
    assert all(trial["config"]["lr"] == 1 for trial in failed)
    assert "failed: " in (folder / "results/wild/RESULTS.md").read_text()
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def own_data(folder):
    """Files of a user's own in Matbench's layout: a boolean, and energies per cell, for a quarter of the demo."""
    from pymatgen.core import Structure

    rows = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet").iloc[::4]
    structures = [
        Structure(row.lattice.reshape(3, 3), row.numbers, row.frac_coords.reshape(-1, 3)) for row in rows.itertuples()
    ]
    for name, values in (
        ("is_stable", (rows["e_form"] < rows["e_form"].median()).tolist()),
        ("e_cell", [e * len(s) for e, s in zip(rows["e_form"], structures, strict=True)]),
    ):
        table = {
            "index": list(range(len(rows))),
            "columns": ["structure", name],
            "data": [[s.as_dict(), v] for s, v in zip(structures, values, strict=True)],
        }
        with gzip.open(folder / f"{name}.json.gz", "wt") as file:
            json.dump(table, file)
    return folder


def test_classification_with_one_search_a_fold(own_data):
    arguments = ["--folds=1,4", "--search-folds=1,4", "--num-samples=2"]
    run(
        own_data, f"--space={own_data}/small.yaml", f"--task={own_data}/is_stable.json.gz", "--name=classes", *arguments
    )
    results = json.loads((own_data / "results/classes/results.json").read_text())
    assert results["protocol"].startswith("nested: one search per fold")
    assert [(trial["search_fold"], trial["rank"]) for trial in results["trials"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert {chosen["config"]["loss"] for chosen in results["chosen"]} == {"cross_entropy"}
    for trial, chosen in zip(results["trials"][::2], results["chosen"], strict=True):
        assert chosen["fold"] == trial["search_fold"]
        assert chosen["config"]["lr"] == trial["config"]["lr"]
        assert trial["kept_val_rocauc"] >= 0.5
    predicted = pd.read_csv(own_data / "results/classes/seed_0/preds_fold_1.csv")["y_pred"]
    assert predicted.between(0, 1).all()
    assert set(results["seeds"][0]["mean"]) == {"rocauc", "accuracy"}


def test_energies_declared_on_the_wrong_scale_are_refused_before_any_trial(own_data):
    arguments = [f"--task={own_data}/e_cell.json.gz", "--quantity=energy_per_atom", "--name=wrong"]
    output = run(own_data, f"--space={own_data}/small.yaml", *arguments, expect=1)
    assert "TargetScaleError" in output
    assert "search fold" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--space=head_finetun"], "choose one of"),
        (["--task=matbench_mp_eform"], "matbench_mp_e_form"),
        (["--folds=7"], "0 to 4"),
        (["--resume=nothing"], "no sweep 'nothing'"),
        (["--task=demo", "--quantity=other"], "quantity"),
        (["--cpus-per-trial=4096"], "lower --cpus-per-trial"),
        (["--gpus-per-trial=0.25"], "lower --gpus-per-trial"),
        (["--space=pretrained", "--seeds=3"], "trains nothing"),
        (["--resume=whole", "--num-samples=3"], "leave out --num-samples"),
        (["--storage=/dev/null/x"], "NotADirectoryError"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(folder, arguments, expected):
    output = run(folder, *arguments, expect=1)
    assert expected in output
    assert "Traceback" not in output


def test_help_names_every_way_to_use_it():
    done = subprocess.run(
        [sys.executable, "tune/run_sweep.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for option in ("--space", "--task", "--ids", "--search-folds", "--folds", "--seeds", "--resume", "--storage"):
        assert option in done.stdout
