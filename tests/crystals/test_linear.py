"""The baselines: what they say can be worked out by hand, and they run on any task."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from data.metrics import METRICS
from data.task import USUAL_METRIC
from models.crystals.linear import DUMMY, RIDGE, DummyConfig, RidgeConfig, fit_dummy, fit_ridge
from models.crystals.rows import CrystalRows
from models.model import TrainingPart

N_ROWS, TRAIN, VAL, NEW = 60, np.arange(40), np.arange(40, 50), np.arange(50, 60)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    fractions = np.zeros((N_ROWS, 94), dtype=np.float32)
    fractions[:, [2, 7, 25, 16]] = rng.dirichlet(np.full(4, 0.5), N_ROWS)
    return CrystalRows(fractions, rng.integers(1, 20, N_ROWS).astype(np.int32))


def a_part(targets, kind="regression", quantity="other"):
    visible = np.array(targets, dtype=np.float64)
    visible[NEW] = np.nan
    return TrainingPart(visible, TRAIN, VAL, kind, quantity)


@pytest.fixture
def linear(rows):
    """Targets linear in the fractions, with a little noise."""
    return rows.fractions[:, 7] * 3.0 - rows.fractions[:, 16] + 0.5 + np.random.default_rng(1).normal(0, 0.01, N_ROWS)


def test_the_dummy_says_the_mean(rows, linear):
    found = fit_dummy(DummyConfig(), rows, a_part(linear)).predict_rows(rows, NEW)
    np.testing.assert_allclose(found.values, linear[TRAIN].mean())
    assert found.std is None


def test_of_a_cells_energy_the_mean_is_that_of_an_atom(rows, linear):
    part = a_part(linear * rows.n_atoms, quantity="energy_per_cell")
    found = fit_dummy(DummyConfig(), rows, part).predict_rows(rows, NEW)
    np.testing.assert_allclose(found.values, linear[TRAIN].mean() * rows.n_atoms[NEW])


def test_of_a_class_the_dummy_says_how_often_it_is(rows):
    targets = (np.arange(N_ROWS) % 4 == 0).astype(float)
    found = fit_dummy(DummyConfig(), rows, a_part(targets, "classification")).predict_rows(rows, NEW)
    np.testing.assert_allclose(found.values, 0.25, atol=0.03)
    assert METRICS["rocauc"].value(np.tile([0.0, 1.0], 5), found.values) == 0.5


@pytest.mark.parametrize("quantity", ["other", "energy_per_atom", "energy_per_cell"])
def test_ridge_finds_what_is_linear_in_the_fractions(rows, linear, quantity):
    factor = rows.n_atoms if quantity == "energy_per_cell" else 1
    found = fit_ridge(RidgeConfig(), rows, a_part(linear * factor, quantity=quantity)).predict_rows(rows, NEW)
    assert np.abs(found.values - (linear * factor)[NEW]).max() < 0.03 * np.max(factor)


def test_a_given_penalty_is_used(rows, linear):
    found = fit_ridge(RidgeConfig(alpha=3.0), rows, a_part(linear)).predict_rows(rows, NEW)
    expected = Ridge(alpha=3.0).fit(rows.fractions[TRAIN].astype(float), linear[TRAIN])
    np.testing.assert_allclose(found.values, expected.predict(rows.fractions[NEW].astype(float)), atol=1e-10)


@pytest.mark.parametrize("alpha", ["leave_one_out", 0.05])
def test_ridge_of_a_class_is_logistic_regression(rows, linear, alpha):
    targets = (linear > np.median(linear)).astype(float)
    found = fit_ridge(RidgeConfig(alpha=alpha), rows, a_part(targets, "classification")).predict_rows(rows, NEW)
    model = LogisticRegression(C=1 / (alpha if alpha == 0.05 else 1.0), max_iter=2000)
    expected = model.fit(rows.fractions[TRAIN].astype(float), targets[TRAIN])
    np.testing.assert_allclose(found.values, expected.predict_proba(rows.fractions[NEW].astype(float))[:, 1], atol=1e-6)


@pytest.mark.parametrize("alpha", ["leave_one_out", 0.05])
def test_training_rows_of_one_class_alone_are_no_problem(rows, alpha):
    found = fit_ridge(RidgeConfig(alpha=alpha), rows, a_part(np.ones(N_ROWS), "classification")).predict_rows(rows, NEW)
    assert (found.values > 0.9).all()
    assert (found.values < 1).all()


@pytest.mark.parametrize("model", [DUMMY, RIDGE], ids=lambda model: model.name)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_runs_and_loads_as_any_model_of_a_sweep_does(rows, linear, model, kind, tmp_path):
    targets = linear if kind == "regression" else (linear > 1).astype(float)
    run = model.start(model.config(), rows, a_part(targets, kind), "cpu")
    (epoch,) = run.epochs()
    assert epoch.val_metric == METRICS[USUAL_METRIC[kind]].value(targets[VAL], run.val_predictions)
    torch.save(run.fitted().content(), tmp_path / "model.pth")
    loaded = model.load(torch.load(tmp_path / "model.pth", weights_only=True), "cpu")
    np.testing.assert_array_equal(loaded.predict_rows(rows, NEW).values, run.fitted().predict_rows(rows, NEW).values)
