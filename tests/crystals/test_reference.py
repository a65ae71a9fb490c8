"""The elemental reference: right elements from wrong rows, sane where nothing is known, strict about scale."""

import numpy as np
import pytest
from model_cases import PEROVSKITES, fine_tuning, finished, predictions, sample, thirds
from sklearn.linear_model import LogisticRegression

from models.crystals.chgnet.anchors import load_anchors
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.reference import (
    TargetScaleError,
    fit_class_reference,
    fit_energy_reference,
    fit_property_reference,
)

N_ROWS = 250


@pytest.fixture
def fractions():
    return sample(N_ROWS).rows.fractions.astype(np.float64)


@pytest.fixture
def energies(fractions):
    """CHGNet's energies of real crystals, eV/atom."""
    return sample(N_ROWS).rows.outputs + fractions @ CHGNetwork().composition_energies().double().numpy()


@pytest.fixture
def elemental():
    """Made-up energies of the pure elements, up to a few eV/atom from the anchors."""
    return load_anchors("0.3.0") + np.random.default_rng(0).uniform(-3, 3, 94)


@pytest.fixture
def often(fractions):
    """Elements in at least five crystals; of others one outlier can be half of all there is to know."""
    often = (fractions > 0).sum(axis=0) >= 5
    assert often.sum() > 40
    return often


def test_known_elemental_energies_are_found(fractions, energies, elemental, often):
    reference = fit_energy_reference(fractions, energies, energies - fractions @ elemental, load_anchors("0.3.0"))
    # what the prior may bend: elements of one or two crystals, in which there is little of them
    error = np.abs(-reference.coefficients - elemental)
    assert np.median(error[often]) < 0.01
    residual = np.abs(energies + reference.predict(fractions) - (energies - fractions @ elemental))
    assert np.median(residual) < 0.003


@pytest.mark.parametrize("offset", [-40.0, 25.0])
def test_targets_may_have_another_zero(fractions, energies, offset):
    # total energies of another code, say: every element tens of eV away from where CHGNet has it
    train, val, _ = thirds(N_ROWS)
    elemental = load_anchors("0.3.0") + np.random.default_rng(0).uniform(0, 1, 94) * offset
    targets = energies - fractions @ elemental
    reference = fit_energy_reference(fractions[train], energies[train], targets[train], load_anchors("0.3.0"))
    shown = fractions[:, (fractions[train] > 0).sum(axis=0) < 3].sum(axis=1) == 0
    error = np.abs(energies + reference.predict(fractions) - targets)[np.intersect1d(val, np.flatnonzero(shown))]
    assert len(error) > 15
    assert np.median(error) < 0.03


def test_gross_outliers_are_shrugged_off_where_least_squares_is_not(fractions, energies, elemental, often):
    rng = np.random.default_rng(1)
    targets = energies - fractions @ elemental
    wrong = rng.choice(N_ROWS, N_ROWS // 20, replace=False)
    targets[wrong] += rng.choice([-5, 5], len(wrong))
    robust = fit_energy_reference(fractions, energies, targets, load_anchors("0.3.0"))
    squares, *_ = np.linalg.lstsq(fractions, energies - targets, rcond=None)
    error = np.abs(-robust.coefficients - elemental)[often]
    error_of_squares = np.abs(squares - elemental)[often]
    assert np.median(error) < 0.02
    assert np.median(error) < np.median(error_of_squares) / 10


def test_an_element_that_training_never_shows_gets_its_anchor(fractions, energies, elemental):
    anchors = load_anchors("0.3.0")
    oxygen = 8 - 1
    without = fractions[:, oxygen] == 0
    assert 100 < without.sum() < N_ROWS
    targets = energies - fractions @ elemental
    reference = fit_energy_reference(fractions[without], energies[without], targets[without], anchors)
    unseen = fractions[without].sum(axis=0) == 0
    assert unseen[oxygen]
    np.testing.assert_allclose(-reference.coefficients[unseen], anchors[unseen], rtol=0, atol=1e-9)
    assert np.abs(-reference.coefficients - anchors)[~unseen].max() > 1.0  # the others left theirs


def test_the_real_anchors_make_an_unseen_element_a_small_error():
    # Formation energies of oxides by a reference that has seen no oxide.
    data = sample(N_ROWS)
    has_oxygen = data.rows.fractions[:, 8 - 1] > 0
    train = np.flatnonzero(~has_oxygen)
    run = fine_tuning(data, parts=(train, train[:5]), freeze_depth="none", epochs=0)
    others_seen = (data.rows.fractions[train].sum(axis=0) > 0) | (np.arange(94) == 8 - 1)
    oxides = np.flatnonzero(has_oxygen & (data.rows.fractions[:, ~others_seen].sum(axis=1) == 0))
    assert len(oxides) > 20
    error = np.abs(predictions(finished(run), oxides) - data.targets[oxides]).mean()
    assert error < 0.2  # eV/atom
    assert error < np.abs(data.targets[oxides] - np.median(data.targets[train])).mean() / 3


class TestTargetScale:
    """Declared per atom or per cell: where the rows can tell that it is the other, they do."""

    def begin(self, data, targets, quantity):
        return fine_tuning(data, targets, quantity=quantity, freeze_depth="none", epochs=0)

    @pytest.mark.parametrize("file", [None, PEROVSKITES])
    def test_real_energies_per_atom_are_accepted(self, file):
        data = sample(N_ROWS) if file is None else sample(600, file=PEROVSKITES)
        assert data.task.quantity == "energy_per_atom"
        run = finished(self.begin(data, data.targets, data.task.quantity))
        # and the declared scale is the right one: errors far below the spread of the targets
        assert run.history[0].val_metric < data.targets.std() / 2

    @pytest.mark.parametrize("file", [None, PEROVSKITES])
    def test_energies_per_cell_declared_per_atom_are_refused(self, file):
        data = sample(N_ROWS) if file is None else sample(600, file=PEROVSKITES)
        per_cell = data.targets * data.rows.graphs.atoms_per_graph
        with pytest.raises(TargetScaleError, match=r"expected about 1.*--quantity energy_per_atom or energy_per_cell"):
            self.begin(data, per_cell, "energy_per_atom")
        self.begin(data, per_cell, "energy_per_cell")

    @pytest.mark.parametrize("file", [None, PEROVSKITES])
    def test_energies_per_atom_declared_per_cell_are_refused(self, file):
        data = sample(N_ROWS) if file is None else sample(600, file=PEROVSKITES)
        with pytest.raises(TargetScaleError, match="expected about 1"):
            self.begin(data, data.targets, "energy_per_cell")

    def test_another_unit_is_refused(self):
        data = sample(600, file=PEROVSKITES)
        with pytest.raises(TargetScaleError, match="expected about 1"):
            self.begin(data, data.targets * 96.485, "energy_per_atom")  # kJ/mol


def test_crystals_that_cannot_tell_the_scale_are_accepted(fractions, energies):
    # the same crystal sixty times, and fewer rows than elements: neither says what an eV/atom is worth
    same = np.repeat(fractions[:1], 60, axis=0), np.full(60, energies[0])
    reference = fit_energy_reference(*same, np.full(60, 7.0), load_anchors("0.3.0"))
    assert energies[0] + reference.predict(fractions[:1])[0] == pytest.approx(7.0, abs=0.02)
    few = slice(0, 40)
    fit_energy_reference(fractions[few], energies[few], energies[few] * 5, load_anchors("0.3.0"))


def test_a_property_reference_knows_what_is_linear_in_the_elements(fractions):
    rng = np.random.default_rng(0)
    radius = rng.uniform(1, 3, 94)
    train, val, _ = thirds(N_ROWS)
    noise = rng.normal(scale=0.02, size=N_ROWS)
    reference = fit_property_reference(fractions[train], (fractions @ radius + noise)[train])
    error = np.abs(reference.predict(fractions[val]) - fractions[val] @ radius)
    assert np.median(error) < 0.05
    assert 0.005 < reference.scale < 0.04  # about the part that composition does not explain


def test_constant_targets_leave_a_usable_scale(fractions):
    reference = fit_property_reference(fractions, np.full(N_ROWS, 3.5))
    np.testing.assert_allclose(reference.predict(fractions), 3.5)
    assert reference.scale > 0


def test_a_class_reference_is_a_logistic_regression(fractions):
    metals = (fractions[:, [8 - 1, 9 - 1, 17 - 1]].sum(axis=1) == 0).astype(np.float64)
    reference = fit_class_reference(fractions, metals)
    model = LogisticRegression(max_iter=2000).fit(fractions, metals)
    np.testing.assert_allclose(reference.predict(fractions), model.decision_function(fractions))
    assert ((reference.predict(fractions) > 0) == (metals > 0.5)).mean() > 0.9


@pytest.mark.parametrize(("label", "sign"), [(0.0, -1), (1.0, 1)])
def test_a_single_class_is_likely_but_not_certain(fractions, label, sign):
    reference = fit_class_reference(fractions, np.full(N_ROWS, label))
    logits = reference.predict(fractions)
    assert (sign * logits > 3).all()
    assert np.isfinite(logits).all()
