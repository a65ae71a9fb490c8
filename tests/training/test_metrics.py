"""Scores: those of scikit-learn, and no surprise where a score is undefined."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, mean_absolute_error, root_mean_squared_error

from models.metrics import all_scores, metric_of


def test_regression_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, prediction = rng.normal(size=200), rng.normal(size=200)
    scores = all_scores("regression", truth, prediction)
    assert scores["mae"] == pytest.approx(mean_absolute_error(truth, prediction))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(truth, prediction))
    assert scores["max_error"] == np.abs(truth - prediction).max()
    assert metric_of("regression").value(truth, prediction) == scores["mae"]


def test_classification_scores():
    truth = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    probability = np.array([0.1, 0.6, 0.5, 0.7, 0.9])
    # of the six pairs of one class each, five are ranked right
    assert metric_of("classification").value(truth, probability) == pytest.approx(5 / 6)
    scores = all_scores("classification", truth, probability)
    assert scores["rocauc"] == pytest.approx(5 / 6)
    assert scores["accuracy"] == accuracy_score(truth, probability >= 0.5) == 0.8


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rocauc_of_a_single_class_is_chance(label):
    assert metric_of("classification").value(np.full(4, label), np.linspace(0, 1, 4)) == 0.5


@pytest.mark.parametrize(("kind", "better", "worse"), [("regression", 0.1, 0.2), ("classification", 0.9, 0.8)])
def test_better_is_less_error_or_more_area(kind, better, worse):
    metric = metric_of(kind)
    assert metric.better(better, worse)
    assert not metric.better(worse, better)
    assert not metric.better(better, better)  # of equal epochs the first stays the best
    assert metric.mode == ("min" if kind == "regression" else "max")
