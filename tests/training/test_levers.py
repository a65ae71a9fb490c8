"""Every lever of training changes what is trained, in the way its name says, and survives a restart."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_cases import (
    OTHER_VALUES,
    assert_same_run,
    fine_tuning,
    finished,
    graphs_alone,
    numbers,
    one_thread,
    predictions,
    sample,
    thirds,
)

from models.crystals.augment import moved
from models.crystals.chgnet.model import CHGNET, CHGNetConfig
from models.fitted import FittedModel, load_model
from models.training.inputs import Mix
from models.training.losses import loss_function
from models.training.schedule import halvings, learning_rate
from tune.dataset.dataset import untrained
from tune.spaces.space import load_space

N_ROWS = 60
EPOCHS = 8
TRAIN, VAL, TEST = thirds(N_ROWS)

# Lever: what it goes with, and values that are not its default.
LEVERS: dict[str, tuple[dict, list]] = {
    "optimizer": ({}, ["adam", "radam"]),
    "gradient_clip": ({}, [0.0, 0.01]),
    "schedule": ({}, ["constant", "one_cycle", "exponential"]),
    "warmup": ({}, [0.4]),
    "lr_end": ({"schedule": "exponential"}, [0.5]),
    "patience": ({"schedule": "plateau"}, [1, 2]),
    "loss": ({}, ["mse", "huber", "log_cosh"]),
    "loss_delta": ({"loss": "huber"}, [0.02]),
    "target_scale": ({}, ["standard", "robust"]),
    "mixup": ({}, [True]),
    "mixup_alpha": ({"mixup": True}, [2.0]),
    "mixup_probability": ({"mixup": True}, [1.0]),
    "averaging": ({}, ["ema", "swa", "snapshots"]),
    "ema_decay": ({"averaging": "ema"}, [0.8]),
    "swa_start": ({"averaging": "swa"}, [0.25]),
    "snapshots": ({"averaging": "snapshots"}, [2]),
    "keep": ({}, ["best"]),
    "reference": ({}, ["ridge", "none"]),
    "refit_reference": ({}, [True]),
    "undo_mp2020": ({}, [True]),
    "jitter": ({}, [0.05]),
    "strain": ({}, [0.02]),
    "layer_decay": ({"freeze_depth": "last_two_convs"}, [0.5]),
    "unfreeze_every": ({"freeze_depth": "last_two_convs"}, [2]),
}
BASES = [{"freeze_depth": "last_two_convs"}]
CHANGES = [{**base, lever: value} for lever, (base, values) in LEVERS.items() for value in values]


@pytest.fixture(scope="module")
def data():
    return sample(N_ROWS, small=True)


def trained(data, epochs=EPOCHS, **fields):
    """Overtrained a little, so that the best epoch is not the last."""
    return finished(fine_tuning(data, **{"epochs": epochs, "lr": 1e-2, "batch_size": 8, **fields}))


def test_every_field_has_a_test():
    assert set(LEVERS) | set(OTHER_VALUES) == set(CHGNetConfig.model_fields)


def test_no_lever_is_inert(data):
    kept = {}
    for change in [{}, *BASES, *CHANGES]:
        # The last epoch, because the best can be the untrained model for several.
        run = trained(data, **{"keep": "last"} | change)
        kept[str(change)] = run.fitted().predict_rows(data.rows, VAL).values
    for one, other in itertools.combinations(kept, 2):
        assert np.abs(kept[one] - kept[other]).max() > 5e-6, (one, other)  # eV/atom, above rounding


# Each keeps something of its own from epoch to epoch: moments, means, a patience, random numbers, an open depth.
WITH_A_STATE = {"optimizer", "patience", "averaging", "mixup", "jitter", "refit_reference", "unfreeze_every"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=[] if next(reversed(change)) in WITH_A_STATE else pytest.mark.whole)
        for change in [*CHANGES, {"weights": "random", "freeze_depth": "full", "averaging": "ema"}]
    ],
    ids=str,
)
def test_a_resumed_run_is_the_same(data, change):
    fields = {"epochs": EPOCHS, "lr": 1e-2, "batch_size": 8, **change}
    run = fine_tuning(data, **fields)
    with one_thread():
        for result in run.epochs():
            if result.epoch == EPOCHS // 2 + 1:
                break
        state = run.state()
        again = fine_tuning(data, **fields)
        again.restore(state)
    assert_same_run(finished(again), trained(data, **change))


@pytest.mark.parametrize("target_scale", ["standard", "robust"])
def test_a_target_scale_has_an_inverse(data, target_scale):
    """Before training the predictions are those in the natural unit: only what a step does changes."""
    plain, scaled = fine_tuning(data), fine_tuning(data, target_scale=target_scale)
    np.testing.assert_allclose(predictions(scaled), predictions(plain), rtol=0, atol=2e-6)
    wanted = scaled.objective.goals.numpy()[TRAIN]
    if target_scale == "standard":
        assert wanted.mean() == pytest.approx(0, abs=1e-5)
        assert wanted.std() == pytest.approx(1, abs=1e-5)
    else:
        assert np.median(wanted) == pytest.approx(0, abs=1e-5)
        assert np.median(np.abs(wanted)) * 1.4826 == pytest.approx(1, abs=1e-4)


def test_a_target_scale_is_fitted_on_training_rows_alone(data):
    other = data.targets.copy()
    other[VAL] += 5.0
    one, two = (fine_tuning(data, targets, target_scale="standard") for targets in (data.targets, other))
    assert (one.objective.transform.reference.scale, one.objective.transform.reference.intercept) == (
        two.objective.transform.reference.scale,
        two.objective.transform.reference.intercept,
    )


@pytest.mark.parametrize("error", [-3.0, -0.2, 0.01, 0.5, 40.0])
def test_losses_are_what_their_names_say(error):
    output, wanted = torch.tensor([1.0 + error]), torch.tensor([1.0])
    delta = 0.1
    huber = 0.5 * error**2 if abs(error) < delta else delta * (abs(error) - delta / 2)
    small = abs(error) / delta < 20
    log_cosh = delta**2 * (math.log(math.cosh(error / delta)) if small else abs(error) / delta - math.log(2))
    expected = {"mae": abs(error), "mse": error**2, "huber": huber, "log_cosh": log_cosh}
    for name, value in expected.items():
        assert float(loss_function(name, delta)(output, wanted)) == pytest.approx(value, rel=1e-4), name


def rates(n=200, **fields):
    config = CHGNetConfig(lr=1e-3, **fields)
    return np.array([learning_rate(config, step, n) for step in range(n)]) / 1e-3


def test_schedules_have_their_shapes():
    assert (rates(schedule="constant") == 1).all()
    np.testing.assert_allclose(rates()[[0, 100]], [1, 0.5])
    assert rates()[-1] < 1e-3
    exponential = rates(schedule="exponential", lr_end=0.01)
    np.testing.assert_allclose(exponential[100], 0.1)
    np.testing.assert_allclose(exponential[1:] / exponential[:-1], 0.01 ** (1 / 200))
    cycle = rates(schedule="one_cycle")
    assert cycle.argmax() == 60
    np.testing.assert_allclose(cycle[0], 1 / 25)
    assert (np.diff(cycle[:60]) > 0).all()
    assert (np.diff(cycle[61:]) < 0).all()
    warm = rates(warmup=0.1, schedule="constant")
    np.testing.assert_allclose(warm[:21], [*(np.arange(1, 21) / 20), 1])
    snapshots = rates(averaging="snapshots", snapshots=4)
    assert np.flatnonzero(snapshots == 1).tolist() == [0, 50, 100, 150]


def test_plateau_halves_after_patience_and_waits_again(data):
    metric = fine_tuning(data).metric
    values = [5.0, 4.0, 4.5, 4.5, 3.9, 4.0, 4.0, 4.0, 4.0]
    assert [halvings(values[: k + 1], 2, metric) for k in range(len(values))] == [0, 0, 0, 1, 1, 1, 2, 2, 3]


def test_swa_is_the_mean_of_the_epochs_and_history_shows_both(data):
    run = fine_tuning(data, epochs=4, averaging="swa", swa_start=0.5, schedule="constant")
    weights = []
    with one_thread():
        for _ in run.epochs():
            weights.append([flat.detach().clone() for flat in run.flats])
    (mean,) = run.averaging.judged()
    for k, values in enumerate(mean):
        torch.testing.assert_close(values, (weights[3][k] + weights[4][k]) / 2)
    assert [result.val_metric == result.val_metric_current for result in run.history] == [True] * 4 + [False]


def test_ema_follows_the_weights_at_its_decay(data):
    run = fine_tuning(data, epochs=1, averaging="ema", ema_decay=0.5)
    expected = [flat.detach().clone() for flat in run.flats]
    step = run.optimizer.step

    def watched():
        step()
        watched.n += 1
        keep = min(0.5, (1 + watched.n) / (10 + watched.n))
        for mean, flat in zip(expected, run.flats, strict=True):
            mean.mul_(keep).add_(flat.detach(), alpha=1 - keep)

    watched.n = 0
    run.optimizer.step = watched
    finished(run)
    for mean, values in zip(run.averaging.mean, expected, strict=True):
        torch.testing.assert_close(mean, values)
    assert run.history[1].val_metric != run.history[1].val_metric_current


def test_snapshots_predict_the_mean_of_their_members_from_a_file_too(data, tmp_path):
    run = trained(data, averaging="snapshots", snapshots=4, keep="last")
    fitted = run.fitted()
    assert len(fitted.networks) == 4
    expected = fitted.predict_rows(data.rows, TEST).values
    members = [replace(run.make_fitted([network], run.kept_transform), reach=None) for network in fitted.networks]
    alone = [member.predict_rows(data.rows, TEST).values for member in members]
    np.testing.assert_allclose(np.mean(alone, axis=0), expected, atol=1e-6)
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(alone, 2)) > 1e-4
    FittedModel(CHGNET, fitted, {}).save(tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth").predict([data.structures[k] for k in TEST])
    np.testing.assert_allclose(loaded, expected, rtol=0, atol=1e-5)


def test_the_last_epoch_is_kept_where_that_is_asked_for(data):
    best, last = trained(data), trained(data, keep="last")
    np.testing.assert_array_equal(numbers(best), numbers(last))
    assert last.kept_epoch == EPOCHS > best.kept_epoch
    for run in (best, last):
        found = run.fitted().predict_rows(data.rows, VAL).values
        np.testing.assert_array_equal(found, run.val_predictions)
        assert np.abs(found - data.targets[VAL]).mean() == run.history[run.kept_epoch].val_metric


@pytest.mark.parametrize("with_features", [True, False])
def test_mixing_at_a_share_of_one_changes_nothing_and_at_a_half_both_count(data, with_features):
    run = fine_tuning(data, rows=data.rows if with_features else graphs_alone(data.rows))
    batch = run.inputs.batch(np.arange(6))
    partner = torch.tensor([1, 0, 3, 2, 5, 4])

    def outputs(mix):
        with torch.no_grad():
            return run.network(batch, mix)

    def mixed(share, seed=0):
        return outputs(Mix(partner, share, torch.Generator().manual_seed(seed)))

    with one_thread():
        plain = outputs(None)
        torch.testing.assert_close(mixed(1.0), plain)
        # With nothing of itself left a crystal is its partner, but for which atoms are drawn: right on average.
        mean = torch.stack([mixed(0.0, seed) for seed in range(100)]).mean(0)
        assert float((mean - plain[partner]).abs().max()) < 0.35 * float((plain - plain[partner]).abs().min())
        assert float((mixed(0.5) - plain).abs().min()) > 1e-3


def test_moved_crystals_are_moved_as_much_as_asked_and_the_given_ones_not_at_all(data):
    graphs = data.rows.graphs
    before = graphs.frac_coords.copy(), graphs.lattices.copy()
    noisy = moved(graphs, 0.05, 0.0, [0])
    owner = np.repeat(np.arange(len(graphs)), graphs.atoms_per_graph)
    shift = np.einsum("ai,aij->aj", noisy.frac_coords - graphs.frac_coords, graphs.lattices[owner])
    assert shift.std() == pytest.approx(0.05, rel=0.1)
    strained = moved(graphs, 0.0, 0.01, [0])
    strain = np.linalg.solve(graphs.lattices, strained.lattices) - np.eye(3)
    np.testing.assert_allclose(strain, strain.transpose(0, 2, 1), atol=1e-5)
    assert strain.std() == pytest.approx(0.01, rel=0.15)
    np.testing.assert_array_equal(graphs.frac_coords, before[0])
    np.testing.assert_array_equal(graphs.lattices, before[1])
    assert (moved(graphs, 0.05, 0.0, [1]).frac_coords != noisy.frac_coords).any()


def test_noise_is_in_training_only(data):
    """At a learning rate that moves nothing, validation is as without noise, and the loss on the way is not."""
    plain, noisy = (trained(data, epochs=1, lr=1e-12, jitter=jitter) for jitter in (0.0, 0.1))
    np.testing.assert_allclose(numbers(noisy)[:, 3], numbers(plain)[:, 3], rtol=1e-6)
    assert abs(numbers(noisy)[1, 1] - numbers(plain)[1, 1]) > 1e-3


def test_depths_open_one_after_the_other(data):
    run = fine_tuning(data, epochs=4, freeze_depth="last_two_convs", unfreeze_every=1)
    before = [flat.detach().clone() for flat in run.flats]
    moving = []
    with one_thread():
        for _ in run.epochs():
            moving.append([not torch.equal(a, b) for a, b in zip(before, run.flats, strict=True)])
    assert moving == [[False] * 3, [True, False, False], [True, True, False], [True] * 3, [True] * 3]
    assert any("atom_conv_layers.2" in name for name in run.trained_parameters)


def test_deeper_layers_learn_more_slowly_by_the_decay(data):
    run = fine_tuning(data, epochs=1, freeze_depth="full", layer_decay=0.5)
    finished(run)
    lrs = [group["lr"] for group in run.optimizer.param_groups]
    np.testing.assert_allclose(np.array(lrs[1:]) / lrs[:-1], 0.5)
    assert len(lrs) == 5


def test_a_refitted_reference_fits_the_trained_network(data):
    once, again = trained(data), trained(data, refit_reference=True)
    assert not np.array_equal(
        once.objective.transform.reference.coefficients, again.objective.transform.reference.coefficients
    )
    outputs = again._outputs([flat.detach() for flat in again.flats], TRAIN)
    fractions = data.rows.fractions[TRAIN].astype(float)
    before, after = (fractions @ one.objective.transform.reference.coefficients + outputs for one in (once, again))
    errors = [np.abs(said - data.targets[TRAIN]).mean() for said in (before, after)]
    assert errors[1] < errors[0]


def test_ridge_and_no_reference_are_what_they_say(data):
    ridge, none = (fine_tuning(data, reference=name) for name in ("ridge", "none"))
    assert not none.objective.transform.reference.coefficients.any()
    residual = data.targets[TRAIN] - predictions(ridge, TRAIN)
    assert residual.mean() == pytest.approx(0, abs=1e-3)  # a ridge has an intercept
    assert np.abs(residual).mean() < np.abs(data.targets[TRAIN] - predictions(none, TRAIN)).mean() / 3


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss_delta": 0.2}, "loss_delta 0.2 changes nothing with loss 'mae'; it goes with loss huber or log_cosh"),
        ({"ema_decay": 0.9}, "ema_decay 0.9 changes nothing with averaging 'none'"),
        ({"schedule": "one_cycle", "warmup": 0.1}, "warmup 0.1 changes nothing with schedule 'one_cycle'"),
        ({"layer_decay": 0.9}, "layer_decay 0.9 changes nothing with freeze_depth 'readout'"),
        ({"mixup_alpha": 1.0}, "mixup_alpha 1.0 changes nothing with mixup False"),
        ({"freeze_depth": "none", "epochs": 0, "jitter": 0.1}, "jitter 0.1 changes nothing with freeze_depth none"),
        ({"averaging": "snapshots", "schedule": "constant"}, "averaging snapshots with schedule 'constant'"),
        ({"schedule": "plateau", "patience": 9, "epochs": 9}, "patience 9 with epochs 9: the rate would never fall"),
        ({"reference": "none", "refit_reference": True}, "there is nothing to fit again"),
        ({"loss": "cross_entropy", "target_scale": "robust"}, "classes have no scale"),
    ],
)
def test_a_lever_that_would_do_nothing_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        CHGNetConfig(**fields)


def test_what_training_has_to_beat_has_the_corrections_undone_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("parameters: {undo_mp2020: true}\n")
    assert untrained(load_space(str(tmp_path / "mine.yaml")), "regression")["undo_mp2020"] is True
    assert untrained(load_space("mp_e_form_gp"), "regression")["undo_mp2020"] is True
    assert untrained(load_space("head_finetune"), "regression")["undo_mp2020"] is False
