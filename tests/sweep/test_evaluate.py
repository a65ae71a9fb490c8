"""Scoring: every test row exactly once, nothing fitted on test labels, and one module alone that sees them."""

import ast
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs
from sklearn.metrics import roc_auc_score

from data.crystals.task_table import DEMO
from data.fold import Fold
from data.folds import Split
from data.metrics import METRICS, over_folds
from data.row_numbers import counted
from tune.dataset.dataset import Dataset
from tune.sweep.evaluate import FoldScore, PredictionError, ensemble, model_file, score_fold
from tune.trials.search import Outcome
from tune.trials.trial import MODEL_FILE, PREDICTIONS_FILE

ROOT = Path(__file__).parents[2]
LABELS = np.array([0.5, -1.0, -2.0, 1.0, -3.0, 0.25, -0.5, 2.0, -4.0, 1.5])
TRAIN, VAL, TEST = np.array([0, 2, 5]), np.array([1, 8]), np.array([3, 4, 6, 7])
N_ROWS = len(LABELS)


def a_dataset(labels=LABELS, test=TEST, quarantine=None, unscored=(), ids=None, task=DEMO) -> Dataset:
    """Ten rows; 9 is in the test part of fold 2, quarantined unless said otherwise."""
    ids = ids or [f"row-{k}" for k in range(N_ROWS)]
    test_ids = [ids[k] for k in (3, 4, 6, 7, 9)]
    train_ids = [ids[k] for k in (0, 1, 2, 5, 8)]
    quarantine = {9: "disordered structure"} if quarantine is None else quarantine
    return Dataset(
        task=task,
        ids=ids,
        row_numbers=counted(N_ROWS),
        group_names=[None if k in quarantine else f"A{k}B" for k in range(N_ROWS)],
        labels=labels,
        quarantine=quarantine,
        notes={},
        unscored=set(unscored),
        facts={},
        data_sha256="",
        cache_key="",
        folds=[Fold(0, test_ids, train_ids), Fold(1, test_ids, train_ids), Fold(2, train_ids, test_ids)],
        split_rule="task",
        split_note="",
        splits={2: Split(2, TRAIN, VAL, test)},
        rows_ref=None,
        trial_folds={},
    )


@pytest.fixture
def an_outcome(tmp_path):
    def written(predictions, validation=(0.0, 0.0), **uncertainty) -> Outcome:
        file = io.BytesIO()
        arrays = {"test": predictions, "val": validation, **uncertainty}
        np.savez(file, **{name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()})
        (tmp_path / PREDICTIONS_FILE).write_bytes(file.getvalue())
        return Outcome(
            trial_id="a",
            fold=2,
            model="chgnet",
            config={},
            history=[],
            kept_metric=0.1,
            kept_epoch=0,
            trained_parameters={},
            val_predictions=np.asarray(validation),
            tta=None,
            device="cpu",
            error=None,
            folder=(fs.LocalFileSystem(), str(tmp_path)),
        )

    return written


def table_of(part):
    """The table of a part of a task that is judged by the mean absolute error."""
    return part.table(METRICS["mae"])


def by_id(score: FoldScore) -> dict[str, dict]:
    return table_of(score.test).set_index("id").to_dict("index")


def test_predictions_meet_the_labels_of_their_own_rows(an_outcome):
    score = score_fold(a_dataset(quarantine={}, test=np.array([3, 4, 6, 7, 9])), an_outcome([1.5, -3, 0, 2, 1]))
    assert score.fold == 2
    rows = by_id(score)
    assert list(rows) == ["row-3", "row-4", "row-6", "row-7", "row-9"]
    assert rows["row-3"] == {"group": "A3B", "y_true": 1.0, "y_pred": 1.5, "abs_error": 0.5}
    assert rows["row-9"] == {"group": "A9B", "y_true": 1.5, "y_pred": 1.0, "abs_error": 0.5}
    assert score.scores["mae"] == pytest.approx((0.5 + 0 + 0.5 + 0 + 0.5) / 5)
    assert score.scores["rmse"] == pytest.approx(np.sqrt(0.75 / 5))
    assert score.scores["max_error"] == 0.5
    assert score.n_fallback == 0


def test_a_quarantined_test_structure_is_scored_by_the_training_mean(an_outcome):
    score = score_fold(a_dataset(), an_outcome([1.0, -3.0, -0.5, 2.0]))
    assert score.n_fallback == 1
    mean = LABELS[[0, 1, 2, 5, 8]].mean()  # training and validation, nothing of the test part
    assert by_id(score)["row-9"] == {
        "group": "unknown",
        "y_true": 1.5,
        "y_pred": mean,
        "abs_error": pytest.approx(1.5 - mean),
    }
    assert score.scores["mae"] == pytest.approx((1.5 - mean) / 5)
    other_test_labels = LABELS.copy()
    other_test_labels[TEST] = 100.0
    assert by_id(score_fold(a_dataset(other_test_labels), an_outcome(np.zeros(4))))["row-9"]["y_pred"] == mean


def test_a_row_without_a_label_is_not_scored(an_outcome):
    labels = LABELS.copy()
    labels[9] = np.nan
    dataset = a_dataset(labels, quarantine={9: "target is missing or not a number"}, unscored=[9])
    score = score_fold(dataset, an_outcome([1.0, -3.0, -0.5, 2.0]))
    assert "row-9" not in by_id(score)
    assert score.n_fallback == 0
    assert score.scores["mae"] == 0.0


def test_a_quarantined_training_row_has_no_part_in_the_scores(an_outcome):
    dataset = a_dataset(quarantine={9: "disordered structure", 0: "overlapping atoms"})
    dataset = replace(dataset, splits={2: Split(2, TRAIN[1:], VAL, TEST)})
    score = score_fold(dataset, an_outcome(np.zeros(4)))
    assert score.n_fallback == 1
    assert by_id(score)["row-9"]["y_pred"] == LABELS[[1, 2, 5, 8]].mean()


def test_a_repeated_id_is_scored_by_its_first_row(an_outcome):
    ids = [f"row-{k}" for k in range(9)] + ["row-7"]
    dataset = a_dataset(ids=ids, quarantine={9: "duplicate id: row 8 has it already"}, unscored=[9])
    score = score_fold(dataset, an_outcome([1.0, -3.0, -0.5, 2.5]))
    assert len(score.test.ids) == 4
    assert by_id(score)["row-7"]["y_true"] == LABELS[7]


@pytest.mark.parametrize(
    ("predictions", "says"),
    [
        ([1.0, -3.0, -0.5], "3 predictions, 3 of them finite, for 4 test rows"),
        ([1.0, -3.0, -0.5, 2.0, 2.0], "5 predictions, 5 of them finite, for 4 test rows"),
        ([1.0, np.nan, -0.5, 2.0], "4 predictions, 3 of them finite, for 4 test rows"),
        ([1.0, -3.0, -0.5, -np.inf], "4 predictions, 3 of them finite, for 4 test rows"),
        ([[1.0], [-3.0], [-0.5], [2.0]], "for 4 test rows"),
    ],
)
def test_other_than_one_finite_prediction_a_row_is_refused(an_outcome, predictions, says):
    with pytest.raises(PredictionError, match=f"fold 2: .*{says}"):
        score_fold(a_dataset(), an_outcome(predictions))


@pytest.mark.parametrize("validation", [[0.5], [0.5, np.nan]])
def test_the_same_goes_for_validation_rows(an_outcome, validation):
    with pytest.raises(PredictionError, match=r"fold 2: \d predictions, 1 of them finite, for 2 val rows"):
        score_fold(a_dataset(), an_outcome(np.zeros(4), validation))


def test_validation_predictions_meet_the_labels_of_their_own_rows(an_outcome):
    score = score_fold(a_dataset(), an_outcome(np.zeros(4), [-1.5, -4.0]))
    assert table_of(score.validation).set_index("id").to_dict("index") == {
        "row-1": {"group": "A1B", "y_true": -1.0, "y_pred": -1.5, "abs_error": 0.5},
        "row-8": {"group": "A8B", "y_true": -4.0, "y_pred": -4.0, "abs_error": 0.0},
    }


def test_the_uncertainty_of_a_model_is_kept(an_outcome):
    told = an_outcome([1.0, -3.0, -0.5, 2.0], test_std=[0.1, 0.2, 0.3, 0.4], val_std=[0.5, 0.6])
    score = score_fold(a_dataset(), told)
    rows = by_id(score)
    assert [rows[f"row-{k}"]["std"] for k in TEST] == [0.1, 0.2, 0.3, 0.4]
    assert rows["row-9"]["std"] == LABELS[[0, 1, 2, 5, 8]].std()  # without a graph nothing is known but the labels
    assert table_of(score.validation)["std"].tolist() == [0.5, 0.6]


@pytest.mark.parametrize(
    "test",
    [
        [3, 4, 6],  # one missing
        [3, 4, 6, 6],  # one twice, one missing
        [3, 4, 6, 7, 7],  # one twice
        [3, 4, 6, 7, 5],  # one of the training part
        [3, 4, 6, 7, 9],  # a quarantined one, that has the training mean already
    ],
)
def test_test_rows_other_than_the_test_ids_are_refused(an_outcome, test):
    with pytest.raises(PredictionError, match=r"fold 2: \d predictions do not match 5 test ids"):
        score_fold(a_dataset(test=np.array(test)), an_outcome(np.zeros(len(test))))


def test_classes_are_scored_by_roc_auc_and_fall_back_to_the_frequency(an_outcome):
    labels = (LABELS > 0).astype(np.float64)
    dataset = a_dataset(labels, task=replace(DEMO, kind="classification", metric="rocauc"))
    score = score_fold(dataset, an_outcome([0.8, 0.3, 0.6, 0.4]))
    assert by_id(score)["row-9"]["y_pred"] == 0.4  # two of five
    assert score.scores["rocauc"] == roc_auc_score([1, 0, 0, 1, 1], [0.8, 0.3, 0.6, 0.4, 0.4])
    assert score.scores["accuracy"] == 0.4


def test_an_ensemble_is_the_mean_of_its_members_with_their_spread(an_outcome):
    dataset = a_dataset()
    members = [score_fold(dataset, an_outcome(LABELS[TEST] + error)) for error in (0.3, -0.1, 0.1)]
    together = ensemble(members)
    rows = by_id(together)
    for k in TEST:
        assert rows[f"row-{k}"]["y_pred"] == pytest.approx(LABELS[k] + 0.1)
        assert rows[f"row-{k}"]["abs_error"] == pytest.approx(0.1)
        assert rows[f"row-{k}"]["std"] == pytest.approx(0.2)  # of a sample: 0.3, -0.1 and 0.1
    assert rows["row-9"]["std"] == pytest.approx(0.0)
    assert together.n_fallback == 1
    assert together.scores["mae"] == pytest.approx(table_of(together.test)["abs_error"].mean())
    assert "std" not in table_of(members[0].test)  # the members are left as they were
    assert table_of(together.validation)["id"].tolist() == ["row-1", "row-8"]
    assert table_of(together.validation)["y_pred"].tolist() == [0.0, 0.0]


def test_over_folds_the_largest_error_is_the_largest_and_the_others_are_means():
    result = over_folds([(0, 10, {"mae": 0.1, "max_error": 3.0}), (3, 10, {"mae": 0.3, "max_error": 16.9})])
    assert result["max_error"] == 16.9
    assert result["mean"] == {"mae": pytest.approx(0.2)}
    assert set(result["std_over_folds"]) == {"mae"}
    assert [fold["max_error"] for fold in result["folds"]] == [3.0, 16.9]


def test_the_model_file_is_read_as_it_was_written(an_outcome, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"a model")
    assert model_file(an_outcome(np.zeros(4))) == b"a model"


# Labels and targets: who may touch them.
#
# `Dataset.labels` holds the labels of the test parts, and `Rows.targets` is where they come from. `Task.labels`
# (a sentence on their origin), the targets of a `TrialFold` or `TrainingPart` (NaN outside training and validation) and
# what a training run keeps of them are other things of the same name, and named here by their owners.
HARMLESS_OWNERS = {
    "labels": {"task", "facts"},
    "targets": {"self", "part", "fold"},
}
# A plan trains on a sample to see how long that takes: seconds and bytes leave tune/planning/measure.py, nothing of the
# labels.
# models/crystals/demo_rows.py reads those of the demo, to show that a lever does something there: nothing is chosen by
# them.
MAY_READ = {
    "labels": {"tune/sweep/evaluate.py"},
    "targets": {
        "tune/dataset/dataset.py",
        "tune/planning/measure.py",
        "tune/planning/sample.py",
        "models/crystals/demo_rows.py",
    },
}


def readers(name: str, path: str, text: str) -> list[int]:
    """Lines that reach an attribute of this name of anything but its harmless owners."""
    found = []
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Attribute) and node.attr == name:
            owner = node.value
            called = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if called not in HARMLESS_OWNERS[name]:
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "attrgetter"):
            found += [node.lineno for one in node.args if isinstance(one, ast.Constant) and one.value == name]
    return found


@pytest.mark.parametrize("name", MAY_READ)
def test_test_labels_are_reached_from_one_module_alone(name):
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("models", "tune")
        for path in (ROOT / folder).rglob("*.py")
        if readers(name, path.name, path.read_text())
    }
    assert found == MAY_READ[name]


def test_a_dataset_gets_its_labels_in_one_place():
    makers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("data", "models", "tune")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Dataset"
    }
    assert makers == {"tune/dataset/dataset.py"}


@pytest.mark.parametrize(
    "text", ["dataset.labels[3]", "f(self.dataset.labels)", "getattr(dataset, 'labels')", "load().labels.mean()"]
)
def test_a_reader_is_found(text):
    assert readers("labels", "tune/report.py", text) == [1]


@pytest.mark.parametrize("text", ["task.labels", "dataset.task.labels", "labels = 3", "{'labels': 1}"])
def test_what_is_no_test_label_is_let_be(text):
    assert readers("labels", "tune/report.py", text) == []


def test_trust_goes_with_its_row_and_a_crystal_that_no_model_has_seen_has_none(an_outcome):
    trusts = {"test_trust": [0.9, 0.4, 0.8, 0.7], "val_trust": [0.6, 0.3]}
    score = score_fold(a_dataset(), an_outcome(LABELS[TEST], **trusts))
    rows = by_id(score)
    assert [rows[f"row-{k}"]["trust"] for k in TEST] == trusts["test_trust"]
    assert [rows[f"row-{k}"]["trusted"] for k in TEST] == [True, False, True, True]
    assert rows["row-9"]["trust"] == 0
    assert not rows["row-9"]["trusted"]
    assert table_of(score.validation)["trusted"].tolist() == [True, False]
    other = score_fold(a_dataset(), an_outcome(LABELS[TEST], **{**trusts, "test_trust": [0.1, 0.9, 0.9, 0.9]}))
    together = by_id(ensemble([score, other]))
    assert [together[f"row-{k}"]["trust"] for k in TEST] == [0.1, 0.4, 0.8, 0.7]
    without = score_fold(a_dataset(), an_outcome(LABELS[TEST]))
    assert "trust" not in table_of(without.test)
    assert "trust" not in table_of(ensemble([score, without]).test)
