"""Levers that do nothing are refused before a sweep, or flagged after it; and a model in a file of one's own."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Lattice, Structure
from sweeps import run
from typer.testing import CliRunner

from models.fitted import ModelFileError, load_model
from models.registry import open_model
from tune.levers import inert_pairs
from tune.run_sweep import app
from tune.search import Outcome
from tune.space import SpaceError, load_space

NEIGHBOURS = '''\
"""The mean target of the training rows with the most similar compositions."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from models.config import ModelConfig
from models.model import Model, Prediction, fitted_once


class NeighboursConfig(ModelConfig):
    neighbours: int = Field(default=3, ge=1)
    never_read: float = 0.0
    placeholder: float = 0.0


@dataclass
class Neighbours:
    fractions: np.ndarray
    targets: np.ndarray
    neighbours: int

    def predict_rows(self, rows, which):
        distances = np.abs(rows.fractions[which][:, None] - self.fractions[None]).sum(axis=2)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : self.neighbours]
        return Prediction(self.targets[nearest].mean(axis=1))

    def content(self):
        known = {"fractions": torch.from_numpy(self.fractions), "targets": torch.from_numpy(self.targets)}
        return {**known, "neighbours": self.neighbours}


def fit(config, rows, part):
    _ = config.placeholder
    return Neighbours(rows.fractions[part.train], part.targets[part.train], config.neighbours)


def load(content, _device):
    return Neighbours(content["fractions"].numpy(), content["targets"].numpy(), content["neighbours"])


MODEL = Model("neighbours", NeighboursConfig, "compositions", fitted_once(fit), load)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table of 80 compositions, a model and spaces of it."""
    folder = tmp_path_factory.mktemp("levers")
    formulas = [f"{a}{n}{b}" for a in ("Li", "Na", "K", "Mg", "Al") for b in ("O", "S", "Cl", "F") for n in range(1, 5)]
    means = [Composition(formula).average_electroneg for formula in formulas]
    pd.DataFrame({"composition": formulas, "y": means}).to_csv(folder / "salts.csv", index=False)
    (folder / "neighbours.py").write_text(NEIGHBOURS)
    for name, parameters in {
        # A fold trains on fewer than 70 rows: 70 and 200 neighbours are all of them.
        "searched": "{neighbours: {choice: [2, 70, 200]}}",
        "default": "{neighbours: 5, never_read: 0.0}",
        "unread": "{neighbours: 5, never_read: 0.5}",
        "placeholder": "{neighbours: 5, placeholder: {choice: [0.0, 0.25]}}",
    }.items():
        text = f"model: neighbours.py\nnum_samples: 4\nparameters: {parameters}\n"
        (folder / f"{name}.yaml").write_text(text)
    return folder


def of_one_fold(folder, name, *arguments):
    """Arguments of a sweep of one fold, of the space of that name, that keeps everything under a folder."""
    where = [f"--task={folder}/salts.csv", f"--storage={folder}/results", "--folds=1", "--search-folds=1"]
    return [f"--space={folder}/{name}.yaml", *where, f"--name={name}", "--max-concurrent=1", *arguments]


def refused(arguments, capsys) -> str:
    """What a sweep that is refused says."""
    done = CliRunner().invoke(app, arguments)
    said = " ".join((done.output + capsys.readouterr().err).split())
    assert done.exit_code == 1, said
    assert "search fold" not in said  # nothing was trained
    assert "training the chosen" not in said
    return said


@pytest.fixture(scope="module")
def swept(folder):
    """A search over the neighbours by the real command, from another folder: its folder and what it printed."""
    output = run(folder, *of_one_fold(folder, "searched", "--seed=1"))
    return folder / "results/searched", output


# ---- a model of one's own ------------------------------------------------------------------------------


def test_a_model_in_a_file_of_ones_own_is_swept(swept):
    path, output = swept
    results = json.loads((path / "results.json").read_text())
    assert results["model"]["name"] == "neighbours.py"
    assert len(results["model"]["sha256"]) == 64
    assert results["chosen"][0]["config"]["neighbours"] == 2  # all rows are no neighbours
    assert [trial["rank"] for trial in results["trials"]] == [1, 2, 3]  # each of the three once
    assert results["seeds"][0]["mean"]["mae"] > 0
    assert [check["values"] for check in results["levers"]] == [[2, 70], [2, 200]]
    assert "| neighbours | 2 and 70 |" in (path / "RESULTS.md").read_text()
    assert "Traceback" not in output


def test_its_model_file_is_read_with_its_code_and_refused_without(swept, folder):
    file = swept[0] / "seed_1/model_fold_1.pth"
    with pytest.raises(ModelFileError, match=r"trained with a model of .*neighbours\.py: give that file as `model`"):
        load_model(file)
    model = load_model(file, model=str(folder / "neighbours.py"))
    table = pd.read_csv(swept[0] / "seed_1/preds_fold_1.csv").set_index("composition")["y_pred"]
    pair = next(one for one in table.index if len(Composition(one)) == Composition(one).num_atoms == 2)
    elements = [str(element) for element in Composition(pair)]
    salt = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.5), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(model.predict([salt]), table[pair], rtol=1e-6)


def test_no_such_model_or_a_broken_file_is_said_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("MODEL = Model()\n")
    (tmp_path / "empty.py").write_text("NOTHING = 1\n")
    for model, says in {
        "chgnett": r"no model 'chgnett': choose one of chgnet, gaussian_process, .*or give a Python file with a MODEL",
        "nowhere.py": r"model '.*nowhere\.py': .*No such file",
        "broken.py": r".*broken\.py cannot be imported: NameError: name 'Model' is not defined",
        "empty.py": r".*empty\.py defines no MODEL = Model\(\.\.\.\); see models/model\.py",
    }.items():
        (tmp_path / "mine.yaml").write_text(f"description: mine\nmodel: {model}\nparameters: {{}}\n")
        with pytest.raises(SpaceError, match=rf"mine\.yaml, line 2: {says}"):
            load_space(str(tmp_path / "mine.yaml"))


def test_a_file_that_was_changed_is_read_again(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(NEIGHBOURS)
    assert open_model(str(file)).config is open_model(str(file)).config
    file.write_text(NEIGHBOURS.replace("default=3", "default=4"))
    assert open_model(str(file)).config().neighbours == 4


# ---- levers that do nothing, before a sweep ------------------------------------------------------------


@pytest.mark.usefixtures("ray_session")
def test_a_field_that_no_code_reads_is_refused(folder, capsys):
    said = refused(of_one_fold(folder, "default"), capsys)
    assert "SweepError: space default: no code of model" in said
    assert "reads never_read, so that setting it would change nothing" in said
    said = refused(of_one_fold(folder, "unread"), capsys)
    assert "lever never_read does nothing" in said
    assert "with 0.0 and with 0.5" in said


@pytest.mark.usefixtures("ray_session")
def test_a_field_that_is_read_and_changes_nothing_is_refused(folder, capsys):
    said = refused(of_one_fold(folder, "placeholder"), capsys)
    assert "SweepError: lever placeholder does nothing" in said
    assert "with 0.0 and with 0.25" in said
    assert not (folder / "results/placeholder/results.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_seeds_of_a_model_without_chance_are_refused(folder, capsys):
    arguments = [f"--task={folder}/salts.csv", f"--storage={folder}/results", "--space=ridge", "--name=seeds"]
    said = refused([*arguments, "--seeds=2"], capsys)
    assert "SweepError: lever seed does nothing" in said
    assert "with 0 and with 1" in said


# ---- levers that did nothing, after it -----------------------------------------------------------------


def test_trials_that_turned_out_the_same_are_flagged_in_the_results(swept):
    """70 and 200 neighbours each differ from 2, so that they pass before the sweep; they are the same in it."""
    path, output = swept
    results = json.loads((path / "results.json").read_text())
    tried = {trial["trial"]: trial["config"]["neighbours"] for trial in results["trials"]}
    assert set(tried.values()) == {2, 70, 200}
    assert results["inert"]
    for pair in results["inert"]:
        assert pair["levers"] == ["neighbours"]
        assert pair["fold"] == 1
        assert {tried[trial] for trial in pair["trials"]} == {70, 200}
    line = "gave identical predictions, so neighbours, in which they differ, did nothing"
    markdown = (path / "RESULTS.md").read_text()
    assert markdown.count("- INERT: trials ") == len(results["inert"])
    assert line in markdown
    assert line in " ".join(output.split())


def outcome(trial_id, config, fingerprints) -> Outcome:
    """A trial that had these fingerprints from epoch 0 on."""
    return Outcome(
        trial_id=trial_id,
        fold=3,
        model="chgnet",
        config=config,
        history=[{"epoch": epoch, "fingerprint": told} for epoch, told in enumerate(fingerprints)],
        kept_metric=0.1,
        kept_epoch=0,
        trained_parameters={},
        val_predictions=np.zeros(2),
        tta=None,
        device="cpu",
        error=None,
        folder=None,
    )


def test_identical_predictions_of_different_configs_name_the_lever():
    one, other = outcome("one", {"lr": 0.1, "warmup": 0.2}, "abcd"), outcome("other", {"lr": 0.1, "warmup": 0.4}, "abc")
    assert inert_pairs([one, other]) == [{"fold": 3, "trials": ["one", "other"], "levers": ["warmup"]}]
    lacking = outcome("lacking", {"lr": 0.1}, "abcd")
    assert inert_pairs([one, lacking])[0]["levers"] == ["warmup"]


@pytest.mark.parametrize(
    ("config", "fingerprints", "why"),
    [
        ({"lr": 0.2}, "axyz", "other predictions"),
        ({"lr": 0.2}, "abcz", "other predictions in the end"),
        ({"lr": 0.2}, "a", "nothing but the untrained model in common"),
        ({"lr": 0.2}, "", "no epoch at all"),
        ({"lr": 0.1}, "abcd", "the same config"),
    ],
)
def test_what_differs_or_cannot_be_told_is_not_flagged(config, fingerprints, why):
    assert inert_pairs([outcome("one", {"lr": 0.1}, "abcd"), outcome("other", config, fingerprints)]) == [], why
