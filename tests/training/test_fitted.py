"""The model file: what a user loads elsewhere predicts as the run that wrote it did, or says why not."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from chgnet.model import CHGNet
from model_cases import fine_tuning, finished, one_thread, predictions, sample, thirds
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from data.crystals.crystal import BadCrystalError
from models.crystals.ase_calculator import EnergyCalculator
from models.crystals.chgnet.model import CHGNET
from models.crystals.fitted_network import combine
from models.fitted import FILE_FORMAT, FittedModel, ModelFileError, load_model
from models.predict import app

ROOT = Path(__file__).parents[2]
N_ROWS = 30
_, _, TEST = thirds(N_ROWS)

ELSEWHERE = """
import json, sys
import torch
from pymatgen.core import Structure
from models.crystals.fitted_network import combine
from models.fitted import load_model

torch.set_num_threads(1)
structures = [Structure.from_dict(one) for one in json.load(open(sys.argv[1]))]
models = [load_model(file) for file in sys.argv[2:]]
known = sorted({name.split(".")[0] for name in sys.modules} & {"ray", "tune", "optuna"})
print(json.dumps([[model.predict(structures).tolist() for model in models], [model.about for model in models], known]))
"""


@pytest.fixture
def data():
    return sample(N_ROWS, small=True)


@pytest.fixture
def model(data) -> FittedModel:
    return fitted(trained(data, "energy_per_atom"))


@pytest.fixture
def model_file(model, tmp_path) -> Path:
    model.save(tmp_path / "model.pth")
    return tmp_path / "model.pth"


def trained(data, quantity, kind="regression", **fields):
    targets = data.targets * (data.rows.graphs.atoms_per_graph if quantity == "energy_per_cell" else 1)
    if kind == "classification":
        targets = (targets < np.median(targets)).astype(np.float64)
    fields = {"freeze_depth": "last_conv", "epochs": 1} | fields
    return finished(fine_tuning(data, targets, quantity=quantity, kind=kind, **fields))


def fitted(run) -> FittedModel:
    return FittedModel(CHGNET, run.fitted(), {"unit": "eV/atom", "labels": "made for a test"})


def test_another_process_predicts_the_same_without_ray(tmp_path):
    cases = [
        ("energy_per_atom", "regression", "0.3.0"),
        ("energy_per_cell", "regression", "0.2.0"),
        ("other", "classification", "r2scan"),
        ("other", "regression", "random"),
    ]
    files, expected = [tmp_path / f"{weights}.pth" for *_, weights in cases], []
    for file, (quantity, kind, weights) in zip(files, cases, strict=True):
        run = trained(sample(N_ROWS, weights, small=True), quantity, kind, weights=weights)
        fitted(run).save(file)
        expected.append(predictions(run, TEST))
    structures = [sample(N_ROWS, small=True).structures[k].as_dict() for k in TEST]
    (tmp_path / "structures.json").write_text(json.dumps(structures))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "structures.json", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predicted, about, loaded = json.loads(done.stdout)
    for case, one, other in zip(cases, predicted, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5, err_msg=str(case))
    assert about == 4 * [{"unit": "eV/atom", "labels": "made for a test"}]
    assert loaded == []


def test_saving_and_loading_again_changes_nothing(model, model_file, data, tmp_path):
    with one_thread():
        expected = model.predict(data.structures)
        loaded = load_model(str(model_file))
        np.testing.assert_array_equal(loaded.predict(data.structures), expected)
        loaded.save(tmp_path / "again.pth")
        np.testing.assert_array_equal(load_model(tmp_path / "again.pth").predict(data.structures), expected)
    assert (loaded.model, loaded.about) == (model.model, model.about)
    assert (loaded.fitted.kind, loaded.fitted.quantity) == (model.fitted.kind, model.fitted.quantity)


def test_structures_with_oxidation_states_and_outlying_coordinates_are_the_same_crystals(model, data):
    structure = data.structures[3]
    decorated = structure.copy()
    decorated.add_oxidation_state_by_guess()
    moved = Structure(structure.lattice, structure.species, structure.frac_coords + 7)
    one, other, third = model.predict([structure, decorated, moved])
    assert other == pytest.approx(one, abs=1e-5)
    assert third == pytest.approx(one, abs=1e-5)


def test_no_structures_no_predictions(model):
    empty = model.predict([])
    assert empty.shape == (0,)
    assert empty.dtype == np.float64


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "disordered structure"),
        (Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]), "overlapping atoms"),
        (Structure(Lattice.cubic(4), ["Am"], [[0, 0, 0]]), "site 0: unknown element Am"),
        (Structure(Lattice.cubic(4), [], []), "empty structure"),
    ],
)
def test_a_bad_structure_is_named_by_its_position(model, data, bad, reason):
    with pytest.raises(BadCrystalError, match=f"^structure 2: {reason}"):
        model.predict([*data.structures[:2], bad, *data.structures[2:4]])


def test_hopeless_logits_are_probabilities_without_a_warning(data):
    run = trained(data, "other", "classification")
    outputs = np.array([-2e3, 0.0, 2e3])
    args = run.fitted().reference, outputs, np.zeros((3, 94)), np.ones(3), np.zeros(3), "classification", "other"
    found = combine(*args)
    assert found[0] == 0.0
    assert 0 < found[1] < 1
    assert found[2] == 1.0


def changed(model_file: Path, **changes) -> Path:
    file = torch.load(model_file, weights_only=True)
    for name, value in changes.items():
        place = file if name in file else file["content"]
        place[name] = value
        if value is None:
            del place[name]
    torch.save(file, model_file)
    return model_file


def test_a_file_of_a_newer_format_is_refused_with_both_versions(model_file):
    changed(model_file, format=FILE_FORMAT + 1)
    with pytest.raises(ModelFileError, match=rf"model\.pth has model format {FILE_FORMAT + 1}; .*reads {FILE_FORMAT}"):
        load_model(model_file)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": None},
        {"reference": {"intercept": 0.0, "scale": 1.0}},
        {"state_dicts": [{}]},
        {"state_dicts": []},
        {"arguments": {"weights": "0.2.0", "freeze_depth": "full", "undo_mp2020": False}},
        {"arguments": {"weights": "9"}},
        {"content": None},
        {"model": "none"},
    ],
)
def test_an_incomplete_file_is_refused(model_file, changes):
    with pytest.raises(ModelFileError, match=r"model\.pth is damaged"):
        load_model(changed(model_file, **changes))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_cut_file_is_refused(model_file, kept):
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelFileError, match=r"model\.pth is not a matsweep model file"):
        load_model(model_file)


def test_nobody_is_told_to_load_a_damaged_file_with_its_code(model_file):
    """As torch advises for what its safe reader refuses."""
    for content in (b"crystal,prediction\nNaCl,1\n", pickle.dumps(Path("x")), model_file.read_bytes()[:1000]):
        model_file.write_bytes(content)
        with pytest.raises(ModelFileError, match="or is damaged") as caught:
            load_model(model_file)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.pth"
    stock = CHGNet.load(use_device="cpu", verbose=False)
    for content in ({"model": stock.as_dict()}, stock.state_dict(), torch.zeros(3), [1, 2]):
        torch.save(content, path)
        with pytest.raises(ModelFileError, match=r"foreign\.pth is not a matsweep model file"):
            load_model(path)
    path.write_text("epoch,loss\n1,0.3\n")
    with pytest.raises(ModelFileError, match=r"foreign\.pth is not a matsweep model file"):
        load_model(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^there is no model file {tmp_path}/none.pth$"):
        load_model(tmp_path / "none.pth")
    shown = CliRunner().invoke(app, [f"{tmp_path}/seed_0/model_fold_3.pth", "POSCAR"])
    assert shown.exit_code == 1
    assert shown.output == f"FileNotFoundError: there is no model file {tmp_path}/seed_0/model_fold_3.pth\n"


def test_a_model_file_may_be_given_by_its_address(model, model_file, data, tmp_path):
    model.about.update(target="e_form", task="made")
    model.save(model_file)
    data.structures[0].to(tmp_path / "one.cif", symprec=None, significant_figures=12)
    arguments = [str(tmp_path / "one.cif"), "-o", f"file://{tmp_path}/new/out.csv"]
    shown = CliRunner().invoke(app, [f"file://{model_file}", *arguments])
    assert shown.exit_code == 0, shown.output
    written = pd.read_csv(tmp_path / "new/out.csv")
    assert written["prediction"][0] == pytest.approx(model.predict(data.structures[:1])[0], abs=2e-5)


def test_atoms_that_are_no_crystal_have_no_energy(model):
    """A molecule without a cell, and a slab that is not periodic along one axis."""
    calculator = EnergyCalculator(replace(model, about=model.about | {"quantity": "energy_per_atom"}))
    molecule = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]])
    slab = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.8]], cell=[4, 4, 12], pbc=[True, True, False])
    for atoms, told in ((molecule, "these atoms have 0 and pbc"), (slab, r"pbc \[True, True, False\]")):
        atoms.calc = calculator
        with pytest.raises(BadCrystalError, match=rf"{told}.*Set atoms\.cell.*atoms\.pbc = True"):
            atoms.get_potential_energy()
    molecule.set_cell([6, 6, 6])
    molecule.pbc = slab.pbc = True
    for atoms in (molecule, slab):
        crystal = Structure(atoms.cell.array, ["Na", "Cl"], atoms.get_scaled_positions())
        assert atoms.get_potential_energy() == pytest.approx(2 * model.predict([crystal])[0], abs=1e-4)


class Sabotage:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_cannot_run_code(tmp_path):
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Sabotage(victim)))
    assert victim.exists()  # it would work
    victim.unlink()
    torch.save({"format": FILE_FORMAT, "about": Sabotage(victim)}, tmp_path / "model.pth")
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "model.pth")
    assert not victim.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_gpu_predicts_the_same(model, model_file, data):
    on_gpu = load_model(model_file, device="cuda")
    np.testing.assert_allclose(on_gpu.predict(data.structures), model.predict(data.structures), rtol=0, atol=1e-4)
