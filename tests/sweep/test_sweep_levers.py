"""Levers that do nothing are refused before a sweep, or flagged after it; and a model in a file of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import ray
from made_crystals import body_centred
from model_cases import sample, thirds
from pymatgen.core import Composition
from sweeps import run_here
from typer.testing import CliRunner

from data.crystals.task_table import DEMO
from data.task import USUAL_METRIC
from models.crystals.rows import CrystalRows
from models.fitted import ModelFileError, load_model
from models.model import BadPredictionsError, Prediction, TrainingPart, checked_predictions
from models.registry import MODELS, open_model
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.run_sweep import app
from tune.spaces.space import SearchSpace, SpaceError, load_space
from tune.sweep.levers import check_levers, inert_pairs, lever_pairs, read_nowhere
from tune.sweep.tries import ALIKE
from tune.trials.search import Outcome

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
FORGETFUL = NEIGHBOURS.replace("    placeholder:", "    never_read: float = 0.0\n    placeholder:")
MEAN = "self.targets[nearest].mean(axis=1)"  # what it predicts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table of 80 compositions, a model and spaces of it."""
    folder = tmp_path_factory.mktemp("levers")
    formulas = [f"{a}{n}{b}" for a in ("Li", "Na", "K", "Mg", "Al") for b in ("O", "S", "Cl", "F") for n in range(1, 5)]
    means = [Composition(formula).average_electroneg for formula in formulas]
    pd.DataFrame({"composition": formulas, "y": means}).to_csv(folder / "salts.csv", index=False)
    (folder / "neighbours.py").write_text(NEIGHBOURS)
    (folder / "forgetful.py").write_text(FORGETFUL)
    (folder / "nan.py").write_text(NEIGHBOURS.replace(MEAN, f"np.nan * {MEAN}"))
    for name, parameters in {
        # A fold trains on fewer than 70 rows: 70 and 200 neighbours are all of them.
        "searched": "{neighbours: {choice: [2, 70, 200]}}",
        "default": "{neighbours: 5, never_read: 0.0}",
        "unread": "{neighbours: 5, never_read: 0.5}",
        "unset": "{neighbours: 5}",
        "nan": "{neighbours: {choice: [2, 5]}}",
        "placeholder": "{neighbours: 5, placeholder: {choice: [0.0, 0.25]}}",
    }.items():
        model = {"default": "forgetful", "unread": "forgetful", "unset": "forgetful", "nan": "nan"}.get(
            name, "neighbours"
        )
        text = f"model: {model}.py\nnum_samples: 4\nparameters: {parameters}\n"
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
def swept(folder, ray_session):
    """A search over the neighbours: its folder and what it printed."""
    output = run_here(folder, *of_one_fold(folder, "searched", "--seed=1"))
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
    salt = body_centred(*elements, 3.5)
    np.testing.assert_allclose(model.predict([salt]), table[pair], rtol=1e-6)


def test_a_sweep_does_not_go_on_with_a_file_that_was_changed(swept, folder, capsys):
    file = folder / "neighbours.py"
    file.write_text(NEIGHBOURS.replace("mean(axis=1)", "max(axis=1)"))
    said = refused([f"--storage={folder}/results", "--extend=searched", "--num-samples=+1"], capsys)
    file.write_text(NEIGHBOURS)
    assert f"the code that trains, {file} among it, has changed since searched was begun" in said


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
    said = refused(of_one_fold(folder, "unset"), capsys)
    assert "forgetful.py: no code reads never_read of its NeighboursConfig, so that setting it would change" in said


@pytest.mark.usefixtures("ray_session")
def test_a_field_that_is_read_and_changes_nothing_is_refused(folder, capsys):
    said = refused(of_one_fold(folder, "placeholder"), capsys)
    assert "lever placeholder does nothing" in said
    assert "with 0.0 and with 0.25" in said
    assert not (folder / "results/placeholder/results.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_seeds_of_a_model_without_chance_are_refused(folder, capsys):
    arguments = [f"--task={folder}/salts.csv", f"--storage={folder}/results", "--space=ridge", "--name=seeds"]
    said = refused([*arguments, "--seeds=2"], capsys)
    assert "lever seed does nothing" in said
    assert "with 0 and with 1" in said


def checks(model, rows, part, **parameters):
    """What the check of the levers finds with some rows, which are seen as a fold of a task is."""
    space = SearchSpace(name="mine", model=str(model), parameters=parameters)
    fold = TrialFold(part.targets, part.train, part.val, np.empty(0, dtype=np.int64))
    task = replace(DEMO, kind=part.kind, metric=USUAL_METRIC[part.kind], quantity=part.quantity)
    dataset = SimpleNamespace(task=task, rows_ref=ray.put(rows), trial_folds={0: ray.put(fold)})
    return check_levers(dataset, space, 0, lever_pairs(space, 1))


def salts(n=60):
    """Rows of compositions and a part of them, as `checks` takes them."""
    fractions = np.random.default_rng(0).dirichlet(np.full(94, 0.05), n).astype(np.float32)
    part = TrainingPart(fractions[:, :9] @ np.arange(9.0), *thirds(n)[:2], "regression", "other")
    return CrystalRows(fractions, np.full(n, 3, dtype=np.int32)), part


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("taken", ["config.model_dump()", "dict(config)"])
def test_who_takes_the_whole_config_reads_every_field(tmp_path, taken):
    text = FORGETFUL.replace("_ = config.placeholder", f"taken = {taken}").replace(
        "config.neighbours", 'taken["neighbours"]'
    )
    (tmp_path / "mine.py").write_text(text)
    (check,) = checks(tmp_path / "mine.py", *salts(), neighbours={"choice": [2, 9]}, never_read=0.0)
    assert check.lever == "neighbours"


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "taken", ['config.model_dump(include={"placeholder"})', 'config.model_copy(update={"seed": 1})', "repr(config)"]
)
def test_who_takes_a_part_of_it_a_copy_or_its_text_does_not(tmp_path, taken):
    (tmp_path / "mine.py").write_text(FORGETFUL.replace("_ = config.placeholder", f"_ = {taken}"))
    with pytest.raises(SweepError, match=r"no code of model .*mine\.py reads never_read, so that setting it"):
        checks(tmp_path / "mine.py", *salts(), neighbours={"choice": [2, 9]}, never_read=0.0)


def crystals(n=90):
    """Small crystals of the demo and a part of them, as `checks` takes them."""
    data = sample(n, file=DEMO.name, small=True)
    return data.rows, TrainingPart(data.targets, *thirds(n)[:2], "regression", data.task.quantity)


@pytest.mark.usefixtures("ray_session")
def test_a_network_of_ours_reads_what_is_its_own_and_no_field_that_is_added(tmp_path):
    """Its run and its file hold its whole config, which is no reading of it."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from models.crystals.chgnet.model import CHGNET, CHGNetConfig\n\n"
        "class Mine(CHGNetConfig):\n    extra: float = 0.0\n\n"
        "MODEL = replace(CHGNET, config=Mine)\n"
    )
    with pytest.raises(SweepError, match=r"no code of model .*mine\.py reads extra, so that"):
        checks(tmp_path / "mine.py", *crystals(), epochs=2, extra=0.0)
    with pytest.raises(SweepError, match=r"mine\.py: no code reads extra of its Mine, so that"):
        checks(tmp_path / "mine.py", *crystals(), epochs=2)


@pytest.mark.parametrize("name", MODELS)
def test_every_field_of_our_models_is_in_their_source(name):
    model = open_model(name)
    assert model.name == name
    assert read_nowhere(model, set()) == []


@pytest.mark.parametrize(
    ("named", "unread"),
    [("config.never_read", []), ('getattr(config, "never_read")', []), ("'never_read, said'", ["never_read"])],
)
def test_what_is_read_on_a_condition_that_no_try_meets_is_in_the_source(tmp_path, named, unread):
    text = FORGETFUL.replace("    _ = config", f"    if len(part.train) > 1000:\n        _ = {named}\n    _ = config")
    (tmp_path / "mine.py").write_text(text)
    assert read_nowhere(open_model(str(tmp_path / "mine.py")), {"neighbours", "placeholder"}) == unread


@pytest.mark.usefixtures("ray_session")
def test_levers_that_act_late_are_seen_although_the_best_epoch_is_an_early_one():
    found = checks("chgnet", *crystals(), epochs=8, averaging={"choice": ["none", "ema", "swa", "snapshots"]})
    assert [check.values for check in found] == [[16, 8], ["none", "ema"], ["none", "swa"], ["none", "snapshots"]]
    (found,) = checks("chgnet", *crystals(), keep={"choice": ["best", "last"]})
    assert found.values == ["best", "last"]


@pytest.mark.usefixtures("ray_session")
def test_decays_that_differ_only_after_more_steps_than_a_try_has_are_told_apart():
    """Until the step 9 / (1 - 0.98) = 450 both are one warm-up; no try, of 192 steps at most, gets there."""
    decays = {"averaging": "ema", "ema_decay": {"choice": [0.98, 0.995]}, "epochs": 3, "width": 16, "rounds": 1}
    outcome = checks("composition_network", *salts(600), batch_size=1, **decays)  # 400 rows in 3 epochs are 1,200 steps
    (check,) = (check for check in outcome if check.lever == "ema_decay")
    assert check.values == [0.98, 0.995]
    outcome = checks("composition_network", *salts(600), batch_size=4, **decays)  # and these are 300
    assert [check.difference for check in outcome if check.lever == "ema_decay"] == [ALIKE]


# ---- predictions that are none -------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_session")
def test_a_model_that_predicts_no_numbers_is_told_so_before_the_sweep(folder, capsys):
    said = refused(of_one_fold(folder, "nan"), capsys)
    assert "nan.py: Neighbours.predict_rows returned values of which" in said
    assert "are not finite, expected shape" in said
    assert "does nothing" not in said
    assert "Traceback" not in said


BAD_PREDICTIONS = {
    "Prediction(y[:, None])": r"values of shape \(10, 1\), expected shape \(10,\): one finite number a row",
    "Prediction(y[:1])": r"values of shape \(1,\), expected shape \(10,\)",
    "Prediction(y.mean())": r"values of shape \(\), expected",
    "Prediction(np.where(y > y.min(), y, np.inf))": r"values of which 1 of 10 are not finite, expected",
    "Prediction(y, std=y[:2])": r"std of shape \(2,\), expected",
    "Prediction(y.astype(str) + 'x')": r"values that are no numbers, expected",
    "Prediction(torch.tensor(y, requires_grad=True))": r"values that are no numbers, expected",
    "y": r"a ndarray, expected a Prediction",
}


@pytest.mark.parametrize(("returned", "told"), BAD_PREDICTIONS.items())
def test_what_a_model_predicts_is_one_finite_number_a_row(tmp_path, returned, told):
    text = NEIGHBOURS.replace(f"return Prediction({MEAN})", f"y = {MEAN}\n        return {returned}")
    (tmp_path / "mine.py").write_text(text)
    rows, part = salts()
    model = open_model(str(tmp_path / "mine.py"))
    with pytest.raises(BadPredictionsError, match=rf"^Neighbours\.predict_rows returned {told}"):
        list(model.start(model.config(), rows, part, "cpu").epochs())


@pytest.mark.usefixtures("ray_session")
def test_predictions_that_are_none_end_a_sweep_with_the_model_that_made_them(tmp_path):
    text = NEIGHBOURS.replace(f"return Prediction({MEAN})", f"return Prediction({MEAN}[:1])")
    (tmp_path / "mine.py").write_text(text)
    rows, part = salts()
    with pytest.raises(SweepError, match=r"^model .*mine\.py: Neighbours\.predict_rows returned "):
        checks(tmp_path / "mine.py", rows, part, neighbours={"choice": [2, 9]})


def test_predictions_in_single_precision_or_in_a_list_will_do():
    for values in ([1.0, 2.0], np.float32([1.0, 2.0])):
        fitted = SimpleNamespace(predict_rows=lambda rows, which, values=values: Prediction(values))
        found = checked_predictions(fitted, salts()[0], np.arange(2))
        assert found.dtype == np.float64
        assert found.tolist() == [1.0, 2.0]


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


def outcome(trial_id, config, fingerprints, kept=0.0, error=None) -> Outcome:
    """A trial that had these fingerprints from epoch 0 on, and was to train 3 epochs unless its config says else."""
    return Outcome(
        trial_id=trial_id,
        fold=3,
        model="chgnet",
        config={"epochs": 3, **config},
        history=[{"epoch": epoch, "fingerprint": told} for epoch, told in enumerate(fingerprints)],
        kept_metric=0.1,
        kept_epoch=0,
        trained_parameters={},
        val_predictions=np.full(2, kept),
        tta=None,
        device="cpu",
        error=error,
        folder=None,
    )


def test_identical_predictions_of_different_configs_name_the_lever():
    one = outcome("one", {"lr": 0.1, "warmup": 0.2}, "abcd")
    other = outcome("other", {"lr": 0.1, "warmup": 0.4}, "abcd")
    assert inert_pairs([one, other], 100) == [{"fold": 3, "trials": ["one", "other"], "levers": ["warmup"]}]
    lacking = outcome("lacking", {"lr": 0.1}, "abcd")
    assert inert_pairs([one, lacking], 100)[0]["levers"] == ["warmup"]
    keeping = outcome("keeping", {"lr": 0.1, "warmup": 0.4, "keep": "last"}, "abcd")
    assert inert_pairs([one, keeping], 100)[0]["levers"] == ["warmup"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (outcome("other", {"lr": 0.2}, "axyz"), "other predictions"),
        (outcome("other", {"lr": 0.2}, "abcz"), "other predictions in the end"),
        (outcome("other", {"lr": 0.2}, "zbcd"), "other predictions before training"),
        (outcome("other", {"lr": 0.2}, "a"), "stopped before it trained"),
        (outcome("other", {"lr": 0.2}, ""), "no epoch at all"),
        (outcome("other", {"lr": 0.1}, "abcd"), "the same config"),
        (outcome("other", {"lr": 0.2}, "abcd", kept=1.0), "another epoch is kept"),
        (outcome("other", {"lr": 0.1, "keep": "last"}, "abcd", kept=1.0), "the same epochs, and another is kept"),
        (outcome("other", {"lr": 0.1, "keep": "last"}, "abcd"), "the best epoch was the last"),
        (outcome("other", {"lr": 0.2}, "abcd", error="lost"), "it failed"),
        (outcome("other", {"lr": 0.1, "epochs": 4}, "abcd"), "stopped one epoch before its end"),
        (outcome("other", {"lr": 0.1, "epochs": 4}, "abcde"), "it trained longer"),
        (outcome("other", {"lr": 0.1, "epochs": 2}, "abc"), "it trained for less"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_differs_or_cannot_be_told_is_not_flagged(other, why):
    assert inert_pairs([outcome("one", {"lr": 0.1}, "abcd"), other], 100) == [], why


def test_trials_that_were_stopped_before_weights_are_averaged_are_not_flagged():
    stopped = [outcome(name, {"epochs": 8, "averaging": name}, "abcd") for name in ("none", "swa", "snapshots")]
    assert inert_pairs(stopped, 100) == []


def test_epochs_are_those_of_the_config_where_the_space_does_not_set_them():
    whole = [f"{epoch}" for epoch in range(101)]
    pair = [outcome(f"{lr}", {"lr": lr}, whole) for lr in (0.1, 0.2)]
    for one in pair:
        del one.config["epochs"]
    (inert,) = inert_pairs(pair, 100)
    assert inert["levers"] == ["lr"]
    for one in pair:
        del one.history[-1]
    assert inert_pairs(pair, 100) == []
