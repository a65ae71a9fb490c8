"""Values that train the same model on few rows are merged, those that do not are kept, and built-in spaces go on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import ray
from marks import whole_only
from model_cases import fine_tuning, finished, sample

from data.crystals.task_table import DEMO
from models.crystals.composition.model import COMPOSITION_NETWORK
from models.crystals.gaussian_process.model import GAUSSIAN_PROCESS
from models.crystals.rows import CrystalRows
from models.registry import open_model
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.spaces.merged import as_offered, merge, trains_the_same
from tune.spaces.space import SearchSpace, load_space
from tune.sweep.levers import check_levers, inert_pairs, lever_pairs

N_TRAIN = 14
TRAIN, VAL = np.arange(N_TRAIN), np.arange(N_TRAIN, 18)


@pytest.fixture(scope="module")
def few():
    """18 small crystals of the demo."""
    return sample(18, file=DEMO.name, small=True)


def merged(n_train, model="chgnet", **parameters):
    """What is left of a field's values, and what is said."""
    space = SearchSpace(name="mine", model=model, parameters=parameters)
    narrower, merges = merge(space, n_train)
    return narrower.parameters, [values.sentence(n_train) for values in merges]


def test_batches_that_hold_all_rows_are_one_batch():
    parameters, sentences = merged(40, batch_size={"choice": [16, 32, 64, 128]}, lr={"loguniform": [1e-4, 1e-2]})
    assert parameters == {"batch_size": {"choice": [16, 32, 64]}, "lr": {"loguniform": [1e-4, 1e-2]}}
    assert sentences == ["batch_size: 64 and 128 train the same model on 40 training rows, so the search takes 64"]
    assert merged(14, batch_size={"choice": [16, 32, 64]})[0] == {"batch_size": 16}
    assert merged(1000, batch_size={"choice": [16, 32, 64]})[1] == []


@pytest.mark.parametrize("kind", ["int", "logint"])
def test_a_range_ends_where_nothing_more_changes(kind):
    parameters, sentences = merged(40, batch_size={kind: [8, 256]})
    assert parameters == {"batch_size": {kind: [8, 40]}}
    assert sentences == ["batch_size: 40 to 256 train the same model on 40 training rows, so the search takes 40"]
    assert merged(8, batch_size={kind: [8, 256]})[0] == {"batch_size": 8}
    assert merged(256, batch_size={kind: [8, 256]})[1] == []


def test_a_decay_that_so_few_steps_do_not_reach_is_merged_where_no_combination_reaches_it():
    decays = {"averaging": "ema", "ema_decay": {"choice": [0.9, 0.99, 0.998]}, "epochs": {"choice": [24, 100]}}
    assert merged(108, batch_size=256, **decays)[0]["ema_decay"] == {"choice": [0.9, 0.99]}  # 100 steps: up to 0.918
    assert merged(108, batch_size=4, **decays)[0]["ema_decay"] == decays["ema_decay"]
    with_range = {"averaging": "ema", "ema_decay": {"uniform": [0.95, 0.999]}, "epochs": 24, "batch_size": 256}
    assert merged(108, **with_range)[0]["ema_decay"] == 0.95


def test_what_would_do_nothing_on_any_rows_is_not_merged():
    """It is for the check of the levers to refuse."""
    unfreezing = {"freeze_depth": "full", "epochs": 5, "unfreeze_every": {"choice": [50, 100]}}
    assert merged(14, **unfreezing) == (unfreezing, [])


def test_merged_values_train_the_same_model_and_others_do_not(few):
    def trained(**fields):
        return finished(fine_tuning(few, parts=(TRAIN, VAL), keep="last", **{"epochs": 6, **fields})).val_predictions

    def alike(one, other):
        return trains_the_same("chgnet", {"epochs": 6, **one}, {"epochs": 6, **other}, N_TRAIN)

    spread = few.targets[VAL].std()
    for one, other in (
        ({"batch_size": 14}, {"batch_size": 64}),
        ({"batch_size": 13}, {"batch_size": 64}),
        ({"averaging": "ema", "ema_decay": 0.5}, {"averaging": "ema", "ema_decay": 0.9}),  # 12 steps: up to 0.59
        ({"averaging": "ema", "ema_decay": 0.6}, {"averaging": "ema", "ema_decay": 0.9}),
    ):
        fields = {"batch_size": 8} if "averaging" in one else {}
        differ = np.abs(trained(**fields, **one) - trained(**fields, **other)).max() > 1e-5 * spread
        assert differ != alike({**fields, **one}, {**fields, **other}), (one, other)


@pytest.mark.parametrize(
    ("one", "other", "n_train", "same"),
    [
        ({"exact_up_to": 8000}, {"exact_up_to": 100}, 100, True),
        ({"exact_up_to": 8000}, {"exact_up_to": 99}, 100, False),
        ({"inducing_rows": 20}, {"inducing_rows": 50}, 100, True),
        ({"exact_up_to": 1, "inducing_rows": 20}, {"exact_up_to": 1, "inducing_rows": 50}, 100, False),
        ({"exact_up_to": 1, "inducing_rows": 100}, {"exact_up_to": 1, "inducing_rows": 500}, 100, True),
    ],
)
def test_inducing_rows_matter_where_there_are_more_than_an_exact_process_takes(one, other, n_train, same):
    assert trains_the_same(GAUSSIAN_PROCESS.name, one, other, n_train) == same


def test_trials_of_before_have_the_values_that_a_wider_space_offers():
    space, _ = merge(SearchSpace(name="w", parameters={"batch_size": {"choice": [8, 24, 32, 64]}, "epochs": 9}), 17)
    assert space.parameters["batch_size"] == {"choice": [8, 24]}
    assert as_offered(space, {"batch_size": 64, "epochs": 9}, 17) == {"batch_size": 24, "epochs": 9}
    assert as_offered(space, {"batch_size": 8, "epochs": 9}, 17) == {"batch_size": 8, "epochs": 9}


def checked(space: SearchSpace, rows: CrystalRows, targets, kind="regression", quantity="other"):
    """The levers of a space that are left on few rows, as a sweep checks them."""
    fold = TrialFold(targets, TRAIN, VAL, np.empty(0, dtype=np.int64))
    dataset = SimpleNamespace(
        task=SimpleNamespace(kind=kind, quantity=quantity, metric="", n_classes=None),
        rows_ref=ray.put(rows),
        trial_folds={0: ray.put(fold)},
    )
    narrower, _ = merge(space.for_task(kind, quantity), N_TRAIN)
    return {check.lever: check for check in check_levers(dataset, narrower, 0, lever_pairs(narrower, space.seeds))}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["head_finetune", "seed_noise", *whole_only("gaussian_process_atoms", "composition")])
def test_a_built_in_space_runs_on_14_rows(few, name):
    checks = checked(load_space(name), few.rows, few.targets, quantity=few.task.quantity)
    assert "batch_size" not in checks or checks["batch_size"].difference == "the same model"
    if name == "gaussian_process_atoms":  # the elements of 14 crystals explain them all
        assert checks["features"].difference == "it acts on the demo's crystals, and makes no difference"
    if name == "composition":
        assert checks["ema_decay"].difference == "the same model"
        assert isinstance(checks["lr"].difference, float)


@pytest.mark.usefixtures("ray_session")
def test_where_training_sees_one_class_no_lever_can_be_told_and_none_is_refused(few):
    checks = checked(load_space("head_finetune"), few.rows, np.zeros(18), kind="classification")
    assert {check.difference for check in checks.values()} == {"nothing to learn from one label"}


@pytest.mark.usefixtures("ray_session")
def test_what_the_user_wrote_and_does_nothing_is_refused_on_few_rows_too(few):
    space = SearchSpace(
        name="mine", parameters={"freeze_depth": "last_two_convs", "epochs": 3, "unfreeze_every": {"choice": [50, 99]}}
    )
    with pytest.raises(SweepError, match="lever unfreeze_every does nothing"):
        checked(space, few.rows, few.targets, quantity=few.task.quantity)


def test_every_config_acts_on_many_rows_as_it_is_written():
    for model in (COMPOSITION_NETWORK, open_model("chgnet")):
        config = model.config(epochs=100, batch_size=32, averaging="ema")
        assert config.effective(100_000) == config.model_dump()
        assert config.effective(10) != config.model_dump()


def test_trials_that_cannot_differ_on_so_few_rows_are_not_called_inert():
    def trial(name, batch_size):
        return SimpleNamespace(
            trial_id=name, fold=0, model="chgnet", config={"epochs": 1, "batch_size": batch_size}, error=None,
            history=[{"epoch": 1, "fingerprint": "a"}], val_predictions=np.zeros(2),
        )  # fmt: skip

    pair = [trial("one", 16), trial("other", 32)]
    assert inert_pairs(pair, 14) == []
    assert inert_pairs(pair, 17)[0]["levers"] == ["batch_size"]
