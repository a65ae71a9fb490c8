"""The Gaussian process: equal to scikit-learn's, better than the reference, honest about what it does not know."""

import io
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from model_cases import PEROVSKITES, one_thread, sample, thirds
from pydantic import ValidationError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from data.crystals.corrections import mp2020_minus_legacy
from models.crystals.chgnet.features import GraphInputs, backbone_features
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.gaussian_process.model import (
    GAUSSIAN_PROCESS,
    GaussianProcessConfig,
    fit_gaussian_process,
    pooled_features,
)
from models.crystals.gaussian_process.posterior import Points, likely_strengths, posterior, projected_posterior
from models.model import TrainingPart

N_ROWS = 300
FEATURE_STRENGTH, LENGTH, NOISE = 0.7, 1.3, 0.05


def points(n, n_features=3):
    rng = np.random.default_rng(n)
    fractions = rng.dirichlet(np.full(4, 0.4), n)
    features = torch.from_numpy(rng.normal(size=(n, n_features)))
    one_row_each = torch.ones(n, dtype=torch.int64), torch.ones(n, dtype=torch.float64)
    return Points(features, torch.from_numpy(np.pad(fractions, ((0, 0), (0, 90)))), *one_row_each)


def atoms(n, n_features=3):
    """The same crystals with one to four rows of features each."""
    rng, pooled = np.random.default_rng(n), points(n, n_features)
    rows_of = torch.from_numpy(rng.integers(1, 5, n))
    shares = torch.cat([torch.from_numpy(rng.dirichlet(np.ones(k))) for k in rows_of.tolist()])
    features = torch.from_numpy(rng.normal(size=(len(shares), n_features)))
    return Points(features, pooled.fractions, rows_of, shares)


def strengths(composition=0.0, composition_length=1.0):
    return torch.tensor([FEATURE_STRENGTH, LENGTH, composition, composition_length, NOISE], dtype=torch.float64)


def values_at(crystals):
    return np.sin(2 * crystals.features[:, 0].numpy()) + crystals.fractions[:, 1].numpy()


def config(**fields):
    return GaussianProcessConfig(**({"undo_mp2020": False} | fields))


def part(targets=None, quantity="energy_per_atom", kind="regression", train=None):
    targets = sample(N_ROWS).targets if targets is None else targets
    positions, val, _ = thirds(N_ROWS)
    train = positions if train is None else train
    visible = np.full(len(targets), np.nan)
    visible[train] = targets[train]
    visible[val] = targets[val]
    return TrainingPart(visible, train, val, kind, quantity)


@cache
def fitted(**fields):
    with one_thread():
        return fit_gaussian_process(config(**fields), sample(N_ROWS).rows, part())


def predicted(model, which=None, rows=None):
    with one_thread():
        return model.predict_rows(rows or sample(N_ROWS).rows, thirds(N_ROWS)[2] if which is None else which)


@pytest.mark.parametrize(
    ("kernel", "theirs"),
    [
        ("matern12", Matern(LENGTH * 3**0.5, nu=0.5)),
        ("matern32", Matern(LENGTH * 3**0.5, nu=1.5)),
        ("matern52", Matern(LENGTH * 3**0.5, nu=2.5)),
        ("rbf", RBF(LENGTH * 3**0.5)),
    ],
)
def test_the_posterior_is_that_of_scikit_learn(kernel, theirs):
    seen, new = points(40), points(25)
    ours = posterior(kernel, "none", strengths(), seen, values_at(seen))
    reference = GaussianProcessRegressor(
        ConstantKernel(FEATURE_STRENGTH**2) * theirs, alpha=NOISE**2 + 1e-8 * FEATURE_STRENGTH**2, optimizer=None
    ).fit(seen.features.numpy(), values_at(seen))
    mean, std = ours.at(new)
    expected, of_function = reference.predict(new.features.numpy(), return_std=True)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(of_function**2 + NOISE**2), atol=1e-5)


@pytest.mark.parametrize("composition", ["linear", "pairs", "kernel"])
def test_the_term_of_the_composition_is_what_it_says(composition):
    seen, new = points(30), points(20)
    a, b = new.fractions.numpy(), seen.fractions.numpy()
    terms = {
        "linear": lambda x, y: x @ y.T,
        "pairs": lambda x, y: np.array(
            [[np.outer(one, one).ravel() @ np.outer(two, two).ravel() for two in y] for one in x]
        ),
        "kernel": RBF(0.4),
    }
    of_features = RBF(LENGTH * 3**0.5)

    def k(x, y, u, v):
        return FEATURE_STRENGTH**2 * of_features(x.features.numpy(), y.features.numpy()) + 0.6**2 * terms[composition](
            u, v
        )

    gram = k(seen, seen, b, b) + NOISE**2 * np.eye(30)
    cross = k(new, seen, a, b)
    mean, std = posterior("rbf", composition, strengths(0.6, 0.4), seen, values_at(seen)).at(new)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(gram, values_at(seen)), atol=1e-5)
    variance = np.diag(k(new, new, a, a) - cross @ np.linalg.solve(gram, cross.T)) + NOISE**2
    np.testing.assert_allclose(std, np.sqrt(variance), atol=1e-5)


def test_of_atoms_the_covariance_is_the_mean_over_pairs_of_them():
    """Posterior mean and deviation from matrices written out, atom by atom."""
    seen, new = atoms(30), atoms(12)

    def split(crystals):
        ends = np.cumsum(crystals.rows_of.numpy())[:-1]
        return np.split(crystals.features.numpy(), ends), np.split(crystals.shares.numpy(), ends)

    def average(one, its, other, theirs):
        squared = ((one[:, None] - other[None]) ** 2).mean(axis=2) / LENGTH**2
        return its @ np.exp(-squared / 2) @ theirs

    def k(a, b):
        (xa, sa), (xb, sb) = split(a), split(b)
        itself = [[average(x, s, x, s) for x, s in zip(*one, strict=True)] for one in ((xa, sa), (xb, sb))]
        raw = [[average(x, s, y, t) for y, t in zip(xb, sb, strict=True)] for x, s in zip(xa, sa, strict=True)]
        return FEATURE_STRENGTH**2 * np.array(raw) / np.sqrt(np.outer(*itself))

    values = np.random.default_rng(1).normal(size=30)
    gram, cross = k(seen, seen) + NOISE**2 * np.eye(30), k(new, seen)
    found = posterior("rbf", "none", strengths(0.0), seen, values)
    mean, std = found.at(new)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(gram, values), atol=1e-5)
    variance = np.diag(k(new, new) - cross @ np.linalg.solve(gram, cross.T)) + NOISE**2
    np.testing.assert_allclose(std, np.sqrt(variance), atol=1e-5)
    through = projected_posterior("rbf", "none", strengths(0.0), seen, values, np.arange(30))
    np.testing.assert_allclose(through.at(new)[0], mean, atol=1e-4)
    some = np.array([3, 7, 8])
    np.testing.assert_allclose(found.at(new.at(some))[0], mean[some], atol=1e-9)


def test_equivalent_atoms_count_as_often_as_they_are_there():
    """A symmetric crystal gives the same predictions whether its equivalent atoms are kept once or all."""
    rows, (train, _, test) = sample(N_ROWS).rows, thirds(N_ROWS)
    some = part(train=train[:60])
    network, cpu = CHGNetwork("0.3.0"), torch.device("cpu")
    with one_thread():
        inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, cpu, collapse=True)
        once = replace(rows, features=backbone_features(network, inputs, np.arange(N_ROWS)))
        assert len(once.features.values) < 0.8 * len(rows.features.values)
        settings = config(features="atoms", noise=0.02, length_scale=1.0)
        all_atoms, kept_once = (fit_gaussian_process(settings, one, some) for one in (rows, once))
        expected = all_atoms.predict_rows(rows, test)
        found = kept_once.predict_rows(once, test)
    np.testing.assert_allclose(found.values, expected.values, atol=2e-3)
    np.testing.assert_allclose(found.std, expected.std, rtol=0.05)


def test_inducing_points_stand_in_for_the_data():
    seen, new = points(120, n_features=2), points(50, n_features=2)
    arguments = "matern52", "linear", strengths(0.5), seen, values_at(seen)
    mean, std = posterior(*arguments).at(new)
    same_mean, same_std = projected_posterior(*arguments, np.arange(120)).at(new)  # all of them: nothing is lost
    np.testing.assert_allclose(same_mean, mean, atol=1e-4)
    np.testing.assert_allclose(same_std, std, atol=1e-4)
    near_mean, near_std = projected_posterior(*arguments, np.arange(60)).at(new)
    error, near_error = (np.abs(one - values_at(new)).mean() for one in (mean, near_mean))
    assert near_error < 1.5 * error + 0.02
    assert np.median(near_std / std) < 1.5


def test_strengths_are_at_least_as_likely_as_those_scikit_learn_finds():
    seen = points(80)
    values = values_at(seen) + np.random.default_rng(0).normal(0, NOISE, 80)
    with one_thread():
        found = likely_strengths("matern32", "none", seen, values, {2: 0.0, 3: 1.0})
    theirs = GaussianProcessRegressor(
        ConstantKernel(1.0) * Matern(1.0, length_scale_bounds=(0.05, 100), nu=1.5), alpha=float(found[4]) ** 2
    ).fit(seen.features.numpy(), values)
    ours = theirs.log_marginal_likelihood(np.log([float(found[0]) ** 2, float(found[1]) * 3**0.5]))
    assert ours > theirs.log_marginal_likelihood_value_ - 0.05


def test_strengths_that_are_given_stay():
    seen = points(40)
    found = likely_strengths("rbf", "linear", seen, values_at(seen), {1: 0.9, 3: 1.0, 4: 0.02})
    assert found[1].item() == pytest.approx(0.9)
    assert found[4].item() == pytest.approx(0.02)
    assert found[0] > 0
    assert found[2] > 0


def test_it_predicts_unseen_crystals_better_than_chgnet_with_its_reference():
    data, test = sample(N_ROWS), thirds(N_ROWS)[2]
    model = fitted()
    error = np.abs(predicted(model).values - data.targets[test]).mean()
    reference = model.reference.predict(data.rows.fractions[test].astype(float)) + data.rows.outputs[test]
    assert error < 0.95 * np.abs(reference - data.targets[test]).mean()


def test_known_corrections_are_used_as_they_are():
    data, test = sample(N_ROWS), thirds(N_ROWS)[2]
    known = replace(data.rows, corrections=mp2020_minus_legacy(data.rows.graphs, np.arange(N_ROWS)))
    np.testing.assert_array_equal(
        predicted(fitted(undo_mp2020=True), rows=known).values, predicted(fitted(undo_mp2020=True)).values
    )
    shifted = replace(known, corrections=known.corrections + 1.0)
    moved = predicted(fitted(undo_mp2020=True), rows=shifted).values
    np.testing.assert_allclose(moved, predicted(fitted(undo_mp2020=True), test).values - 1.0)


def test_the_uncertainty_is_about_right_and_larger_for_chemistry_it_has_not_seen():
    data, (_, val, test) = sample(N_ROWS), thirds(N_ROWS)
    held_out = np.concatenate([val, test])
    found = predicted(fitted(), held_out)
    within = np.abs(found.values - data.targets[held_out]) < 2 * found.std
    assert within.mean() > 0.85
    assert np.abs(found.values - data.targets[held_out]).mean() > 0.1 * found.std.mean()

    has_halogen = data.rows.fractions[:, [8, 16, 34, 52]].sum(axis=1) > 0  # F, Cl, Br, I
    assert 15 < has_halogen.sum() < N_ROWS / 2
    with one_thread():
        model = fit_gaussian_process(config(), data.rows, part(train=np.flatnonzero(~has_halogen)[::2]))
    unseen = predicted(model, np.flatnonzero(has_halogen)).std
    alike = predicted(model, np.flatnonzero(~has_halogen)[1::2]).std
    assert np.median(unseen) > 1.5 * np.median(alike)


def test_a_crystal_is_predicted_alike_from_features_and_from_its_structure():
    rows, test = sample(N_ROWS).rows, thirds(N_ROWS)[2][:20]
    from_features = predicted(fitted(), test)
    new = predicted(fitted(), test, replace(rows, features=None, outputs=None))
    np.testing.assert_allclose(new.values, from_features.values, atol=5e-4)
    np.testing.assert_allclose(new.std, from_features.std, atol=5e-4)


@pytest.mark.parametrize("exact_up_to", [8000, 50])
def test_what_is_loaded_predicts_the_same(exact_up_to):
    model = fitted(exact_up_to=exact_up_to, inducing_rows=50)
    file = io.BytesIO()
    torch.save(model.content(), file)
    file.seek(0)
    loaded = GAUSSIAN_PROCESS.load(torch.load(file, weights_only=True), "cpu")
    expected, found = predicted(model), predicted(loaded)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.std, expected.std)


def test_the_energy_of_a_cell_is_that_of_its_atoms():
    data = sample(N_ROWS)
    n_atoms = data.rows.n_atoms
    with one_thread():
        model = fit_gaussian_process(config(), data.rows, part(data.targets * n_atoms, "energy_per_cell"))
    per_cell, per_atom = predicted(model), predicted(fitted())
    test = thirds(N_ROWS)[2]
    np.testing.assert_allclose(per_cell.values, per_atom.values * n_atoms[test], atol=1e-6)
    np.testing.assert_allclose(per_cell.std, per_atom.std * n_atoms[test], atol=1e-6)


def test_a_target_that_is_no_energy_is_learnt_too():
    data, test = sample(N_ROWS), thirds(N_ROWS)[2]
    volume = np.log([structure.volume / len(structure) for structure in data.structures])
    with one_thread():
        model = fit_gaussian_process(config(), data.rows, part(volume, "other"))
    error = np.abs(predicted(model).values - volume[test]).mean()
    assert error < 0.75 * np.abs(model.reference.predict(data.rows.fractions[test].astype(float)) - volume[test]).mean()


@pytest.mark.parametrize(
    "fields",
    [
        {"features": "mean"},
        {"features": "atoms"},
        {"kernel": "matern12"},
        {"kernel": "matern32"},
        {"kernel": "rbf"},
        {"length_scale": 0.4},
        {"noise": 0.1},
        {"reference": "ridge"},
        {"undo_mp2020": True},
        {"exact_up_to": 100, "inducing_rows": 100},
        {"exact_up_to": 100, "inducing_rows": 60},
        {"exact_up_to": 100, "inducing_rows": 60, "seed": 1},
    ],
    ids=str,
)
def test_every_field_does_something(fields):
    moved = np.abs(predicted(fitted(**fields)).values - predicted(fitted()).values)
    assert moved.max() > 1e-5
    assert np.median(moved) < 0.1  # and nothing breaks


def test_every_term_of_the_composition_does_something():
    # of perovskites: of the other energies the composition explains nothing that the features do not
    n_rows = 2 * N_ROWS
    data = sample(n_rows, file=PEROVSKITES)
    train, val, test = thirds(n_rows)
    energies = TrainingPart(data.targets, train, val, "regression", "energy_per_atom")
    found = []
    with one_thread():
        for one in ("none", "linear", "pairs", "kernel"):
            model = fit_gaussian_process(config(composition=one), data.rows, energies)
            found.append(model.predict_rows(data.rows, test).values)
    assert all(np.abs(a - b).max() > 1e-4 for k, a in enumerate(found) for b in found[:k])


def test_features_are_pooled_over_atoms_however_they_are_kept():
    data = sample(60)
    network, which = CHGNetwork(), np.array([3, 41, 3, 17])
    inputs = GraphInputs(data.rows.graphs, network.bond_graph_cutoff, torch.device("cpu"), collapse=True)
    with one_thread():
        collapsed = backbone_features(network, inputs, np.arange(60))
    assert len(collapsed.values) < len(data.rows.features.values)
    pooled = pooled_features(data.rows.features, which, spread=True)
    of_atoms = np.split(data.rows.features.values, data.rows.graphs.atom_start[1:-1])
    np.testing.assert_allclose(pooled[:, :64], [of_atoms[k].mean(axis=0) for k in which], atol=1e-5)
    np.testing.assert_allclose(pooled[:, 64:], [of_atoms[k].std(axis=0) for k in which], atol=1e-5)
    np.testing.assert_allclose(pooled_features(collapsed, which, spread=True), pooled, atol=1e-3)
    np.testing.assert_array_equal(
        pooled_features(collapsed, which, spread=False), pooled_features(collapsed, which, spread=True)[:, :64]
    )


def test_it_runs_as_any_model_of_a_sweep_does():
    data = sample(N_ROWS)
    with one_thread():
        run = GAUSSIAN_PROCESS.start(config(), data.rows, part(), "cpu")
        (epoch,) = run.epochs()
        again = GAUSSIAN_PROCESS.start(config(), data.rows, part(), "cpu")
        again.restore(run.state())
        np.testing.assert_array_equal(predicted(again.fitted()).values, predicted(run.fitted()).values)
    assert 0 < epoch.val_metric < 0.2
    assert epoch.train_loss < epoch.val_metric


def test_what_does_not_go_together_is_refused():
    unsuited = GAUSSIAN_PROCESS.unsuited
    assert unsuited(config(), "regression", "other") is None
    assert "classification" in unsuited(config(), "classification", "other")
    assert "undo_mp2020 corrects CHGNet's energies" in unsuited(config(undo_mp2020=True), "regression", "other")
    with pytest.raises(ValidationError, match="r2scan"):
        config(undo_mp2020=True, weights="r2scan")


def test_a_fit_says_how_far_it_is():
    said = []
    data = sample(40, small=True)
    part = TrainingPart(data.targets, *thirds(40)[:2], "regression", "energy_per_atom", tell=said.append)
    fit_gaussian_process(GaussianProcessConfig(features="atoms"), data.rows, part)
    assert re.fullmatch(r"likelihood of \d+ rows, step 1 of at most 60", said[0])
    assert [int(re.search(r"step (\d+)", line).group(1)) for line in said[:-1]] == list(range(1, len(said)))
    assert said[-1].startswith("covariances of ")
