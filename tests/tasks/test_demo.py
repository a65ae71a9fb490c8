import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from data.demo import make_demo


@pytest.fixture(scope="module")
def table():
    return pq.read_table(make_demo.DEMO_FILE)


@pytest.fixture(scope="module")
def structures(table):
    return [
        Structure(Lattice(lattice), numbers, np.reshape(frac_coords, (-1, 3)))
        for lattice, numbers, frac_coords in zip(
            *(table[name].to_pylist() for name in ("lattice", "numbers", "frac_coords")), strict=True
        )
    ]


@pytest.fixture(scope="module")
def model():
    from chgnet.model import CHGNet

    return CHGNet.load(model_name=make_demo.LABEL_WEIGHTS, use_device="cpu", verbose=False)


def test_columns_and_size(table):
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "id": "string",
        "formula": "string",
        "prototype": "string",
        "numbers": "list<element: uint8>",
        "frac_coords": "list<element: double>",
        "lattice": "list<element: double>",
        "e_form": "double",
    }
    assert 600 <= len(table) <= 1100
    assert table["id"].to_pylist() == [f"demo-{k:04}" for k in range(1, len(table) + 1)]
    assert make_demo.DEMO_FILE.stat().st_size < 300_000


def test_the_file_says_that_its_labels_are_a_models(table):
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert "not DFT" in about["labels"]
    assert about["made_by"] == "data/demo/make_demo.py"
    assert set(json.loads(about["versions"])) == {"chgnet", "pymatgen", "torch"}


def test_crystals_are_small_plausible_and_match_their_formulas(table, structures):
    labels = table["e_form"].to_numpy()
    assert labels.min() >= make_demo.LOWEST_LABEL
    assert labels.max() <= make_demo.HIGHEST_LABEL
    assert np.mean([len(structure) for structure in structures]) < 8
    assert max(len(structure) for structure in structures) <= make_demo.MOST_ATOMS
    for formula, structure in zip(table["formula"].to_pylist(), structures, strict=True):
        assert structure.composition.reduced_formula == formula
        assert structure.distance_matrix[np.triu_indices(len(structure), 1)].min(initial=9.0) > 0.6
    assert len(set(table["prototype"].to_pylist())) > 100


def test_labels_are_what_the_r2scan_weights_give(table, structures, model):
    chosen = range(0, len(table), len(table) // 10)
    references = make_demo.read_references()
    again = make_demo.label(model, references, [structures[k] for k in chosen])
    np.testing.assert_allclose(again, table["e_form"].to_numpy()[list(chosen)], rtol=0, atol=1e-4)


def test_candidates_are_the_same_every_time():
    first, second = (list(make_demo.candidates(make_demo.SEED)) for _ in range(2))
    assert [(one[0], one[2]) for one in first] == [(two[0], two[2]) for two in second]
    assert all(one[1] == two[1] for one, two in zip(first, second, strict=True))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, structures, monkeypatch):
    rows = [make_demo.Row("A_cF4_225_a", structures[0], -1.0)]

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(make_demo.Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        make_demo.write_rows(rows, tmp_path / "demo.parquet")
    assert not (tmp_path / "demo.parquet").exists()
