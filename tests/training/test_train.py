"""Training: reproducible, resumable, blind to labels it was not given, and moved by every field of its config."""

import copy
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from marks import whole_only
from model_cases import (
    OTHER_VALUES,
    PEROVSKITES,
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
from sklearn.metrics import log_loss, roc_auc_score

from models.crystals.chgnet.features import GraphInputs, backbone_features
from models.crystals.chgnet.model import CHGNetConfig
from models.crystals.chgnet.network import CHGNetwork, _load_stock
from models.crystals.reference import fit_class_reference, fit_property_reference
from models.training.inputs import predict
from models.training.train import NonFiniteLossError

N_ROWS = 48
TRAIN, VAL, TEST = thirds(N_ROWS)


@pytest.fixture
def data():
    return sample(N_ROWS, small=True)


def classes(data) -> np.ndarray:
    return (data.targets < np.median(data.targets)).astype(np.float64)


def interrupted(epochs_before: int, *arguments, **options):
    """A run that is killed after some epochs (the first is epoch 0), and goes on from its file in a new object."""
    first = fine_tuning(*arguments, **options)
    with one_thread():
        for _, _ in zip(range(epochs_before), first.epochs(), strict=False):
            pass
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = fine_tuning(*arguments, **options)
    second.restore(torch.load(file, weights_only=True))
    assert len(second.history) == epochs_before
    return finished(second)


@pytest.mark.parametrize("quantity", ["energy_per_atom", "other"])
def test_cached_features_train_as_graphs_do(data, quantity):
    cached = finished(fine_tuning(data, quantity=quantity, epochs=8))
    recomputed = finished(fine_tuning(data, rows=graphs_alone(data.rows), quantity=quantity, epochs=8))
    assert type(cached.inputs) is not type(recomputed.inputs)
    np.testing.assert_allclose(numbers(cached), numbers(recomputed), rtol=0, atol=2e-5)
    np.testing.assert_allclose(predictions(cached), predictions(recomputed), rtol=0, atol=2e-5)
    moved = np.abs(predictions(cached) - predictions(fine_tuning(data, quantity=quantity)))
    assert moved.max() > 1e-2  # there was something to agree on


@pytest.mark.parametrize(
    ("depth", "epochs_before"),
    [
        ("readout", 1),
        ("last_two_convs", 3),
        ("full", 5),
        *whole_only(("readout", 3), ("readout", 5), ("last_two_convs", 1), ("last_two_convs", 5)),
        *whole_only(("full", 1), ("full", 3)),
    ],
)
def test_resumed_is_uninterrupted(data, depth, epochs_before):
    fields = {"freeze_depth": depth, "epochs": 4}
    assert_same_run(interrupted(epochs_before, data, **fields), finished(fine_tuning(data, **fields)))


def test_resumed_is_uninterrupted_where_the_readout_is_fresh(data):
    options = {"kind": "classification", "quantity": "other", "epochs": 4}
    whole = finished(fine_tuning(data, classes(data), **options))
    assert_same_run(interrupted(2, data, classes(data), **options), whole)


def test_resumed_is_uninterrupted_where_nothing_trains(data):
    fields = {"freeze_depth": "none", "epochs": 0}
    assert_same_run(interrupted(1, data, **fields), finished(fine_tuning(data, **fields)))


EMA, MIXED = {"averaging": "ema"}, {"freeze_depth": "full", "mixup": True}


@pytest.mark.parametrize(
    ("batch", "fields"), [(3, EMA), (1, MIXED), *whole_only((0, EMA), (1, EMA), (0, MIXED), (3, MIXED))]
)
def test_paused_between_two_batches_and_resumed_is_uninterrupted(data, batch, fields):
    """Four batches an epoch; the pause comes in the second epoch, asked for while a batch is computed."""
    fields = {"epochs": 3, **fields}
    first = fine_tuning(data, **fields)
    with one_thread():
        assert next(epochs := first.epochs()).epoch == 0
        assert next(epochs).epoch == 1
        computed = itertools.count()
        first.optimizer.register_step_pre_hook(lambda *_: first.pause() if next(computed) == batch - 1 else None)
        if batch == 0:
            first.pause()
        assert next(epochs, None) is None
    assert first.midway["batch"] == batch
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = fine_tuning(data, **fields)
    second.restore(torch.load(file, weights_only=True))
    assert_same_run(finished(second), finished(fine_tuning(data, **fields)))


def out_of_memory_above(n_rows, run):
    """Have a run's network run out of memory when it trains on more rows at once."""

    def refuse(module, arguments):
        if module.training and len(arguments[0].atoms_per_graph) > n_rows:
            raise torch.OutOfMemoryError("out of memory, as a test asked for")

    run.network.register_forward_pre_hook(refuse)
    return run


@pytest.mark.parametrize(("most", "parts"), [(2, 4), *whole_only((8, 1), (5, 2), (1, 8))])
def test_out_of_memory_costs_passes_and_changes_no_batch(data, most, parts):
    fields = {"freeze_depth": "full", "epochs": 2, "batch_size": 8, "loss": "mse", "lr": 1e-4}  # rounding stays small
    whole = finished(fine_tuning(data, **fields))
    run = finished(out_of_memory_above(most, fine_tuning(data, **fields)))
    assert [result.parts for result in run.history] == [1, parts, parts]
    np.testing.assert_allclose(numbers(run), numbers(whole), rtol=0, atol=4e-6)
    assert np.abs(numbers(whole)[0] - numbers(whole)[-1])[2] > 2e-5  # there was something to agree on
    resumed = fine_tuning(data, **fields)
    resumed.restore(run.state())
    assert resumed.parts == parts


@pytest.mark.parametrize("most", [7, 1])
def test_out_of_memory_halves_the_passes_of_predictions_and_of_features(data, most):
    network = CHGNetwork("0.3.0").eval()
    inputs = GraphInputs(data.rows.graphs, network.bond_graph_cutoff, torch.device("cpu"))
    which, computed = np.arange(20), network.atom_features

    def refusing(batch):
        if len(batch.atoms_per_graph) > most:
            raise torch.OutOfMemoryError("out of memory, as a test asked for")
        return computed(batch)

    found = []
    with one_thread():
        for atom_features in (computed, refusing):
            network.atom_features = atom_features
            found.append((predict(network, inputs, which), backbone_features(network, inputs, which)))
    (outputs, features), (outputs_of_few, features_of_few) = found
    np.testing.assert_allclose(outputs_of_few, outputs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features_of_few.values, features.values, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(features_of_few.atom_count, features.atom_count)
    np.testing.assert_array_equal(features_of_few.rows_per_graph, features.rows_per_graph)


def test_a_row_that_alone_does_not_fit_ends_the_run(data):
    with pytest.raises(torch.OutOfMemoryError):
        finished(out_of_memory_above(0, fine_tuning(data)))


def test_a_state_of_another_config_is_refused(data):
    with pytest.raises(ValueError, match=r"another config.*'lr': 0\.003.*lr=0\.002"):
        fine_tuning(data, lr=2e-3).restore(fine_tuning(data, lr=3e-3).state())


@pytest.mark.parametrize(
    ("weights", "depth"),
    [("0.3.0", "readout"), ("random", "full"), *whole_only(("0.3.0", "full"), ("random", "readout"))],
)
def test_same_seed_same_run_and_another_seed_another(weights, depth):
    data = sample(N_ROWS, weights, small=True)
    fields = {"weights": weights, "freeze_depth": depth, "epochs": 2}
    first = finished(fine_tuning(data, seed=1, **fields))
    torch.manual_seed(99)  # the random numbers of the process have no say
    np.random.seed(99)  # noqa: NPY002
    again, other = finished(fine_tuning(data, seed=1, **fields)), finished(fine_tuning(data, seed=2, **fields))
    assert np.abs(predictions(first) - predictions(other)).max() > 1e-5
    assert_same_run(first, again)


class TestLearns:
    def test_ten_crystals_by_heart(self):
        # perovskites, many on few elements: the elemental reference alone cannot know them by heart
        data = sample(300, file=PEROVSKITES)
        elements = np.argsort(-data.rows.fractions.sum(axis=0))
        for n_elements in range(3, 94):
            few = np.flatnonzero(data.rows.fractions[:, elements[n_elements:]].sum(axis=1) == 0)
            if len(few) >= 12:
                break
        few = few[:12]
        run = finished(
            fine_tuning(data, parts=(few[:10], few[10:]), freeze_depth="full", epochs=60, batch_size=10, lr=2e-3)
        )
        losses = numbers(run)[:, 1]
        assert losses[0] > 0.01  # eV/atom
        assert losses[-1] < losses[0] / 10

    @pytest.mark.whole
    def test_a_target_that_is_no_energy(self, data):
        run = finished(fine_tuning(data, quantity="other", freeze_depth="full", epochs=15))
        assert numbers(run)[-1, 1] < numbers(run)[0, 1] / 2

    @pytest.mark.whole
    def test_from_random_weights(self):
        data = sample(N_ROWS, "random", small=True)
        run = finished(fine_tuning(data, weights="random", freeze_depth="full", epochs=15))
        assert numbers(run)[-1, 1] < numbers(run)[0, 1] / 2

    @pytest.mark.whole
    def test_classes(self, data):
        run = finished(
            fine_tuning(data, classes(data), kind="classification", quantity="other", freeze_depth="full", epochs=10)
        )
        assert numbers(run)[-1, 1] < numbers(run)[0, 1] / 2


@pytest.mark.parametrize("quantity", ["energy_per_atom", *whole_only("other")])
def test_no_field_is_inert(quantity):
    outcomes = {}
    changes = [{field: value} for field, values in OTHER_VALUES.items() for value in values]
    for change in [{}, *changes]:
        fields = {"epochs": 2, "weight_decay": 0.1} | change
        if change.get("freeze_depth") == "none":
            fields = {"freeze_depth": "none", "epochs": 0}
        data = sample(24, fields.get("weights", "0.3.0"), small=True)
        run = finished(fine_tuning(data, rows=graphs_alone(data.rows), quantity=quantity, **fields))
        outcomes[str(change)] = predictions(run)
    for one, other in itertools.combinations(outcomes, 2):
        assert np.abs(outcomes[one] - outcomes[other]).max() > 5e-6, (one, other)  # eV/atom, above rounding


@pytest.mark.parametrize("quantity", ["energy_per_atom", "energy_per_cell", "other"])
@pytest.mark.parametrize("garbage", [np.nan, *whole_only(1e6)])
def test_labels_of_other_rows_never_matter(data, quantity, garbage):
    masked = np.full(N_ROWS, garbage)
    masked[TRAIN], masked[VAL] = data.targets[TRAIN], data.targets[VAL]
    scale = data.rows.graphs.atoms_per_graph if quantity == "energy_per_cell" else 1
    seen = finished(fine_tuning(data, data.targets * scale, quantity=quantity))
    unseen = finished(fine_tuning(data, masked * scale, quantity=quantity))
    assert_same_run(seen, unseen)


def test_labels_of_other_rows_never_matter_to_classes(data):
    masked = classes(data)
    masked[TEST] = np.nan
    options = {"kind": "classification", "quantity": "other"}
    assert_same_run(
        finished(fine_tuning(data, classes(data), **options)), finished(fine_tuning(data, masked, **options))
    )


def test_training_labels_teach_and_validation_labels_only_judge(data):
    untouched = finished(fine_tuning(data))
    judged, taught = data.targets.copy(), data.targets.copy()
    judged[VAL] += 0.3
    taught[TRAIN[::2]] += 0.3
    judged, taught = finished(fine_tuning(data, judged)), finished(fine_tuning(data, taught))
    np.testing.assert_array_equal(predictions(judged), predictions(untouched))
    assert (numbers(judged)[:, 3] != numbers(untouched)[:, 3]).all()
    assert np.abs(predictions(taught) - predictions(untouched)).max() > 0.1


@pytest.mark.parametrize("collapse", [False, True])
def test_an_epoch_of_full_fine_tuning_has_the_losses_of_stock_chgnet(data, collapse):
    """Stock's network, trained on its own graphs with the same batches, optimiser and gradient limit."""
    run = fine_tuning(data, freeze_depth="full", epochs=1, lr=1e-4, batch_size=8, collapse=collapse)
    with one_thread():
        list(run.epochs())
        stock = copy.deepcopy(_load_stock("0.3.0"))
        stock.requires_grad_(False)
        trained = [p for name, p in stock.named_parameters() if f"stock.{name}" in run.trained_parameters]
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, weight_decay=run.config.weight_decay)
        graphs = [stock.graph_converter(structure) for structure in data.structures]
        left_out = torch.from_numpy(data.rows.fractions) @ stock.composition_model.fc.weight.reshape(94)
        wanted = run.objective.goals + left_out

        def loss_of(which):
            said = stock([graphs[k] for k in which], task="e")["e"]
            return (said - wanted[torch.from_numpy(which)]).abs().mean()

        order = TRAIN[np.random.default_rng([run.config.seed, 1]).permutation(len(TRAIN))]
        batches = np.split(order, range(8, len(order), 8))
        losses = []
        for k, which in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = run.config.lr * 0.5 * (1 + math.cos(math.pi * k / len(batches)))
            optimizer.zero_grad()
            loss = loss_of(which)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, run.config.gradient_clip)
            optimizer.step()
            losses.append(float(loss.detach()) * len(which) / len(order))
        after = float(loss_of(VAL).detach())
    assert run.history[1].train_loss == pytest.approx(sum(losses), rel=1e-4)
    assert run.history[1].val_loss == pytest.approx(after, rel=1e-3)  # what Adam makes of rounding in the gradients
    assert abs(after - run.history[0].val_loss) > 20 * abs(after - run.history[1].val_loss)


@pytest.mark.parametrize("weights", ["0.3.0", "0.2.0"])
def test_epoch_0_is_stock_chgnet_and_a_linear_reference(weights):
    data = sample(N_ROWS, weights, small=True)
    run = finished(fine_tuning(data, weights=weights, freeze_depth="none", epochs=0))
    stock = _load_stock(weights)
    energy = np.array([float(stock.predict_structure(s, task="e")["e"]) for s in data.structures])
    own = run.network.composition_energies().double().numpy()
    elemental = own - run.objective.transform.reference.coefficients
    expected = energy - data.rows.fractions @ elemental
    np.testing.assert_allclose(predictions(run), expected, rtol=0, atol=2e-5)
    (epoch_0,) = run.history
    assert epoch_0.epoch == 0
    assert epoch_0.val_metric == pytest.approx(np.abs(expected - data.targets)[VAL].mean(), abs=2e-5)
    assert epoch_0.train_loss == pytest.approx(np.abs(expected - data.targets)[TRAIN].mean(), abs=2e-5)
    # A run that trains begins there, too, and training is an improvement on the element energies alone.
    trained = fine_tuning(data, weights=weights, freeze_depth="full")
    with one_thread():
        assert next(trained.epochs()).val_metric == pytest.approx(epoch_0.val_metric, abs=2e-5)


@pytest.mark.parametrize("depth", ["none", "readout", "full"])
def test_another_property_begins_at_its_ridge_reference(data, depth):
    volume = np.array([structure.volume / len(structure) for structure in data.structures])
    run = fine_tuning(data, volume, quantity="other", freeze_depth=depth, epochs=3 * (depth != "none"))
    epoch_0 = next(run.epochs())
    reference = fit_property_reference(data.rows.fractions[TRAIN].astype(np.float64), volume[TRAIN])
    expected = reference.predict(data.rows.fractions)
    np.testing.assert_array_equal(predictions(run), expected)
    assert epoch_0.val_metric == np.abs(expected - volume)[VAL].mean()
    finished(run)
    assert (np.abs(predictions(run) - expected).max() > 1e-3) == (depth != "none")


def test_energy_per_cell_is_energy_per_atom_times_atoms(data):
    n_atoms = data.rows.graphs.atoms_per_graph
    assert len(set(n_atoms.tolist())) > 3
    per_atom = finished(fine_tuning(data, freeze_depth="last_conv"))
    per_cell = finished(fine_tuning(data, data.targets * n_atoms, freeze_depth="last_conv", quantity="energy_per_cell"))
    np.testing.assert_allclose(predictions(per_cell) / n_atoms, predictions(per_atom), rtol=0, atol=2e-5)
    np.testing.assert_allclose(numbers(per_cell)[:, 1:3], numbers(per_atom)[:, 1:3], rtol=0, atol=2e-5)
    error = np.abs(predictions(per_cell) - data.targets * n_atoms)[VAL].mean()
    assert per_cell.history[-1].val_metric == pytest.approx(error)  # in the task's own unit


def test_classification_reports_cross_entropy_and_roc_auc(data):
    labels = classes(data)
    options = {"kind": "classification", "quantity": "other"}
    run = fine_tuning(data, labels, epochs=6, **options)
    epoch_0 = next(run.epochs())
    reference = fit_class_reference(data.rows.fractions[TRAIN].astype(np.float64), labels[TRAIN])
    np.testing.assert_allclose(predictions(run), 1 / (1 + np.exp(-reference.predict(data.rows.fractions))))
    assert epoch_0.train_loss == pytest.approx(log_loss(labels[TRAIN], predictions(run, TRAIN)), abs=1e-5)
    finished(run)
    probability = predictions(run, VAL)
    assert ((probability > 0) & (probability < 1)).all()
    last = run.history[-1]
    assert last.val_loss == pytest.approx(log_loss(labels[VAL], probability), abs=1e-5)
    assert last.val_metric == pytest.approx(roc_auc_score(labels[VAL], probability))
    assert run.history[run.kept_epoch].val_metric == max(result.val_metric for result in run.history)


def test_the_best_model_is_that_of_the_kept_epoch(data):
    kept_epochs = set()
    for lr in (3e-3, 1e-2, 3e-2):
        run = finished(fine_tuning(data, quantity="other", freeze_depth="last_conv", lr=lr, epochs=12))
        metrics = [result.val_metric for result in run.history]
        assert run.history[run.kept_epoch].val_metric == min(metrics)
        last = predictions(run, VAL)
        model = run.fitted()
        with one_thread():
            found = model.predict_rows(replace(data.rows, collapse=False), VAL).values
        assert np.abs(found - data.targets[VAL]).mean() == run.history[run.kept_epoch].val_metric
        kept_epochs.add(run.kept_epoch)
        if run.kept_epoch < 12:
            assert np.abs(found - last).max() > 1e-4
    assert any(0 < epoch < 12 for epoch in kept_epochs)


@pytest.mark.parametrize("batch_size", [7, 8, 1000])
def test_an_epoch_reports_the_mean_over_its_rows_and_the_falling_learning_rate(data, batch_size):
    # At a learning rate that moves nothing, the loss on the way is the loss before, however rows are batched.
    run = finished(fine_tuning(data, quantity="other", lr=1e-12, batch_size=batch_size))
    losses = numbers(run)[:, 1]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    rates = numbers(run)[:, 4]
    assert rates[0] == 1e-12
    assert (np.diff(rates[1:]) < 0).all()
    n_steps = 3 * math.ceil(len(TRAIN) / batch_size)
    assert rates[-1] == pytest.approx(0.5e-12 * (1 + math.cos(math.pi * (n_steps - 1) / n_steps)))


def test_a_loss_that_is_not_finite_names_epoch_and_config():
    data = sample(N_ROWS, "0.2.0", small=True)  # no norms: a learning rate of 1 sends it to infinity
    with pytest.raises(NonFiniteLossError, match=r"loss (inf|nan) in epoch \d, batch \d+ of 4.*lr=1\.0.*loss='mse'"):
        finished(fine_tuning(data, weights="0.2.0", freeze_depth="full", lr=1.0, loss="mse"))


def test_a_broken_validation_part_names_epoch_and_config(data):
    targets = data.targets.copy()
    targets[VAL[0]] = np.nan
    with pytest.raises(NonFiniteLossError, match=r"validation mae nan after epoch 0 with CHGNetConfig\(.*seed=3"):
        finished(fine_tuning(data, targets, seed=3))


@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_depth": "none", "epochs": 5},
        {"freeze_depth": "full", "epochs": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"batch_size": 0},
        {"loss": "rmse"},
        {"learning_rate": 1e-3},
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields):
    with pytest.raises(ValueError, match="|".join(fields)):
        CHGNetConfig(**fields)
