"""The plan of a sweep: what it simulates is exact, what it measures leaves nothing behind. No clock is asserted."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import ray
from marks import whole_only
from ray.tune.schedulers import ASHAScheduler
from typer.testing import CliRunner

from data.tasks import open_task
from models.crystals.rows import CrystalRows
from models.family import n_bytes
from tune.dataset.dataset import load_dataset
from tune.planning.designs import place
from tune.planning.forecast import Rungs, TrialCost, forecast, known_configs, simulate
from tune.planning.plan import plan
from tune.planning.plan_table import show, spread
from tune.planning.sample import sample_positions
from tune.planning.trial_costs import Point, TrialCosts
from tune.records.options import Options
from tune.run_sweep import app
from tune.spaces.space import SearchSpace, load_space

DEMO_FILE = Path(__file__).parents[2] / "data/demo/demo.parquet"


MEAN_OF_NEIGHBOURS = """\
from dataclasses import dataclass

import numpy as np
import torch
from models.config import ModelConfig
from models.model import Model, Prediction, fitted_once


class Config(ModelConfig):
    neighbours: int = 3


@dataclass
class Fitted:
    fractions: np.ndarray
    targets: np.ndarray
    neighbours: int

    def predict_rows(self, rows, which):
        distances = ((rows.fractions[which][:, None] - self.fractions) ** 2).sum(axis=2)
        return Prediction(self.targets[np.argsort(distances, axis=1)[:, : self.neighbours]].mean(axis=1))

    def content(self):
        return {"fractions": torch.tensor(self.fractions), "targets": torch.tensor(self.targets), "n": self.neighbours}


def fit(config, rows, part):
    return Fitted(rows.fractions[part.train], part.targets[part.train], config.neighbours)


def load(content, device):
    return Fitted(content["fractions"].numpy(), content["targets"].numpy(), content["n"])


MODEL = Model("mean", Config, "compositions", fitted_once(fit), load)
"""


def options(space: SearchSpace, folder: Path = Path("nowhere"), **changed) -> Options:
    """Of a sweep of the demo that keeps everything under a folder."""
    fields = {
        "name": "planned", "space": space, "task": "demo", "target": None, "quantity": None, "ids": None,
        "search_folds": [0], "folds": [0, 1, 2, 3, 4], "num_samples": 6, "seed": 0, "seeds": 1,
        "storage": f"{folder}/results", "cache": f"{folder}/graphs", "downloads": f"{folder}/downloads",
        "cpus_per_trial": 1, "gpus_per_trial": 0, "max_concurrent": None, "every_atom": False,
        "tta": "none", "track": None,
    }  # fmt: skip
    return Options(**(fields | changed))


def cost(config, fold, test):
    """An epoch takes a second; a trial two before, and three for its test part."""
    return TrialCost(config.get("epochs", 100), first=2.0, epoch=1.0, last=3.0 if test else 0.0)


BASELINE = {"model": "chgnet", "freeze_depth": "none", "epochs": 0}


# ---- simulated sweeps ----------------------------------------------------------------------------------


def test_with_one_slot_and_no_stopping_trials_take_what_they_cost_together():
    trials = [TrialCost(5, 1.0, 2.0, 0.5), TrialCost(0, 1.0, 2.0, 0.5), TrialCost(3, 0.0, 1.0)]
    done = simulate(trials, slots=1, startup=7.0)
    assert done.epochs == [5, 0, 3]
    assert done.seconds == done.busy == pytest.approx(7 + 11.5 + 1.5 + 3)


def test_a_free_slot_takes_the_next_trial():
    trials = [TrialCost(10, 0.0, 1.0), TrialCost(4, 0.0, 1.0), TrialCost(3, 0.0, 1.0), TrialCost(4, 0.0, 1.0)]
    done = simulate(trials, slots=2)  # 10 beside 4 + 3 + 4
    assert done.seconds == 11
    assert done.busy == 21


@pytest.mark.parametrize(("grace", "factor", "most"), [(20, 3, 150), (3, 3, 24), (4, 2.5, 100), (1, 4, 64)])
def test_the_rungs_stop_the_trials_that_ray_stops(grace, factor, most):
    rng = np.random.default_rng(0)
    settings = {"time_attr": "epoch", "max_t": most, "grace_period": grace, "reduction_factor": factor}
    theirs = ASHAScheduler(metric="value", mode="max", **settings)
    ours = Rungs(grace, factor, most)
    for number in range(100):
        trial, value, n_epochs = SimpleNamespace(trial_id=str(number)), rng.random(), rng.integers(1, most)
        theirs.on_trial_add(None, trial)
        results = [{"epoch": epoch, "value": value, "training_iteration": epoch} for epoch in range(1, n_epochs + 1)]
        their_stop = next((r["epoch"] for r in results if theirs.on_trial_result(None, trial, r) == "STOP"), None)
        epochs = [epoch for epoch in ours.recorded if epoch <= n_epochs]
        assert next((epoch for epoch in epochs if not ours.goes_on(epoch, value)), None) == their_stop


def test_about_a_third_of_many_trials_survives_a_rung():
    qualities = np.random.default_rng(0).random(600).tolist()
    done = simulate([TrialCost(10, 0.0, 1.0)] * 600, slots=4, rungs=Rungs(4, 3, 10), qualities=qualities)
    assert set(done.epochs) == {4, 10}
    assert 0.30 < np.mean(np.array(done.epochs) == 10) < 0.38
    assert done.epochs[int(np.argmax(qualities))] == 10


def test_the_first_configs_are_those_that_any_search_of_the_seed_begins_with():
    space = load_space("head_finetune")
    first = known_configs(space, 4, seed=3)
    assert known_configs(space, 16, seed=3)[:4] == first
    assert known_configs(space, 4, seed=4) != first
    assert all(0.0003 <= config["lr"] <= 0.01 and config["epochs"] in (60, 100, 150) for config in first)


def test_twice_the_trials_take_about_twice_the_core_time():
    space = load_space("full_finetune")
    once, twice = (
        forecast(options(space, num_samples=n), space, cost, baseline=BASELINE, slots=2).search for n in (60, 120)
    )
    assert twice.busy.mean() / once.busy.mean() == pytest.approx(2, rel=0.1)
    assert (twice.seconds >= twice.busy / 2).all()
    assert (once.seconds < once.busy).all()


def test_folds_searches_and_seeds_count():
    space = SearchSpace(name="fixed", parameters={"epochs": 7}, num_samples=1)
    done = forecast(options(space, seeds=3, folds=[0, 4]), space, cost, baseline=BASELINE, slots=1, run_end=0.5)
    assert not done.search.seconds.any()
    assert done.training.seconds == pytest.approx(2 * 5 + 3 * 2 * 12 + 0.5)
    space = load_space("pretrained")
    assert forecast(options(space), space, cost, baseline=BASELINE, slots=1).training.seconds == pytest.approx(5 * 5)
    space = load_space("head_finetune")
    one, five = (
        forecast(options(space, search_folds=folds), space, cost, baseline=BASELINE, slots=1)
        for folds in ([0], [0, 1, 2, 3, 4])
    )
    assert five.search.seconds.mean() / one.search.seconds.mean() == pytest.approx(5, rel=0.1)
    assert (one.unstopped.seconds >= one.search.seconds + one.training.seconds).all()


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(5.0, 5.0, ""), (600.0, 604.0, "10 min +- 2 s"), (60.0, 80.0, "60 s - 80 s"), (4000.0, 9000.0, "67 min - 2.5 h")],
)
def test_ends_that_read_alike_are_told_as_a_distance(low, high, told):
    assert spread(low, high) == told


def test_a_sample_has_rows_of_every_size():
    sizes = np.random.default_rng(0).lognormal(3, 0.8, size=20_000)
    chosen = sample_positions(sizes, 500)
    assert len(set(chosen.tolist())) == 500
    assert sizes[chosen].mean() == pytest.approx(sizes.mean(), rel=0.02)
    assert sample_positions(sizes[:300], 500).tolist() == list(range(300))


# ---- measured plans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 118 ids of the demo."""
    folder = tmp_path_factory.mktemp("plan")
    ids = pd.read_parquet(DEMO_FILE, columns=["id"])["id"]
    (folder / "ids.txt").write_text("\n".join(ids.iloc[::8]))
    return folder


def test_a_plan_adds_up_and_leaves_nothing(ray_session, folder, capsys):
    found = plan(options(load_space("head_finetune"), folder, ids=f"{folder}/ids.txt"))
    assert [path.name for path in folder.iterdir()] == ["ids.txt"]
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps))
    assert found.core_hours == pytest.approx(sum(step.core_seconds for step in found.steps) / 3600)
    assert all(0 < step.low <= step.seconds <= step.high and step.core_seconds > 0 for step in found.steps)
    assert [step.name for step in found.steps] == [
        "start and end", "graphs", "backbone features", "search", "train the chosen, and test",
    ]  # fmt: skip
    assert found.low <= found.seconds <= found.high <= found.at_most
    assert [epoch.what for epoch in found.epochs] == [
        "An epoch of readout with batches of 16", "An epoch of readout with batches of 64",
    ]  # fmt: skip
    assert all(epoch.seconds > 0 for epoch in found.epochs)
    assert found.fold_search > 0
    assert found.fold_training > 0
    assert all(size is None or size > 0 for size in astuple(found.memory))
    assert found.gpu_hours == 0
    assert found.trials_a_gpu is None
    show(found)
    printed = capsys.readouterr().err
    assert "nothing is said of a GPU" in printed
    assert "backbone features" in printed


@pytest.mark.whole
def test_what_the_cache_holds_costs_nothing_and_has_its_true_size(ray_session, folder):
    space = load_space("pretrained")
    planned = options(space, folder, ids=f"{folder}/ids.txt")
    task, rows = open_task("demo", ids_file=folder / "ids.txt", download_dir=folder)
    dataset = load_dataset(task, rows, space, planned.cache, used_folds={0}, seed=0, gpus_per_task=0, collapse=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = plan(planned)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    steps = {step.name: step for step in found.steps}
    assert set(steps) == {"start and end", "graphs", "backbone features", "train the chosen, and test"}
    assert "in the cache" in steps["graphs"].note
    assert steps["backbone features"].seconds == 0
    shared: CrystalRows = ray.get(dataset.rows_ref)
    assert found.memory.shared == pytest.approx(n_bytes(shared), rel=0.01)
    assert found.epochs == ()


@pytest.mark.parametrize("other", ["--resume=planned", "--address=auto"])
def test_a_plan_of_a_sweep_that_is_begun_or_elsewhere_is_refused(other, capsys):
    done = CliRunner().invoke(app, ["--plan", other])
    assert done.exit_code == 1
    assert "not begun yet, on this machine: leave out --resume, --extend and --address" in " ".join(
        (done.output + capsys.readouterr().err).split()
    )


@pytest.mark.parametrize(
    ("name", "what", "extrapolated"),
    [
        ("ridge", "A fit of ridge", True),
        *whole_only(
            ("composition", "An epoch of composition_network with batches of 256", False),
            ("gaussian_process", "A fit of gaussian_process", True),
            ("scratch", "An epoch of full with batches of 32", False),
        ),
    ],
)
def test_every_model_is_planned(ray_session, folder, name, what, extrapolated, capsys):
    """A fit in one go has no epochs; the first trial of another model stands beside the reference's."""
    found = plan(options(load_space(name), folder, ids=f"{folder}/ids.txt", folds=[0]))
    (epoch,) = found.epochs
    assert epoch.what == what
    assert epoch.seconds > 0
    assert ("extrapolated from fits on" in epoch.note) == extrapolated
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps))
    steps = {step.name: step for step in found.steps}
    assert ("backbone features" in steps) == (name == "gaussian_process")
    assert ("search" in steps) == (name == "scratch")
    assert steps["train the chosen, and test"].seconds > 0
    show(found)
    assert what in " ".join(capsys.readouterr().err.split())


@pytest.mark.whole
def test_formulas_and_a_model_of_ones_own_are_planned(ray_session, tmp_path):
    (tmp_path / "salts.csv").write_text("formula,y\n" + "".join(f"Na{k}Cl,{k}\n" for k in range(1, 60)))
    (tmp_path / "mean.py").write_text(MEAN_OF_NEIGHBOURS)
    (tmp_path / "mean.yaml").write_text(
        "model: mean.py\nnum_samples: 3\nparameters: {neighbours: {int: [1, 9]}}\n", encoding="utf-8"
    )
    found = plan(options(load_space(f"{tmp_path}/mean.yaml"), tmp_path, task=f"{tmp_path}/salts.csv", target="y"))
    assert [step.name for step in found.steps] == [
        "start and end", "formulas", "search", "train the chosen, and test",
    ]  # fmt: skip
    assert [epoch.what for epoch in found.epochs] == ["A fit of mean"]
    assert found.low <= found.seconds <= found.high <= found.at_most


def test_a_plan_of_what_does_not_go_together_is_refused(tmp_path, capsys):
    (tmp_path / "salts.csv").write_text("formula,y\n" + "".join(f"Na{k}Cl,{k}\n" for k in range(1, 30)))
    done = CliRunner().invoke(app, ["--plan", f"--task={tmp_path}/salts.csv", f"--storage={tmp_path}/results"])
    assert done.exit_code == 1
    printed = " ".join((done.output + capsys.readouterr().err).split())
    assert "SweepError: model chgnet reads structures, and salts as given has compositions only" in printed


def test_costs_lie_between_those_that_were_measured():
    """Freeze depths by their order, a batch by its inverse size; a fit in one go by the power it has shown."""

    def measured(depth, batch_size, seconds):
        fields = {"model": "chgnet", "freeze_depth": depth, "batch_size": batch_size}
        return Point("chgnet", place(fields), True, False, seconds, 0.0, 0.0, 100)

    points = [measured("last_conv", 16, 1.0), measured("full", 16, 4.0), measured("full", 32, 3.0)]
    fit = Point("ridge", (), False, True, 0.1, 0.0, 0.0, 100, power=2.0)
    costs = TrialCosts([*points, fit], True, 0.0, 0.0, {}, 0.0, None, None, None)

    def train_row(depth, batch_size):
        return costs.point({"model": "chgnet", "freeze_depth": depth, "batch_size": batch_size}).train_row

    assert train_row("last_two_convs", 16) == pytest.approx(2.0)
    assert train_row("full", 24) == pytest.approx(3 + 1 / 3)
    assert train_row("full", 512) == 3.0
    assert costs.point({"model": "ridge"}).growth(300) == 9.0
