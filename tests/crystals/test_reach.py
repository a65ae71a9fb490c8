"""Training moves no prediction further than a few times what its rows ask for, whatever its weights came to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from model_cases import fine_tuning, finished, one_thread, sample, thirds
from pymatgen.io.ase import AseAtomsAdaptor

from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import convert, element_fractions, stack
from models.crystals.chgnet.model import load_chgnet
from models.crystals.composition.model import CompositionConfig, load_composition, start_composition
from models.crystals.rows import CrystalRows
from models.model import TrainingPart

N_ROWS = 30
TRAIN, VAL, TEST = thirds(N_ROWS)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data():
    return sample(N_ROWS, file="demo")


@pytest.fixture(scope="module")
def strangers() -> CrystalRows:
    """Molecules in crystals, which the demo's prototypes do not hold."""
    graphs = []
    for name in ("PF3", "BCl3", "SiCl4", "CH3SH", "N2"):
        atoms = molecule(name)
        atoms.center(vacuum=1.6)
        atoms.pbc = True
        graphs.append(convert(crystal_from_structure(AseAtomsAdaptor.get_structure(atoms)), 6.0))
    together = stack(graphs)
    return CrystalRows(element_fractions(together), together.atoms_per_graph, together)


def steeper(run):
    """What a training leaves whose last layer came out a thousand times as steep."""
    fitted = finished(run).fitted()
    layers = [module for module in fitted.networks[0].modules() if isinstance(module, torch.nn.Linear)]
    last = next(layer for layer in reversed(layers) if layer.out_features == 1 and layer.weight.requires_grad)
    with torch.no_grad():
        last.weight *= 1000
    return fitted


def asked(targets: np.ndarray, before: np.ndarray) -> float:
    return float(np.quantile(np.abs(targets - before), 0.99))


def moves(fitted, rows: CrystalRows, before: np.ndarray) -> np.ndarray:
    return np.abs(fitted.predict_rows(rows, np.arange(len(rows.n_atoms))).values - before)


@pytest.mark.parametrize("fields", [{}, {"target_scale": "robust"}, {"freeze_depth": "last_conv", "epochs": 1}])
def test_a_wild_network_stays_within_three_times_what_training_asked_for(data, strangers, fields):
    untrained = finished(fine_tuning(data, freeze_depth="none")).fitted()
    before = untrained.predict_rows(strangers, np.arange(5)).values
    limit = 3 * asked(data.targets[TRAIN], untrained.predict_rows(data.rows, TRAIN).values)
    fitted = steeper(fine_tuning(data, **fields))
    assert moves(replace(fitted, reach=None), strangers, before).max() > 3 * limit, "not wild: nothing is shown"
    assert moves(fitted, strangers, before).max() == pytest.approx(limit, abs=1e-4)
    loaded = load_chgnet(fitted.content())
    np.testing.assert_array_equal(
        loaded.predict_rows(strangers, np.arange(5)).values, fitted.predict_rows(strangers, np.arange(5)).values
    )


def test_predictions_within_reach_are_those_of_the_network_to_the_last_bit(data):
    run = finished(fine_tuning(data, lr=1e-3))
    fitted = run.fitted()
    everything = np.arange(N_ROWS)
    free = replace(fitted, reach=None).predict_rows(data.rows, everything).values
    np.testing.assert_array_equal(fitted.predict_rows(data.rows, everything).values, free)
    np.testing.assert_array_equal(fitted.predict_rows(data.rows, VAL).values, run.val_predictions)


def test_a_fresh_readout_stays_within_reach_of_the_reference(data, strangers):
    run = fine_tuning(data, data.targets * 40 + 7, quantity="other", epochs=1)
    before = run.objective.transform.reference.predict(strangers.fractions.astype(float))
    on_train = run.objective.transform.reference.predict(data.rows.fractions[TRAIN].astype(float))
    limit = 3 * asked(data.targets[TRAIN] * 40 + 7, on_train)
    fitted = steeper(run)
    assert moves(replace(fitted, reach=None), strangers, before).max() > limit
    assert moves(fitted, strangers, before).max() <= limit * (1 + 1e-9)


def test_energies_of_cells_are_limited_per_atom(data, strangers):
    targets = data.targets * data.rows.n_atoms
    untrained = finished(fine_tuning(data, targets, quantity="energy_per_cell", freeze_depth="none")).fitted()
    before = untrained.predict_rows(strangers, np.arange(5)).values
    on_train = untrained.predict_rows(data.rows, TRAIN).values
    limit = 3 * asked(data.targets[TRAIN], on_train / data.rows.n_atoms[TRAIN])
    fitted = steeper(fine_tuning(data, targets, quantity="energy_per_cell"))
    assert (moves(fitted, strangers, before) / strangers.n_atoms).max() == pytest.approx(limit, abs=1e-4)


def test_a_composition_network_is_limited_too(data, strangers):
    part = TrainingPart(data.targets, TRAIN, VAL, "regression", "other")
    run = start_composition(CompositionConfig(epochs=2), data.rows, part)
    before = run.objective.transform.reference.predict(strangers.fractions.astype(float))
    limit = 3 * asked(
        data.targets[TRAIN],
        run.objective.transform.reference.predict(data.rows.fractions[TRAIN].astype(float)),
    )
    fitted = steeper(run)
    loaded = moves(load_composition(fitted.content()), strangers, before)
    assert moves(replace(fitted, reach=None), strangers, before).max() > limit
    assert loaded.max() <= limit * (1 + 1e-9)


def test_nothing_limits_what_trains_nothing_and_what_has_no_end(data):
    assert finished(fine_tuning(data, freeze_depth="none")).fitted().reach is None
    classes = (data.targets > np.median(data.targets)).astype(float)
    assert (
        finished(fine_tuning(data, classes, kind="classification", quantity="other", epochs=1)).fitted().reach is None
    )
