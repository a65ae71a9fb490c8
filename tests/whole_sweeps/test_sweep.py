"""The sweep as a user runs it: the real command, real Ray, real crystals; killed and resumed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from pymatgen.core import Structure
from s3_server import s3_server
from sweeps import DEMO, REPOSITORY, command, environment, new, outcome, prepare, run, run_here, start
from typer.testing import CliRunner

from data.stores.storage import file_names, open_folder, read_whole
from models.fitted import ModelFileError, load_model
from models.predict import app as predict_app
from tune.run_sweep import app
from tune.runs import load_sweep

COLUMNS = ["epoch", "train_loss", "val_loss", "val_mae", "val_mae_current", "lr", "seconds", "fingerprint", "parts"]
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
BRIEF = """\
model: composition_network
num_samples: 2
grace_epochs: 1
parameters: {epochs: 3, width: 16, rounds: 1, head_width: 16, head_depth: 1, lr: {loguniform: [0.001, 0.01]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small space and 120 ids of the demo, and the caches of all sweeps of this module."""
    return prepare(tmp_path_factory.mktemp("sweep"), every=8, small=SPACE)


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted sweep on two folds with two seeds: its folder and its output."""
    output = run(folder, *new(folder, "whole"), "--folds=0,3", "--seeds=2")
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
    seen, largest = [], []
    for position, fold in enumerate([0, 3]):
        table = pd.read_csv(whole[0] / f"seed_0/preds_fold_{fold}.csv")
        assert list(table.columns) == ["id", "composition", "y_true", "y_pred", "abs_error", "trust", "trusted"]
        assert table["abs_error"].mean() == pytest.approx(results["seeds"][0]["folds"][position]["mae"])
        seen += list(table["id"])
        largest.append(table["abs_error"].max())
    assert results["seeds"][0]["max_error"] == pytest.approx(max(largest))
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
            DEMO,
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

        images = events.Images("validation of the kept epoch")
        assert [image.step for image in images] == [trial["kept_epoch"]]
        assert images[0].encoded_image_string.startswith(b"\x89PNG")


def study_of(path, search="search_fold_0"):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.load_study(storage=f"sqlite:///{path}/optuna.db", study_name=search)


def test_the_search_is_an_optuna_study(whole):
    """What optuna-dashboard opens: every trial with its value, its curve, and whether ASHA stopped it."""
    results = json.loads((whole[0] / "results.json").read_text())
    study = study_of(whole[0])
    assert study.direction.name == "MINIMIZE"
    assert study.best_value == results["trials"][0]["kept_val_mae"]
    by_trial = {one.user_attrs["trial"]: one for one in study.trials}
    assert len(by_trial) == len(study.trials) == 4
    for trial in results["trials"]:
        shown = by_trial[trial["trial"]]
        assert shown.params == {field: trial["config"][field] for field in ("lr", "epochs")}
        assert shown.value == trial["kept_val_mae"]
        assert shown.intermediate_values[trial["kept_epoch"]] == trial["kept_val_mae"]
        assert shown.state.name == ("COMPLETE" if trial["epochs_done"] == trial["config"]["epochs"] else "PRUNED")


def test_a_notebook_has_trials_histories_and_predictions_as_tables(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    sweep = load_sweep(str(whole[0]))
    assert list(sweep.trials["kept_val_mae"]) == [trial["kept_val_mae"] for trial in results["trials"]]
    assert list(sweep.trials["config.lr"]) == [trial["config"]["lr"] for trial in results["trials"]]
    best = sweep.histories.groupby("trial")["val_mae"].min()
    assert best.to_dict() == pytest.approx({t["trial"]: t["kept_val_mae"] for t in results["trials"]})
    assert set(sweep.histories["member"].dropna()) == {"reference", "seed_0", "seed_1"}
    tested = sweep.predictions[sweep.predictions["part"] == "test"]
    mae = tested.groupby(["member", "fold"])["abs_error"].mean()
    for number, fold in enumerate((0, 3)):
        assert mae["ensemble", fold] == pytest.approx(results["ensemble"]["folds"][number]["mae"])
    assert sweep.predictions.loc[sweep.predictions["member"] == "ensemble", "std"].notna().all()


def demo_structures(ids):
    rows = pd.read_parquet(DEMO).set_index("id").loc[ids]
    return [Structure(r.lattice.reshape(3, 3), r.numbers, r.frac_coords.reshape(-1, 3)) for r in rows.itertuples()]


def test_a_sweeps_folder_is_a_model_that_predicts_as_its_ensemble_did(whole):
    table = pd.read_csv(whole[0] / "ensemble/preds_fold_3.csv").iloc[:6]
    model = load_model(whole[0], fold=3)
    found = model.predict_with_std(demo_structures(table["id"]))
    np.testing.assert_allclose(found.values, table["y_pred"], atol=2e-5)
    np.testing.assert_allclose(found.std, table["std"], atol=2e-5)
    one = load_model(whole[0] / "seed_1", fold=3).predict(demo_structures(table["id"]))
    np.testing.assert_allclose(one, pd.read_csv(whole[0] / "seed_1/preds_fold_3.csv")["y_pred"].iloc[:6], atol=2e-5)
    with pytest.raises(ModelFileError, match="fold 1"):
        load_model(whole[0], fold=1)
    with pytest.raises(ModelFileError, match="give a fold"):
        load_model(whole[0])


def test_an_ase_calculator_gives_the_energy_of_the_whole_cell(whole):
    from pymatgen.io.ase import AseAtomsAdaptor

    from models.crystals.ase_calculator import EnergyCalculator

    model = load_model(whole[0], fold=0)
    structure = demo_structures(pd.read_csv(whole[0] / "ensemble/preds_fold_0.csv")["id"].iloc[:1])[0]
    atoms = AseAtomsAdaptor.get_atoms(structure)
    atoms.calc = EnergyCalculator(model)
    assert atoms.get_potential_energy() == pytest.approx(model.predict([structure])[0] * len(structure), rel=1e-4)
    assert atoms.calc.results["energy_std"] > 0
    other = replace(model.members[0], about=model.about | {"quantity": "other", "target": "gap"})
    with pytest.raises(ValueError, match="gap"):
        EnergyCalculator(other)


def test_files_of_crystals_are_predicted_and_a_broken_one_costs_no_other(whole, tmp_path):
    table = pd.read_csv(whole[0] / "ensemble/preds_fold_0.csv").iloc[:3]
    for name, structure in zip("abc", demo_structures(table["id"]), strict=True):
        structure.to(tmp_path / f"{name}.cif", symprec=None, significant_figures=12)
    (tmp_path / "broken.cif").write_text("data_nothing\n")
    done = subprocess.run(
        [sys.executable, "models/predict.py", whole[0], *sorted(tmp_path.glob("*.cif")), "-o", tmp_path / "out.csv"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken.cif: not readable as CIF: no atoms in it" in done.stderr
    assert "eV/atom" in done.stderr
    assert "Traceback" not in done.stderr
    written = pd.read_csv(tmp_path / "out.csv")
    assert [Path(one).name for one in written["crystal"]] == ["a.cif", "b.cif", "c.cif"]
    np.testing.assert_allclose(written["prediction"], table["y_pred"], atol=2e-5)
    assert list(written.columns) == ["crystal", "formula", "prediction", "std", "trust", "trusted"]


def test_the_command_says_where_everything_is_and_that_labels_are_a_models(whole):
    path, output = whole
    assert "tensorboard --logdir" in output
    assert str(path) in output
    assert "not DFT" in output
    assert "not DFT" in (path / "RESULTS.md").read_text()


def test_a_taken_name_is_refused(whole, folder):
    output = run_here(folder, *new(folder, "whole"), expect=1)
    assert (
        f"choose another --name, or go on with it by `python tune/run_sweep.py --resume whole --storage {folder}"
        in output
    )
    assert "Traceback" not in output
    (folder / "results/average").mkdir()
    (folder / "results/average/results.json").write_text("{}")
    assert "choose another --name" in run_here(folder, *new(folder, "average"), expect=1)


@pytest.fixture(scope="module")
def bucket():
    """What processes need to know of an S3 server with a bucket."""
    with s3_server("bucket") as server:
        yield server.environment


@pytest.mark.parametrize(
    ("stop", "in_bucket"),
    [
        pytest.param(signal.SIGKILL, False, id="killed"),
        pytest.param(signal.SIGTERM, False, id="told to end", marks=pytest.mark.whole),
        pytest.param(signal.SIGKILL, True, id="killed, in a bucket", marks=pytest.mark.whole),
    ],
)
def test_a_stopped_sweep_goes_on_where_it_was(folder, whole, bucket, monkeypatch, stop, in_bucket):
    """kill -9, or SIGTERM, in the middle of the search; then --resume gives what the whole sweep gave."""
    for key, value in bucket.items():
        monkeypatch.setenv(key, value)
    name = f"stopped-by-{stop.name}"
    storage = "s3://bucket/results" if in_bucket else f"{folder}/results"
    places = [f"--storage={storage}", *(["--cache=s3://bucket/graphs"] if in_bucket else [])]
    log = folder / f"{name}.log"
    driver = start(folder, log, *new(folder, name), "--folds=0,3", "--seeds=2", *places)
    deadline = time.monotonic() + 300
    while log.read_text().count("search fold 0:") < 2:
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    time.sleep(1.2)  # one snapshot of Ray's
    os.kill(driver.pid, stop)
    if stop == signal.SIGTERM:  # a second one does not cut the end short
        os.kill(driver.pid, stop)
    code = driver.wait(timeout=120)
    filesystem, path = open_folder(f"{storage}/{name}")
    assert "RESULTS.md" not in file_names(filesystem, path)
    if stop == signal.SIGTERM:
        assert code == 143
        *_, last = log.read_text().splitlines()
        assert last == f"interrupted: go on with `python tune/run_sweep.py --resume {name} --storage {storage}`"
        assert "*** SIGTERM" not in log.read_text()  # as in a stack trace of Ray's in C++
    output = run(folder, f"--resume={name}", places[0])
    after = read_whole(filesystem, f"{path}/results.json")
    assert outcome(after) == outcome((whole[0] / "results.json").read_text())
    # Each trial once, also those that ended at the stop; of a sweep in a bucket beside where it was begun.
    shown = study_of(folder / "ray_results" / name if in_bucket else path).trials
    assert sorted(one.user_attrs["trial"] for one in shown) == sorted(
        trial["trial"] for trial in json.loads(after)["trials"]
    )
    again = output.count("search fold 0:")
    assert again <= 3, f"more than the running and the coming trials were run after the stop:\n{output}"


def run_in_terminal(folder, *arguments):
    """The same with a terminal to write to, 100 columns wide; returns all that went there."""
    ours, theirs = pty.openpty()
    driver = subprocess.Popen(
        command(folder, *arguments),
        cwd=REPOSITORY,
        env=environment(folder) | {"CI": "", "COLUMNS": "100", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what reading raises when nobody writes any more
        while more := os.read(ours, 65536):
            shown += more
    os.close(ours)
    assert driver.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.whole
def test_the_same_seed_gives_the_same_predictions(folder, whole):
    """The second time in a terminal, where a table is kept up to date."""
    shown = run_in_terminal(folder, *new(folder, "again"), "--folds=3", "--seeds=2")
    assert re.search(
        r"search fold 0: \d of 4 trials, best val mae 0\.\d+ \(trial \w+\), 0:\d\d, about \d:\d\d left", shown
    )
    assert re.search(r"\d+ of (12|24)", shown)
    assert shown.count("at epoch") == 0, "a line a trial is for those without a terminal"
    assert "search fold 0: 4/4" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor was not given back"
    for seed in (0, 1):
        first, second = (
            (folder / f"results/{name}/seed_{seed}/preds_fold_3.csv").read_text() for name in ("whole", "again")
        )
        assert first == second


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
def test_a_space_that_trains_nothing_fits_the_reference_it_names(folder):
    means = []
    for name in ("robust", "ridge"):
        parameters = f"freeze_depth: none, epochs: 0, reference: {name}"
        (folder / f"{name}.yaml").write_text(f"parameters: {{{parameters}}}\n")
        run_here(folder, *new(folder, name, name), "--folds=0")
        results = json.loads((folder / f"results/{name}/results.json").read_text())
        assert results["seeds"] == []
        means.append(results["reference"]["mean"]["mae"])
    assert means[0] != means[1]


@pytest.fixture(scope="module")
def own_data(folder):
    """Files of a user's own in Matbench's layout: a boolean, and energies per cell, for a quarter of the demo."""
    rows = pd.read_parquet(DEMO).iloc[::4]
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


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
def test_classification_with_one_search_a_fold(own_data):
    arguments = ["--folds=1,4", "--search-folds=1,4", "--num-samples=2"]
    where = [f"--task={own_data}/is_stable.json.gz", "--name=classes", "--max-concurrent=1"]
    (own_data / "brief.yaml").write_text(BRIEF)
    run_here(own_data, f"--space={own_data}/brief.yaml", *where, *arguments)
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


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
def test_results_say_what_the_scores_are_of_and_what_they_cannot_tell(folder):
    """Rows without a label, the quantity, folds in which training was no gain, seeds that do nothing."""
    rows = pd.read_parquet(DEMO).iloc[::40]
    data = [
        [Structure(row.lattice.reshape(3, 3), row.numbers, row.frac_coords.reshape(-1, 3)).as_dict(), row.e_form]
        for row in rows.itertuples()
    ]
    data[3][1] = None
    table = {"index": list(range(len(data))), "columns": ["structure", "energy"], "data": data}
    (folder / "energies.json").write_text(json.dumps(table))
    (folder / "useless.yaml").write_text("parameters: {freeze_depth: readout, lr: 0.5, epochs: 2, batch_size: 512}\n")
    space, task = f"--space={folder}/useless.yaml", f"--task={folder}/energies.json"
    output = run_here(folder, space, task, "--name=useless", "--quantity=energy_per_atom", "--folds=0,1", "--seeds=2")
    results = json.loads((folder / "results/useless/results.json").read_text())
    scored = results["data"]["n_scored"]
    assert scored == sum(fold["n_test"] for fold in results["reference"]["folds"])
    text = (folder / "results/useless/RESULTS.md").read_text()
    for sentence in (
        "taken for CHGNet's energy, as declared",
        "1 row was quarantined (quarantine.csv): neither trained on nor scored",
        "In fold(s) 0 (seed 0), 1 (seed 0), 0 (seed 1), 1 (seed 1) no epoch was better on validation",
        "All seeds train the same model",
    ):
        assert any(sentence in note for note in results["notes"])
        assert sentence in text
    assert f"n={len(data)}, {scored} of them scored." in text
    assert f"(n={len(data)}, {scored} of them scored)" in output
    assert scored < len(data)
    assert "- folds 0, 1: " in text
    Structure.from_dict(data[0][0]).to(folder / "first.cif")
    done = CliRunner().invoke(predict_app, [str(folder / "results/useless"), str(folder / "first.cif")])
    assert "All seeds predict the same: their std, 0, says nothing" in done.stderr


@pytest.mark.usefixtures("ray_session")
def test_energies_declared_on_the_wrong_scale_are_refused_before_any_trial(own_data):
    arguments = [f"--task={own_data}/e_cell.json.gz", "--quantity=energy_per_atom", "--name=wrong"]
    output = run_here(own_data, f"--space={own_data}/small.yaml", *arguments, expect=1)
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
        (["--name=../elsewhere"], "expected the name of a folder"),
        (["--track=wandb"], "make setup EXTRAS=dev,wandb"),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_wrong_arguments_end_in_a_sentence(folder, whole, arguments, expected):
    output = " ".join(run_here(folder, *arguments, expect=1).split())
    assert expected in output
    assert "Traceback" not in output


def test_help_names_every_way_to_use_it():
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    for option in ("--space", "--task", "--ids", "--search-folds", "--folds", "--seeds", "--resume", "--storage"):
        assert option in done.stdout
