"""Averaging over moved copies of a crystal at test time: what it computes, and when a sweep uses it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from model_cases import fine_tuning, finished, one_thread, sample, thirds
from pymatgen.core import Structure
from typer.testing import CliRunner

from data.metrics import METRICS
from models.crystals.augment import copy_of
from models.crystals.chgnet.model import CHGNET
from models.crystals.gaussian_process.model import GaussianProcessConfig, fit_gaussian_process
from models.crystals.tta import JITTER, STRAIN, averaged, judge_copies
from models.fitted import FittedModel, load_model
from models.model import TrainingPart
from tune.run_sweep import app

DEMO_FILE = Path(__file__).parents[2] / "data/demo/demo.parquet"
COPIES = 3
TRAIN, VAL, TEST = thirds(72)
SPACE = "parameters: {freeze_depth: readout, lr: 0.003, epochs: 3, batch_size: 8}\n"


@pytest.fixture(scope="module")
def trained(at_hand):
    """A model fine-tuned on real crystals, and the crystals."""
    data = sample(72, file=at_hand, small=True)
    return finished(fine_tuning(data, freeze_depth="last_conv", epochs=2)).fitted(), data


def mean_of(fitted, data, copies=COPIES):
    """Averaged predictions of the test rows."""
    with one_thread():
        return averaged(fitted, data.rows, TEST, copies).values


def test_the_average_is_that_of_moved_structures(trained):
    """The same moves as pymatgen structures, converted anew, bonds included."""
    fitted, data = trained
    model = FittedModel(CHGNET, fitted, {})
    predicted = []
    for copy in range(COPIES):
        graphs = copy_of(data.rows.graphs, copy, JITTER, STRAIN)
        structures = []
        for k in TEST:
            span = slice(graphs.atom_start[k], graphs.atom_start[k + 1])
            structures.append(Structure(graphs.lattices[k], data.structures[k].species, graphs.frac_coords[span]))
        with one_thread():
            predicted.append(model.predict(structures))
    plain = fitted.predict_rows(data.rows, TEST).values
    assert all(np.abs(values - plain).min() > 0 for values in predicted)  # each crystal has moved
    assert np.abs(predicted[0] - predicted[1]).min() > 0  # and in each copy otherwise
    np.testing.assert_allclose(mean_of(fitted, data), np.mean(predicted, axis=0), atol=1e-4, rtol=0)


def test_a_crystals_copies_do_not_depend_on_what_is_predicted_with_it(trained):
    fitted, data = trained
    together = mean_of(fitted, data)
    with one_thread():
        alone = [averaged(fitted, data.rows.select(TEST[k : k + 1]), np.arange(1), COPIES).values[0] for k in (0, 5)]
    np.testing.assert_allclose(alone, together[[0, 5]], atol=2e-6, rtol=0)


def test_copies_are_the_same_every_time_and_moved_a_little(trained):
    fitted, data = trained
    np.testing.assert_array_equal(mean_of(fitted, data), mean_of(fitted, data))
    assert np.abs(mean_of(fitted, data) - fitted.predict_rows(data.rows, TEST).values).max() < 0.1  # eV/atom
    before = data.rows.graphs.frac_coords.copy()
    assert not np.array_equal(mean_of(fitted, data, 1), mean_of(fitted, data, 2))
    np.testing.assert_array_equal(data.rows.graphs.frac_coords, before)  # the rows stay where they are


def test_it_is_used_where_validation_gains_by_it(trained):
    fitted, data = trained
    mae = METRICS["mae"]
    with one_thread():
        plain = fitted.predict_rows(data.rows, VAL).values
        mean = averaged(fitted, data.rows, VAL, COPIES).values
        cases = {"worse": plain, "better": mean}  # labels which one of the two predicts exactly
        found = {
            name: judge_copies(fitted, data.rows, VAL, labels, mae, COPIES, only_if_better=True)
            for name, labels in cases.items()
        }
        always = judge_copies(fitted, data.rows, VAL, plain, mae, COPIES, only_if_better=False)
    apart = np.abs(plain - mean).mean()
    assert (found["worse"].used, found["better"].used, always.used) == (False, True, True)
    assert found["worse"].val_without == pytest.approx(0, abs=1e-9)
    assert found["worse"].val_with == pytest.approx(apart)
    assert found["better"].val_without == pytest.approx(apart)
    assert found["better"].val_with == pytest.approx(0, abs=1e-9)
    assert all(result.copies == COPIES and result.seconds_with > 0 for result in found.values())


def test_a_gain_that_few_crystals_show_by_chance_is_none(trained):
    """On half of the crystals the copies are exactly right, on the other half the plain prediction is."""
    fitted, data = trained
    with one_thread():
        plain = fitted.predict_rows(data.rows, VAL).values
        mean = averaged(fitted, data.rows, VAL, COPIES).values
        by_distance = np.argsort(np.abs(mean - plain))
        labels = plain.copy()
        labels[by_distance[1::2]] = mean[by_distance[1::2]]  # of each two the one that is farther: a small gain
        found = judge_copies(fitted, data.rows, VAL, labels, METRICS["mae"], COPIES, only_if_better=True)
    assert found.val_with < found.val_without
    assert found.gain_low < 0 < found.gain_high
    assert not found.used


def test_a_gain_is_no_surer_where_each_crystal_is_there_many_times(trained):
    """Polymorphs have like errors: the interval is over compositions."""
    fitted, data = trained
    with one_thread():
        plain = fitted.predict_rows(data.rows, VAL).values
        labels = np.where(np.arange(len(VAL)) % 2, averaged(fitted, data.rows, VAL, COPIES).values, plain)
        alone, repeated = (
            judge_copies(
                fitted,
                data.rows.select(np.repeat(VAL, times)),
                np.arange(times * len(VAL)),
                np.repeat(labels, times),
                METRICS["mae"],
                COPIES,
                only_if_better=True,
            )
            for times in (1, 9)
        )
    assert alone.gain_low < alone.gain_high
    np.testing.assert_allclose(
        (repeated.gain_low, repeated.gain_high), (alone.gain_low, alone.gain_high), atol=1e-5, rtol=0
    )


def test_a_gain_on_few_compositions_is_none(trained):
    """All crystals of one composition err alike: an interval of them has no width, and says nothing."""
    fitted, data = trained
    few = VAL[:1].repeat(8)
    with one_thread():
        labels = averaged(fitted, data.rows, few, COPIES).values
        found = judge_copies(fitted, data.rows, few, labels, METRICS["mae"], COPIES, only_if_better=True)
    assert found.val_with < found.val_without
    assert not found.used


def test_an_uncertainty_that_a_model_knows_stays_with_the_average(trained):
    _, data = trained
    part = TrainingPart(data.targets, TRAIN, VAL, "regression", "energy_per_atom")
    fitted = fit_gaussian_process(GaussianProcessConfig(), data.rows, part)
    with one_thread():
        plain, mean = fitted.predict_rows(data.rows, TEST), averaged(fitted, data.rows, TEST, COPIES)
    assert mean.std.shape == plain.std.shape
    np.testing.assert_allclose(mean.std, plain.std, rtol=0.2)


# ---- in a sweep ----------------------------------------------------------------------------------------


def refused(arguments, capsys) -> str:
    done = CliRunner().invoke(app, arguments)
    said = " ".join((done.output + capsys.readouterr().err).split())
    assert done.exit_code == 1, said
    return said


@pytest.mark.parametrize("text", ["3x", "1", "0", "-2", "2.5"])
def test_anything_but_a_number_of_copies_is_refused(text, tmp_path, capsys):
    said = refused([f"--tta={text}", f"--storage={tmp_path}"], capsys)
    assert f"SweepError: --tta '{text}': expected none, auto, or a number of copies such as 4" in said


@pytest.mark.parametrize("space", ["ridge", "composition"])
def test_a_model_that_reads_compositions_has_nothing_to_move(space, tmp_path, capsys):
    said = refused(["--tta=2", f"--space={space}", f"--storage={tmp_path}"], capsys)
    assert "SweepError: --tta 2: model" in said
    assert "reads compositions, which moving atoms does not change" in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small space and 60 small crystals of the demo."""
    folder = tmp_path_factory.mktemp("tta")
    (folder / "small.yaml").write_text(SPACE)
    demo = pd.read_parquet(DEMO_FILE, columns=["id", "numbers"])
    smallest = demo.assign(n=demo["numbers"].map(len)).sort_values("n", kind="stable")["id"].iloc[:240:4]
    (folder / "ids.txt").write_text("\n".join(smallest))
    return folder


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("tta", "n_copies"), [("auto", 8), ("2", 2)])
def test_a_sweep_tells_what_the_copies_did_and_predicts_accordingly(folder, tta, n_copies, capsys):
    where = [f"--storage={folder}/results", f"--cache={folder}/graphs", f"--ids={folder}/ids.txt", f"--name=tta-{tta}"]
    sweep = [f"--space={folder}/small.yaml", "--folds=0,3", "--max-concurrent=1", f"--tta={tta}"]
    done = CliRunner().invoke(app, [*sweep, *where])
    assert done.exit_code == 0, done.output + capsys.readouterr().err
    path = folder / f"results/tta-{tta}"
    results = json.loads((path / "results.json").read_text())
    training = results["seeds"][0]["training"]
    assert [entry["fold"] for entry in training] == [0, 3]
    for entry in training:
        facts = entry["tta"]
        assert facts["copies"] == n_copies
        assert facts["val_without"] == pytest.approx(entry["kept_val_mae"], abs=1e-5)
        assert facts["val_with"] != facts["val_without"]
        assert facts["seconds_without"] > 0
        assert facts["seconds_with"] > 0
        assert facts["gain_low"] < facts["val_without"] - facts["val_with"] < facts["gain_high"]
        assert facts["used"] == (tta == "2" or facts["gain_low"] > 0)
        told = pd.read_csv(path / f"seed_0/val_fold_{entry['fold']}.csv")["abs_error"].mean()
        assert told == pytest.approx(facts["val_with"] if facts["used"] else facts["val_without"], abs=1e-6)
        # The model as it is stored predicts as it was scored, copies included.
        tested = pd.read_csv(path / f"seed_0/preds_fold_{entry['fold']}.csv").set_index("id")["y_pred"].head(4)
        crystals = pd.read_parquet(DEMO_FILE).set_index("id").loc[tested.index]
        structures = [
            Structure(np.reshape(row["lattice"], (3, 3)), row["numbers"], np.reshape(row["frac_coords"], (-1, 3)))
            for row in crystals.to_dict("records")
        ]
        predicted = load_model(path / "seed_0", fold=entry["fold"]).predict(structures)
        np.testing.assert_allclose(predicted, tested, atol=2e-5, rtol=0)
