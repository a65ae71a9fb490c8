"""Sweeps on formulas alone: the real command on a table of compositions, and what a model of structures says to it."""

from __future__ import annotations

import json
import re

import numpy as np
import optuna
import pandas as pd
import pytest
from model_cases import one_thread
from page_text import text_of
from pymatgen.core import Composition
from sweeps import DEMO, run, run_here
from typer.testing import CliRunner

from data.crystals.compositions import parse_formulas
from models.crystals.composition.model import COMPOSITION_NETWORK
from models.crystals.linear import RIDGE
from models.crystals.rows import CrystalRows
from models.fitted import load_model
from models.model import TrainingPart
from tune.run_sweep import app
from tune.spaces.space import load_space

WEIGHTS = {"Li": -1.0, "Na": -1.5, "Mg": -2.0, "Al": 0.5, "Si": 1.0, "O": -3.0, "S": 2.0, "Cl": 0.0}
SPACE = """\
description: small, for tests
model: composition_network
parameters: {epochs: 4, batch_size: 16, lr: 0.003, width: 16, rounds: 1, head_width: 16, head_depth: 1}
"""
BRIEF = '''\
"""The network on compositions with another default, which spares a test 80 epochs a trial."""

from dataclasses import replace

from pydantic import Field

from models.crystals.composition.model import COMPOSITION_NETWORK


class BriefConfig(COMPOSITION_NETWORK.config):
    epochs: int = Field(default=20, ge=0)


MODEL = replace(COMPOSITION_NETWORK, name="brief", config=BriefConfig)
'''
LOSSES = """\
num_samples: 5
grace_epochs: 3
reduction_factor: 2
model: brief.py
parameters:
  lr: {loguniform: [0.0001, 0.01]}
  head_width: {choice: [8, 16]}
  loss: {choice: [mae, huber]}
  batch_size: 16
  width: 16
  rounds: 1
  head_depth: 1
"""


def target_of(formula: str) -> float:
    """Linear in the fractions of the elements."""
    return sum(share * WEIGHTS[str(element)] for element, share in Composition(formula).fractional_composition.items())


def two_folds(folder, *arguments):
    """Arguments of a sweep of two folds that keeps everything under a folder."""
    return [
        f"--task={folder}/salts.csv",
        f"--storage={folder}/results",
        "--folds=0,3",
        "--max-concurrent=1",
        *arguments,
    ]


def results_of(folder, name):
    return json.loads((folder / "results" / name / "results.json").read_text())


def printed(done, capsys):
    return " ".join((done.output + capsys.readouterr().err).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 84 formulas in a table; one cannot be read."""
    folder = tmp_path_factory.mktemp("compositions")
    metals, others = ["Li", "Na", "Mg", "Al", "Si"], ["O", "S", "Cl"]
    formulas = [f"{a}{n}{b}{m}" for a in metals for b in others for n, m in ((1, 1), (1, 2), (2, 3), (3, 1), (4, 3))]
    formulas += ["LiAlO2", "NaAlO2", "Mg2SiO4", "Al2SiO5", "NaAlSi3O8", "LiMgCl3", "Na2SiO3", "MgAl2S4"]
    table = pd.DataFrame({"composition": formulas, "y": [target_of(formula) for formula in formulas]})
    table.loc[len(table)] = ["Qq3", 1.0]
    table.to_csv(folder / "salts.csv", index=False)
    (folder / "small.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def network(folder):
    """A network on the formulas by the real command, in a process of its own: its folder and what it printed."""
    output = run(folder, *two_folds(folder, f"--space={folder}/small.yaml", "--name=network"))
    return folder / "results" / "network", output


def test_a_network_on_compositions_leaves_what_every_sweep_leaves(network, folder):
    path, output = network
    results = results_of(folder, "network")
    assert results["model"] == {"name": "composition_network"}
    assert results["reference"]["title"] == "reference: linear in the element fractions"
    assert results["data"]["graph_cache_key"] == "none"
    assert any(note.endswith("Compositions only.") for note in results["notes"])
    assert not any("pretrained" in note for note in results["notes"])  # CHGNet has no part in it
    assert {check["lever"] for check in results["levers"]} >= {"epochs", "lr", "width"}
    for fold in (0, 3):
        for kind, prefix in (("test", "preds"), ("validation", "val")):
            table = pd.read_csv(path / f"seed_0/{prefix}_fold_{fold}.csv")
            assert np.isfinite(table["y_pred"]).all(), kind
        history = pd.read_csv(path / f"seed_0/history_fold_{fold}.csv")
        assert list(history["epoch"]) == [0, 1, 2, 3, 4]
        assert history["val_mae"].is_unique  # it trains
    assert "Everything is in" in output
    assert "Traceback" not in output
    assert not (folder / "cache/graphs").exists()  # nothing was converted


def test_a_formula_that_cannot_be_read_takes_part_in_nothing(network):
    quarantine = pd.read_csv(network[0] / "quarantine.csv")
    assert len(quarantine) == 1
    assert "Qq" in quarantine["reason"][0]


def test_its_model_file_predicts_structures(network):
    """What was trained on formulas predicts a crystal by its formula."""
    from made_crystals import rock_salt

    table = pd.read_csv(network[0] / "seed_0/preds_fold_0.csv")
    row = table[table["composition"].isin(["NaCl", "LiCl", "MgO", "MgS", "LiO", "NaO", "NaS", "AlCl"])].iloc[0]
    elements = [str(element) for element in Composition(row["composition"])]
    salt = rock_salt(*elements, 5.5)
    model = load_model(network[0] / "seed_0/model_fold_0.pth")
    assert model.about["task"] == "salts"
    np.testing.assert_allclose(model.predict([salt]), row["y_pred"], rtol=1e-5)


@pytest.fixture(scope="module")
def classes(folder, ray_session):
    """A search for classes whose space leaves epochs at their default and asks for losses of a regression."""
    alkali = "Li", "Na", "K", "Rb"
    # Alkali metals with chalcogens, and other metals with halogens: no sum over elements tells that.
    rows = [
        (f"{a}{n}{b}{m}", (a in alkali) == (b in ("O", "S")))
        for a in (*alkali, "Mg", "Ca", "Al", "Zn")
        for b in ("O", "S", "Cl", "F")
        for n, m in ((1, 1), (1, 2), (2, 3), (3, 1), (4, 3))
    ]
    pd.DataFrame(rows, columns=["composition", "y"]).to_csv(folder / "pairs.csv", index=False)
    (folder / "brief.py").write_text(BRIEF)
    (folder / "losses.yaml").write_text(LOSSES)
    arguments = [f"--task={folder}/pairs.csv", f"--space={folder}/losses.yaml", "--name=pairs", "--folds=0"]
    output = run_here(folder, *arguments, "--max-concurrent=1")
    return folder / "results/pairs", output


@pytest.mark.whole
def test_trials_that_asha_stopped_are_told_though_the_space_sets_no_epochs(classes):
    path, output = classes
    trials = json.loads((path / "results.json").read_text())["trials"]
    assert {trial["epochs"] for trial in trials} == {20}  # the default of the config
    stopped = {trial["trial"] for trial in trials if trial["epochs_done"] < 20}
    assert 0 < len(stopped) < len(trials)
    assert output.count("stopped by ASHA") == len(stopped)
    for trial in trials:
        assert f"{trial['epochs_done']} of 20" in output
    study = optuna.load_study(storage=f"sqlite:///{path}/optuna.db", study_name="search_fold_0")
    assert {one.user_attrs["trial"] for one in study.trials if one.state.name == "PRUNED"} == stopped
    assert f"ASHA stopped {len(stopped)} of {len(trials)} trials" in text_of(path)


@pytest.mark.whole
def test_results_of_a_classification_have_the_space_that_was_searched(classes):
    path, _ = classes
    results = json.loads((path / "results.json").read_text())
    assert results["options"]["space"]["parameters"]["loss"] == "cross_entropy"
    assert results["options"]["searched"] == ["head_width", "lr"]
    text = text_of(path)
    assert f"{len(results['trials'])} trials of the search on fold 0 over 2 fields" in text
    assert "huber" not in text
    assert re.search("loss ?cross_entropy ?that of every classification", text)


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
def test_ridge_finds_a_linear_target_and_the_dummy_is_the_mean(folder, capsys):
    for name in ("ridge", "dummy"):
        done = CliRunner().invoke(app, two_folds(folder, f"--space={name}", f"--name={name}", "--seed=4"))
        assert done.exit_code == 0, printed(done, capsys)
        results = results_of(folder, name)
        assert results["model"] == {"name": name}
        assert results["data"]["n_quarantined"] == 1
        assert [one["config"]["seed"] for one in results["chosen"]] == [4, 4]
    ridge, dummy = (results_of(folder, name)["seeds"][0]["mean"]["mae"] for name in ("ridge", "dummy"))
    assert ridge < 0.1 < dummy
    tables = [pd.read_csv(folder / f"results/ridge/{member}/preds_fold_0.csv") for member in ("reference", "seed_4")]
    pd.testing.assert_frame_equal(*tables)  # ridge is the reference of others, and its own
    known = pd.read_csv(folder / "salts.csv").set_index("composition")["y"].iloc[:-1]
    tested = pd.read_csv(folder / "results/dummy/seed_4/preds_fold_0.csv")
    assert tested["y_pred"].nunique() <= 2  # the formula that cannot be read gets the mean of all known labels
    assert known.min() < tested["y_pred"].iloc[0] < known.max()


def test_a_model_of_structures_is_refused_with_what_to_do(folder, ray_session, capsys):
    done = CliRunner().invoke(app, two_folds(folder, "--space=head_finetune", "--name=structures"))
    assert done.exit_code == 1
    said = printed(done, capsys)
    assert "SweepError: model chgnet reads structures, and salts as given has compositions only" in said
    assert "choose a space of a model that reads compositions, such as composition_network" in said
    assert not (folder / "results/structures/results.json").exists()


def kept_error(model, fields, rows, part) -> float:
    """On validation, of a training without Ray."""
    with one_thread():
        run = model.start(model.config(**fields), rows, part, "cpu")
        return [epoch.val_metric for epoch in run.epochs()][-1]


def test_the_shipped_space_takes_enough_steps_on_a_small_table_to_be_better_than_ridge():
    table = pd.read_parquet(DEMO).sample(150, random_state=0)
    read = parse_formulas(table["formula"].tolist())
    part = TrainingPart(table["e_form"].to_numpy(), np.arange(110), np.arange(110, 150), "regression", "other")
    rows = CrystalRows(read.fractions, read.n_atoms)
    fields = load_space("composition").parameters
    assert kept_error(COMPOSITION_NETWORK, fields, rows, part) < kept_error(RIDGE, {}, rows, part)


def test_least_steps_makes_batches_smaller_where_rows_are_few_and_nowhere_else():
    rng = np.random.default_rng(0)
    rows = CrystalRows(rng.dirichlet(np.ones(94), size=50).astype(np.float32), np.ones(50))
    part = TrainingPart(rng.normal(size=50), np.arange(40), np.arange(40, 50), "regression", "other")
    small = {"epochs": 2, "width": 8, "rounds": 1, "head_width": 8, "head_depth": 1}
    errors = {
        (batch, steps): kept_error(COMPOSITION_NETWORK, small | {"batch_size": batch, "least_steps": steps}, rows, part)
        for batch, steps in ((64, 8), (5, 1), (64, 1), (4, 8), (4, 1), (64, 100), (1, 1))
    }
    assert errors[64, 8] == errors[5, 1] != errors[64, 1]
    assert errors[4, 8] == errors[4, 1]  # which has ten steps anyway
    assert errors[64, 100] == errors[1, 1]  # no batch is empty
