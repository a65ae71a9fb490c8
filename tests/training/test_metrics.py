"""Scores: those of scikit-learn or of their definitions, and no surprise where a score is undefined."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, root_mean_squared_error

from data.metrics import METRICS, all_scores, scores_of, value_columns, with_beside

RANDOM = np.random.default_rng(0)
TRUTH, PREDICTION = RANDOM.normal(size=200), RANDOM.normal(size=200)
FIELDS, SAID_FIELDS = RANDOM.normal(size=(20, 8, 8)), RANDOM.normal(size=(20, 8, 8))
CLASSES, CLASS_SCORES = RANDOM.integers(4, size=50), RANDOM.random((50, 4))
MASKS, MASK_SCORES = RANDOM.integers(3, size=(12, 6, 6)), RANDOM.random((12, 6, 6, 3))


def test_regression_scores_are_those_of_scikit_learn():
    scores = all_scores(METRICS["mae"], TRUTH, PREDICTION)
    assert scores["mae"] == pytest.approx(mean_absolute_error(TRUTH, PREDICTION))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(TRUTH, PREDICTION))
    assert scores["max_error"] == np.abs(TRUTH - PREDICTION).max()
    assert METRICS["mae"].value(TRUTH, PREDICTION) == scores["mae"]
    assert METRICS["mse"].value(TRUTH, PREDICTION) == pytest.approx(scores["rmse"] ** 2)


def test_the_mean_of_the_training_targets_scores_1_by_rmse_over_std():
    training = np.array([1.0, 2.0, 3.0, 6.0])
    metric = METRICS["rmse_over_std"].for_training(training)
    assert metric.value(training, np.full(4, training.mean())) == pytest.approx(1.0)
    assert metric.value(training * 2, training) == pytest.approx(np.sqrt((training**2).mean()) / training.std())
    assert METRICS["mae"].for_training(training) == METRICS["mae"]


def test_classification_scores():
    truth = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    probability = np.array([0.1, 0.6, 0.5, 0.7, 0.9])
    # of the six pairs of one class each, five are ranked right
    scores = all_scores(METRICS["rocauc"], truth, probability)
    assert scores["rocauc"] == pytest.approx(5 / 6)
    assert scores["accuracy"] == accuracy_score(truth, probability >= 0.5) == 0.8


def test_accuracy_of_several_classes_is_that_of_the_likeliest():
    expected = accuracy_score(CLASSES, CLASS_SCORES.argmax(axis=1))
    assert METRICS["accuracy"].value(CLASSES, CLASS_SCORES) == pytest.approx(expected)


def test_intersection_over_union_is_that_of_all_places_together():
    expected = jaccard_score(MASKS.ravel(), MASK_SCORES.argmax(axis=-1).ravel(), average="macro")
    assert METRICS["miou"].value(MASKS, MASK_SCORES) == pytest.approx(expected)
    unlabelled = MASKS.copy()
    unlabelled[:, :2] = -1  # the border of an object
    expected = jaccard_score(MASKS[:, 2:].ravel(), MASK_SCORES[:, 2:].argmax(axis=-1).ravel(), average="macro")
    assert METRICS["miou"].value(unlabelled, MASK_SCORES) == pytest.approx(expected)


def test_the_relative_error_of_a_field_is_that_of_its_norm():
    norms = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(FIELDS, SAID_FIELDS, strict=True)]
    assert METRICS["relative_l2"].value(FIELDS, SAID_FIELDS) == pytest.approx(np.mean(norms))
    assert METRICS["mae"].value(FIELDS, SAID_FIELDS) == pytest.approx(np.abs(FIELDS - SAID_FIELDS).mean())


@pytest.mark.parametrize(
    ("name", "truth", "said"),
    [
        *((name, TRUTH, PREDICTION) for name in ("mae", "mse", "rmse", "rmse_over_std")),
        *((name, FIELDS, SAID_FIELDS) for name in ("relative_l2", "rmse", "rmse_over_std")),
        ("accuracy", CLASSES, CLASS_SCORES),
        ("miou", MASKS, MASK_SCORES),
    ],
)
def test_a_table_of_the_values_of_examples_gives_the_same_scores(name, truth, said):
    metric = METRICS[name].for_training(np.arange(10.0))
    table = pd.DataFrame({"id": range(len(truth))})
    for one in with_beside(metric):
        if one.columns:
            values = one.of_examples(truth, said)
            assert values.shape[0] == len(truth)
            table[value_columns(one, values.shape[1])] = values
    expected = all_scores(metric, truth, said)
    found = scores_of(metric, table)
    assert found == pytest.approx({one: expected[one] for one in found})
    assert name in found
    assert (set(expected) - set(found)) <= {"max_error"}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rocauc_of_a_single_class_is_chance(label):
    assert METRICS["rocauc"].value(np.full(4, label), np.linspace(0, 1, 4)) == 0.5


@pytest.mark.parametrize(("name", "better", "worse"), [("mae", 0.1, 0.2), ("rocauc", 0.9, 0.8), ("miou", 0.5, 0.4)])
def test_better_is_less_error_or_more_area(name, better, worse):
    metric = METRICS[name]
    assert metric.better(better, worse)
    assert not metric.better(worse, better)
    assert not metric.better(better, better)  # of equal epochs the first stays the best


@pytest.mark.parametrize(("name", "unit"), [("mae", "eV"), ("mse", "(eV)^2"), ("relative_l2", ""), ("rocauc", "")])
def test_a_metric_has_a_unit_where_the_target_has_one(name, unit):
    assert METRICS[name].unit_of("eV") == unit
    assert METRICS[name].unit_of("") == ""
