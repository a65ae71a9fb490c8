"""Trust: what is far from training is marked and can be replaced, what is not stays as it is."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from model_cases import fine_tuning, finished, one_thread, sample, thirds
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from typer.testing import CliRunner

from data.crystals.task_table import DEMO
from data.metrics import METRICS, TRUSTED
from models.crystals.ase_calculator import EnergyCalculator
from models.crystals.chgnet.model import CHGNET
from models.crystals.linear import RIDGE, RidgeConfig, fit_ridge
from models.crystals.trust import Trust, calibration_rows, fit_trust, measures
from models.fitted import FittedModel, SeedEnsemble, load_model
from models.model import Prediction, TrainingPart
from models.predict import app
from tune.analysis.trusted import trust_facts, trust_sentence

N_ROWS = 90
TRAIN, VAL, TEST = thirds(N_ROWS)
ABOUT = {"task": "made", "target": "e", "unit": "eV/atom", "labels": "made for a test", "quantity": "energy_per_atom"}


@pytest.fixture(scope="module")
def data():
    return sample(N_ROWS, file=DEMO.name, small=True)


@pytest.fixture(scope="module")
def run(data):
    return finished(fine_tuning(data, parts=(TRAIN, VAL), epochs=3))


@pytest.fixture(scope="module")
def fitted(run):
    return run.fitted()


@pytest.fixture(scope="module")
def trust(data, run, fitted) -> Trust:
    calibration = calibration_rows(run.part)
    predicted = fitted.predict_rows(data.rows, calibration).values
    return fit_trust(data.rows, run.part, predicted, weights="0.3.0", energies=True)


@pytest.fixture
def model(fitted, trust) -> FittedModel:
    return FittedModel(CHGNET, fitted, dict(ABOUT), trust)


def of_test(data, fitted, trust, **options) -> Prediction:
    return trust.mark(data.rows, TEST, fitted.predict_rows(data.rows, TEST), of_task=True, **options)


def gone_wild(model: FittedModel, by: float) -> FittedModel:
    """The same model with a readout that adds so much to every crystal, and with no limit to its reach."""
    reference = replace(model.fitted.reference, intercept=model.fitted.reference.intercept + by)
    return replace(model, fitted=replace(model.fitted, reference=reference, reach=None))


def test_a_prediction_at_the_limit_of_its_reach_is_marked(model, data):
    """What training may move a prediction by is more than is usual, so that to be limited is to be marked."""
    limited = gone_wild(model, 15)
    limited = replace(limited, fitted=replace(limited.fitted, reach=model.fitted.reach))
    crystals = [data.structures[k] for k in TEST[:4]]
    assert (np.abs(limited.predict(crystals) - model.predict(crystals)) < 2).all()
    assert not limited.predict_with_std(crystals).trusted.any()


def test_a_wild_prediction_is_marked_and_the_others_are_not(data, fitted, trust):
    plain = fitted.predict_rows(data.rows, TEST).values
    before = trust.mark(data.rows, TEST, Prediction(plain), of_task=True)
    k = int(np.flatnonzero(before.trusted)[0])
    wild = plain.copy()
    wild[k] += 1.0  # eV/atom
    after = trust.mark(data.rows, TEST, Prediction(wild), of_task=True)
    assert not after.trusted[k]
    np.testing.assert_array_equal(np.delete(after.trust, k), np.delete(before.trust, k))
    assert before.trusted.mean() > 0.6
    assert (after.trust > 0).all()
    assert (after.trust <= 1).all()


def test_the_further_a_prediction_moves_the_less_it_is_trusted(data, fitted, trust):
    plain = fitted.predict_rows(data.rows, TEST[:1]).values
    trusts = [trust.mark(data.rows, TEST[:1], Prediction(plain + by)).trust[0] for by in (0, 0.5, 1, 15)]
    assert sorted(trusts, reverse=True) == trusts
    assert trusts[-1] < 1e-3


def test_what_replaces_an_untrusted_prediction_is_what_training_has_to_beat(data, fitted, trust):
    untrained = finished(fine_tuning(data, parts=(TRAIN, VAL), freeze_depth="none")).fitted()
    expected = untrained.predict_rows(data.rows, TEST).values
    wild = fitted.predict_rows(data.rows, TEST).values + 20
    kept = trust.mark(data.rows, TEST, Prediction(wild, np.full(len(TEST), 1e-3)))
    np.testing.assert_array_equal(kept.values, wild)
    replaced = trust.mark(data.rows, TEST, Prediction(wild, np.full(len(TEST), 1e-3)), replace_untrusted=True)
    np.testing.assert_allclose(replaced.values, expected, atol=1e-5)
    assert not replaced.trusted.any()
    assert (replaced.std == trust.baseline_error).all()
    calm = of_test(data, fitted, trust)
    same = of_test(data, fitted, trust, replace_untrusted=True)
    np.testing.assert_array_equal(same.values[calm.trusted], calm.values[calm.trusted])


def test_an_element_that_training_has_not_seen_is_marked(data):
    oxides = data.rows.fractions[:, 7] > 0
    assert 5 < oxides.sum() < N_ROWS - 20
    rest = np.flatnonzero(~oxides)
    part = TrainingPart(np.where(oxides, np.nan, data.targets), rest[::2], rest[1::2], "regression", "other")
    for rows, weights in (
        (data.rows, "0.3.0"),
        (replace(data.rows, graphs=None, features=None, outputs=None), ""),
    ):
        ridge = fit_ridge(RidgeConfig(), rows, part)
        judge = fit_trust(rows, part, ridge.predict_rows(rows, calibration_rows(part)).values, weights=weights)
        much = np.flatnonzero(data.rows.fractions[:, 7] > 0.35)
        assert not judge.mark(rows, much, ridge.predict_rows(rows, much), of_task=True).trusted.any()
        assert judge.mark(rows, rest, ridge.predict_rows(rows, rest), of_task=True).trusted.mean() > 0.6


def test_one_odd_atom_in_a_large_cell_counts(data, model, trust):
    usual = data.structures[int(TEST[0])].copy()
    usual.make_supercell([2, 2, 2])
    odd = usual.copy()
    odd.translate_sites([0], [0.45 * 2.0 / odd.lattice.a, 0, 0])
    squeezed = Structure(usual.lattice.scale(usual.volume * 0.4), usual.species, usual.frac_coords)
    rows, which = model.rows_of([usual, odd, squeezed]), np.arange(3)
    values = model.predict_rows(rows).values
    by_name = measures(trust, rows, which, values, trust.baseline.predict(rows, which), of_task=False)
    assert by_name["largest"][1] > 1.5 * by_name["largest"][0]
    assert (by_name["mean"][1] - by_name["mean"][0]) < 0.5 * (by_name["largest"][1] - by_name["largest"][0])
    assert by_name["mean"][2] > 1.5 * by_name["mean"][0]


@pytest.mark.parametrize("n_val", [1, 4])
def test_a_small_validation_part_is_enough(data, n_val):
    part = TrainingPart(data.targets, TRAIN, VAL[:n_val], "regression", "energy_per_atom")
    calibration = calibration_rows(part)
    assert len(calibration) == n_val + len(TRAIN)
    judge = fit_trust(data.rows, part, data.targets[calibration], weights="0.3.0", energies=True)
    judged = judge.mark(data.rows, TEST, Prediction(data.targets[TEST]), of_task=True)
    assert np.isfinite(judged.trust).all()
    assert judged.trusted.mean() > 0.6


@pytest.mark.parametrize("n_val", [1, 4])
def test_one_training_row_is_far_from_no_other(data, n_val):
    """What is usual then comes from the validation rows alone; a row like the one that was seen is trusted."""
    part = TrainingPart(data.targets, TRAIN[:1], VAL[:n_val], "regression", "energy_per_atom")
    judge = fit_trust(data.rows, part, data.targets[calibration_rows(part)], weights="0.3.0", energies=True)
    judged = judge.mark(data.rows, TEST, Prediction(data.targets[TEST]), of_task=True)
    assert np.isfinite(judged.trust).all()
    again = judge.mark(data.rows, TRAIN[:1], Prediction(data.targets[TRAIN[:1]]), of_task=False)
    assert again.trusted.all()


def test_where_nothing_was_trained_nothing_moved(data):
    run = finished(fine_tuning(data, parts=(TRAIN, VAL), freeze_depth="none"))
    fitted = run.fitted()
    predicted = fitted.predict_rows(data.rows, calibration_rows(run.part)).values
    judge = fit_trust(data.rows, run.part, predicted, weights="0.3.0", energies=True)
    judged = of_test(data, fitted, judge)
    assert np.isfinite(judged.trust).all()
    assert judged.trusted.mean() > 0.6


def test_trust_knows_no_unit(data):
    """Of a target in meV it is that of the same target in eV, and of a cell's energy that of an atom's."""

    def told(targets, quantity):
        part = TrainingPart(targets, TRAIN, VAL, "regression", quantity)
        worth = targets * 1.01
        judge = fit_trust(data.rows, part, worth[calibration_rows(part)], weights="0.3.0", energies=quantity != "other")
        return judge.mark(data.rows, TEST, Prediction(worth[TEST]), of_task=True).trust

    np.testing.assert_allclose(told(data.targets, "other"), told(1000 * data.targets, "other"), rtol=1e-4)
    of_cells = data.targets * data.rows.n_atoms
    np.testing.assert_allclose(told(data.targets, "energy_per_atom"), told(of_cells, "energy_per_cell"), rtol=1e-4)


def test_classes_are_judged_too(data):
    labels = (data.targets < np.median(data.targets)).astype(np.float64)
    part = TrainingPart(labels, TRAIN, VAL, "classification", "other")
    sure = np.clip(labels, 0.1, 0.9)
    judge = fit_trust(data.rows, part, sure[calibration_rows(part)], weights="0.3.0")
    judged = judge.mark(data.rows, TEST, Prediction(sure[TEST]), of_task=True, replace_untrusted=True)
    assert np.isfinite(judged.trust).all()
    assert ((judged.values >= 0) & (judged.values <= 1)).all()
    assert judged.trusted.mean() > 0.6


def test_a_model_file_has_its_trust_and_an_older_one_says_nothing_of_it(model, data, tmp_path):
    crystals = [data.structures[k] for k in TEST[:6]]
    with one_thread():
        model.save(tmp_path / "model.pth")
        expected, loaded = (
            model.predict_with_std(crystals),
            load_model(tmp_path / "model.pth").predict_with_std(crystals),
        )
        np.testing.assert_array_equal(loaded.values, expected.values)
        np.testing.assert_allclose(loaded.trust, expected.trust, rtol=1e-5)
        content = torch.load(tmp_path / "model.pth", weights_only=True)
        del content["trust"]
        torch.save(content | {"format": 3}, tmp_path / "old.pth")
        old = load_model(tmp_path / "old.pth").predict_with_std(crystals)
    np.testing.assert_allclose(old.values, expected.values, atol=1e-5)
    assert old.trust is None
    assert old.trusted is None


def test_new_crystals_are_judged_as_the_rows_of_the_task(model, data, fitted, trust):
    crystals = [data.structures[k] for k in TEST]
    np.testing.assert_allclose(
        model.predict_with_std(crystals).trust, of_test(data, fitted, trust).trust, rtol=0.02, atol=0.01
    )


def test_one_wild_member_spoils_the_trust_of_a_mean(model, data):
    crystals = [data.structures[k] for k in TEST[:4]]
    calm, wild = SeedEnsemble([model] * 3), SeedEnsemble([model, model, gone_wild(model, 15)])
    np.testing.assert_array_equal(calm.predict_with_std(crystals).trust, model.predict_with_std(crystals).trust)
    assert not wild.predict_with_std(crystals).trusted.any()


def test_a_model_of_a_sweep_that_replaces_does_so_too(model, data):
    crystals = [data.structures[k] for k in TEST[:4]]
    wild = gone_wild(model, 15)
    replaced = replace(wild, about=wild.about | {"untrusted": "baseline"}).predict_with_std(crystals)
    assert (wild.predict(crystals) > 5).all()
    assert (np.abs(replaced.values - model.predict(crystals)) < 1).all()
    assert not replaced.trusted.any()


def test_ase_warns_once_of_what_is_not_trusted(model, data):
    crystal = next(s for s, ok in zip((data.structures[k] for k in TEST), of_rows(model, data), strict=True) if ok)
    atoms = AseAtomsAdaptor.get_atoms(crystal)
    atoms.calc = EnergyCalculator(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_potential_energy()
    assert atoms.calc.results["trust"] >= TRUSTED
    atoms.calc = EnergyCalculator(gone_wild(model, 15))
    with pytest.warns(UserWarning, match=r"is not to be trusted \(trust .*below 0\.5\)"):
        atoms.get_potential_energy()
    assert atoms.calc.results["trust"] < TRUSTED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()


def of_rows(model, data) -> np.ndarray:
    return model.predict_with_std([data.structures[k] for k in TEST]).trusted


def test_the_command_marks_what_is_not_trusted(model, data, tmp_path):
    crystals = [k for k, ok in zip(TEST, of_rows(model, data), strict=True) if ok][:2]
    for k in crystals:
        data.structures[k].to(tmp_path / f"{k}.cif", symprec=None, significant_figures=12)
    files = [str(tmp_path / f"{k}.cif") for k in crystals]
    for name, saved, ok in (("calm", model, True), ("wild", gone_wild(model, 15), False)):
        saved.save(tmp_path / f"{name}.pth")
        result = CliRunner().invoke(app, [str(tmp_path / f"{name}.pth"), *files, "-o", str(tmp_path / "out.csv")])
        assert result.exit_code == 0, result.output
        table = pd.read_csv(tmp_path / "out.csv")
        assert table["trusted"].tolist() == [ok, ok]
        assert ((table["trust"] >= TRUSTED) == ok).all()
        assert ("2 of 2 predictions are not to be trusted" in result.output) is not ok


def test_compositions_and_the_linear_models_carry_trust(data, tmp_path):
    rows = replace(data.rows, graphs=None, features=None, outputs=None)
    part = TrainingPart(data.targets, TRAIN, VAL, "regression", "other")
    ridge = fit_ridge(RidgeConfig(), rows, part)
    judge = fit_trust(rows, part, ridge.predict_rows(rows, calibration_rows(part)).values)
    FittedModel(RIDGE, ridge, dict(ABOUT), judge).save(tmp_path / "ridge.pth")
    seen = set(np.flatnonzero(rows.fractions[TRAIN].any(axis=0)) + 1)
    assert 54 not in seen
    prediction = load_model(tmp_path / "ridge.pth").predict_with_std(
        [data.structures[TRAIN[0]].formula.replace(" ", ""), "XeF2"]
    )
    assert prediction.trusted.tolist() == [True, False]


def test_counts_and_scores_with_and_without():
    table = pd.DataFrame(
        {
            "id": list("abcd"),
            "group": ["NaCl", "PCl3", "MgO", "Fe"],
            "y_true": [1.0, -1.0, 2.0, 3.0],
            "y_pred": [1.1, 15.0, 2.1, 3.1],
            "abs_error": [0.1, 16.0, 0.1, 0.1],
            "trust": [0.9, 0.001, 0.8, 0.7],
            "trusted": [True, False, True, True],
        }
    )
    facts = trust_facts([(2, table)], METRICS["mae"], "composition")
    assert (facts["n"], facts["n_untrusted"]) == (4, 1)
    assert [row["id"] for row in facts["worst"]] == ["b"]
    assert facts["mean_of_trusted"]["mae"] == pytest.approx(0.1)
    sentence = trust_sentence({"trust": facts, "mean": {"mae": 4.075}}, "mae", "composition")
    assert "1 of 4 test predictions are not trusted" in sentence
    assert "PCl3 (b, fold 2) 15 for -1" in sentence
    assert "MAE 4.0750 with them, 0.1000 without" in sentence
    assert "the baseline's" in trust_sentence(
        {"trust": facts, "mean": {"mae": 4.075}}, "mae", "composition", "baseline"
    )
    assert trust_facts([(2, table.drop(columns=["trust", "trusted"]))], METRICS["mae"], "composition") == {}


def test_what_is_not_trusted_of_arrays_is_named_by_its_error():
    table = pd.DataFrame({"id": list("abc"), "group": list("xyz"), "relative_error": [0.1, 0.9, 0.2]})
    table = table.assign(trust=[0.9, 0.1, 0.2], trusted=[True, False, False])
    facts = trust_facts([(0, table)], METRICS["relative_l2"], "source")
    assert [row["id"] for row in facts["worst"]] == ["b", "c"]
    sentence = trust_sentence({"trust": facts, "mean": {"relative_l2": 0.4}}, "relative_l2", "source")
    assert "y (b, fold 0) error 0.9, trust 0.1" in sentence
    assert "relative L2 error 0.4000 with them, 0.1000 without" in sentence
