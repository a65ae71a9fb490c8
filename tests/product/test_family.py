"""A family is added by a module and a line of the registry: here one whose examples are vectors, and a model of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pydantic import Field

from data.errors import UserError
from data.tasks import open_task
from models.config import ModelConfig
from models.family import Family, FamilyRows, Reading
from models.fitted import FittedModel, load_model
from models.model import Model, Prediction, fitted_once, never
from models.registry import FAMILIES, MODELS, ModelError, open_family, open_model
from tune.dataset.dataset import load_dataset, untrained
from tune.dataset.trial_fold import TrialFold
from tune.records.options import Options
from tune.spaces.space import SearchSpace
from tune.sweep.sweep import join
from tune.sweep.tries import InertError, Tries

N_ROWS = 60
WEIGHTS = np.array([1.0, -2.0, 0.5])


# ---- the family: the functions that `Family` lists ----------------------------------------------------


@dataclass(frozen=True)
class VectorRows:
    """Vectors, float64, shape (n_rows, 3)."""

    vectors: np.ndarray

    def select(self, which: np.ndarray) -> VectorRows:
        return VectorRows(self.vectors[which])


ROWS_PER_PASS = 100


def vector_of(example: str) -> np.ndarray:
    return np.random.default_rng(int(example.removeprefix("v"))).normal(size=3)


def refusal(model, task, split_rule, tta):
    return f"--tta {tta}: vectors are not moved" if tta != "none" else None


def needs(model: Model, parameters: Mapping[str, Any]) -> str:
    return "vectors"


def read(task, rows, need, cache_folder, split_rule, *, collapse, at_once):
    vectors = np.stack([vector_of(name) for name in rows.ids])
    pairs = [str(int(name.removeprefix("v")) // 2) for name in rows.ids]
    nothing: list = [None] * len(rows)
    return FamilyRows(VectorRows(vectors), pairs, nothing, [()] * len(rows), ["Vectors are random."], {"n": 3}, "none")


def caches(task):
    return False


def arrays(need, *, collapse):
    return []


def baseline(model, parameters, kind):
    return {"model": "least_squares", "ridge": 1e6}


def sizes(rows):
    return np.ones(len(rows.vectors))


def reading(rows, need, cache_folder):
    return Reading("vectors", "none", np.ones(len(rows)))


def counted_work(rows, need):
    return np.ones(len(rows.vectors))


class Trust:
    """Marks nothing."""

    def mark(self, rows, which, prediction, *, of_task, replace_untrusted):
        return prediction

    def content(self):
        return {}


def fit_trust(config, rows, part, predicted):
    return Trust()


def about(config):
    return {}


def new_rows(model, about, trust, examples, device):
    return VectorRows(np.stack([vector_of(example) for example in examples]))


# ---- a model of it ------------------------------------------------------------------------------------


class LeastSquaresConfig(ModelConfig):
    ridge: float = Field(default=1e-6, gt=0)
    unused: float = 0.0


@dataclass
class LeastSquares:
    weights: np.ndarray

    def predict_rows(self, rows, which):
        return Prediction(rows.vectors[which] @ self.weights)

    def content(self):
        return {"weights": self.weights.tolist()}


def fit(config, rows, part):
    x, y = rows.vectors[part.train], part.targets[part.train]
    return LeastSquares(np.linalg.solve(x.T @ x + config.ridge * np.eye(3), x.T @ y))


def load(content, device):
    return LeastSquares(np.array(content["weights"]))


MODEL = Model("least_squares", LeastSquaresConfig, "vectors", fitted_once(fit), load, by_chance=never, family="vectors")


def register():
    """The family and its model, each with its line in the registry of a process of its own."""
    FAMILIES["vectors"], MODELS["least_squares"] = "test_family", ("test_family", "MODEL")


@pytest.fixture
def added(monkeypatch) -> Family:
    """The family and its model, each with its line in the registry."""
    monkeypatch.setitem(FAMILIES, "vectors", __name__)
    monkeypatch.setitem(MODELS, "least_squares", (__name__, "MODEL"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return open_family("vectors")


@pytest.fixture
def opened(tmp_path):
    """A task of the family, and its rows."""
    task, rows = open_task(str(written(tmp_path)), target="y", download_dir=tmp_path)
    return replace(task, family="vectors"), rows


def written(folder: Path) -> Path:
    """A table of vectors, and of what depends on them."""
    ids = [f"v{k}" for k in range(N_ROWS)]
    targets = [float(vector_of(name) @ WEIGHTS) for name in ids]
    lines = [f"{name},Fe{k + 1}O,{target!r}" for k, (name, target) in enumerate(zip(ids, targets, strict=True))]
    (folder / "vectors.csv").write_text("id,formula,y\n" + "\n".join(lines))
    return folder / "vectors.csv"


def space(**parameters) -> SearchSpace:
    return SearchSpace(name="vectors", model="least_squares", parameters=parameters)


def test_a_dataset_of_another_family_is_read_split_and_fitted(added, opened, ray_session, tmp_path):
    task, rows = opened
    own = space(ridge={"choice": [1e-6, 100.0]})
    dataset = load_dataset(task, rows, own, str(tmp_path), used_folds={0}, seed=0, gpus_per_task=0)
    assert dataset.facts == {"n": 3}
    split = dataset.splits[0]
    pairs = np.array(dataset.group_names)
    assert not set(pairs[split.train]) & set(pairs[split.val])  # what belongs together stays together
    part = ray.get(dataset.trial_folds[0]).part(task)
    vectors = ray.get(dataset.rows_ref)
    run = open_model("least_squares").start(LeastSquaresConfig(), vectors, part, "cpu")
    assert [result.epoch for result in run.epochs()] == [1]
    np.testing.assert_allclose(run.fitted().weights, WEIGHTS, atol=1e-5)
    assert untrained(own, "regression") == {"model": "least_squares", "ridge": 1e6}


def test_levers_of_its_models_are_tried(added, opened, ray_session, tmp_path):
    task, rows = opened
    dataset = load_dataset(task, rows, space(), str(tmp_path), used_folds={0}, seed=0, gpus_per_task=0)
    fold: TrialFold = ray.get(dataset.trial_folds[0])
    tries = Tries(MODEL, ray.get(dataset.rows_ref), fold.part(task))
    assert tries.compare("ridge", {"ridge": 1e-6}, {"ridge": 100.0}).difference > 0.1
    with pytest.raises(InertError, match="unused does nothing"):
        tries.compare("unused", {"unused": 0.0}, {"unused": 1.0})


def test_a_trained_model_predicts_new_examples_of_it_from_a_file_too(added, tmp_path):
    FittedModel(MODEL, LeastSquares(WEIGHTS), {"unit": ""}).save(tmp_path / "model.pth")
    found = load_model(tmp_path / "model.pth").predict(["v70", "v71"])
    np.testing.assert_allclose(found, [vector_of(name) @ WEIGHTS for name in ("v70", "v71")])


def options(**changes) -> Options:
    fields = {
        "name": "x", "space": space(), "task": "demo", "target": None, "quantity": None, "ids": None,
        "search_folds": [0], "folds": [0], "num_samples": 1, "seed": 0, "seeds": 1, "storage": "", "cache": "",
        "downloads": "", "cpus_per_trial": 1, "gpus_per_trial": 0.0, "max_concurrent": None, "every_atom": False,
        "tta": "none",
    }  # fmt: skip
    return Options(**(fields | changes))


def test_its_refusals_end_a_sweep_before_anything_is_done(added, opened):
    task, _ = opened
    with pytest.raises(UserError, match="--tta 4: vectors are not moved"):
        join(options(tta="4"), task, [space()], None)


def test_a_model_of_another_family_than_the_task_is_refused(added, opened):
    task, _ = opened
    with pytest.raises(UserError, match="model ridge is of crystals, and vectors of vectors"):
        join(options(), task, [SearchSpace(name="r", model="ridge", parameters={})], None)


def test_a_family_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="no family 'images': choose one of crystals"):
        open_family("images")
