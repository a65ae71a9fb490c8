"""Tasks of compositions: tables of formulas open as tasks, and formulas become fractions of the elements."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_crystals import rock_salt
from pymatgen.core import Composition, Element

import data.crystals.tasks
from data.crystals.compositions import Compositions, read_compositions
from data.crystals.convert import reduced_formula
from data.crystals.crystal import Crystal
from data.crystals.rows import Rows
from data.crystals.task_table import official_ids, official_task
from data.folds import make_folds
from data.targets import bad_target_reasons
from data.task import Task, TaskError
from data.tasks import open_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
SALT = rock_salt("Na", "Cl", 5.69)
STEELS = ["mb-steels-001", "mb-steels-312", "mb-steels-007"]
OXIDES = ["mb-mp-e-form-000001", "mb-mp-e-form-132752"]


def opened(path: object, **choices) -> tuple[Task, Rows]:
    return open_task(str(path), **choices, download_dir=Path("never used"))


def parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def matbench_json(path: Path, index: list, **columns: list) -> Path:
    data = [list(cells) for cells in zip(*columns.values(), strict=True)]
    text = json.dumps({"index": index, "columns": list(columns), "data": data}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def formulas_of(rows: Rows) -> list[str]:
    return [payload.decode() for payload in rows.chunk(0, len(rows)).payloads]


def parsed(tmp_path: Path, *formulas: str | None) -> Compositions:
    path = parquet(tmp_path / "some.parquet", composition=list(formulas), y=[0.0] * len(formulas))
    return read_compositions(opened(path)[1])


def test_tables_in_parquet_csv_and_json_mean_the_same(tmp_path):
    ids, formulas, y, groups = ["a", "b", "c"], ["NaCl", "Fe2 O3", "Li0.5CoO2"], [1.0, -2.5, None], ["s", "o", "o"]
    table = parquet(tmp_path / "mine.parquet", y=y, id=ids, composition=formulas, group=groups, remark=["x", None, "z"])
    text = tmp_path / "mine.csv"
    text.write_text("id,formula,y,remark,group\na,NaCl,1,x,s\nb,Fe2 O3,-2.5,,o\nc, Li0.5CoO2 ,,z,o\n")
    file = matbench_json(tmp_path / "mine.json.gz", ids, composition=formulas, y=y, group=groups)
    for path in (table, text, file):
        task, rows = opened(path)
        assert (task.name, task.inputs, task.target, task.kind) == ("mine", "compositions", "y", "regression")
        assert (task.official, task.quantity, task.pretraining_overlap) == (None, "other", False)
        assert task.notes.startswith("Taken: ids from ")
        assert f"formulas from column '{'formula' if path == text else 'composition'}'" in task.notes
        assert task.notes.endswith(", the target from column 'y'. Compositions only.")
        assert (rows.ids, rows.groups, rows.format) == (ids, groups, "composition")
        np.testing.assert_array_equal(rows.targets, [1.0, -2.5, np.nan])
        assert formulas_of(rows) == formulas
        assert formulas_of(rows.select([2, 0], "")) == ["Li0.5CoO2", "NaCl"]
    assert opened(table, quantity="energy_per_atom")[0].quantity == "energy_per_atom"


def test_rows_without_ids_are_numbered_and_booleans_are_classes(tmp_path):
    path = parquet(tmp_path / "metal.parquet", formula=["Fe", "NaCl"], metal=[True, False])
    task, rows = opened(path)
    assert (task.kind, rows.ids, rows.targets.tolist()) == ("classification", ["0", "1"], [1.0, 0.0])
    (tmp_path / "metal.csv").write_text("formula,metal\nFe,true\nNaCl,false\n")
    task, rows = opened(tmp_path / "metal.csv")
    assert (task.kind, rows.ids, rows.targets.tolist()) == ("classification", ["0", "1"], [1.0, 0.0])


def test_neither_ids_nor_the_index_that_pandas_writes_are_targets(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"id": [7, 8], "composition": ["Fe", "NaCl"], "y": [1.0, 2.0]}, index=[5, 3])
    frame.to_csv(tmp_path / "frame.csv")
    frame.to_parquet(tmp_path / "frame.parquet")
    for path in (tmp_path / "frame.csv", tmp_path / "frame.parquet"):
        task, rows = opened(path)
        assert (task.target, rows.ids) == ("y", ["7", "8"])


def test_official_ids_make_an_official_task_of_any_table(tmp_path):
    strengths = {"composition": ["Fe0.7C0.3", "Fe0.6Ni0.4", "Fe0.9Mn0.1"], "yield strength": [1.0, 2.0, 3.0]}
    text = tmp_path / "b.csv"
    text.write_text("mb_id,formula,yield strength\n" + "".join(f"{one},Fe,1\n" for one in STEELS))
    for path in (
        parquet(tmp_path / "a.parquet", mbid=STEELS, spg=[1, 2, 3], **strengths),
        text,
        matbench_json(tmp_path / "c.json", STEELS, **strengths),
    ):
        task, rows = opened(path)
        assert task == official_task("matbench_steels")
        assert rows.ids == STEELS
        assert len(rows) < (task.n_official or 0)
        assert sum(len(fold.test_ids) for fold in make_folds(task, rows.ids, None)) == 3
    with pytest.raises(TaskError, match="that of matbench_steels is 'other'"):
        opened(text, quantity="energy_per_atom")
    task, rows = opened(tmp_path / "a.parquet", target="spg")
    assert (task.official, task.target, task.inputs, rows.ids) == (None, "spg", "compositions", STEELS)
    bad = parquet(tmp_path / "bad.parquet", mbid=["mb-steels-1", "mb-steels-313"], composition=["Fe", "Fe"], y=[1, 2])
    with pytest.raises(TaskError, match="2 ids that matbench_steels does not have: mb-steels-1, mb-steels-313"):
        opened(bad)
    wrong = parquet(tmp_path / "wrong.parquet", mbid=STEELS, composition=["Fe"] * 3, y=[1, 2, 3])
    with pytest.raises(TaskError, match="no column 'yield strength'"):
        opened(wrong)


def test_a_structure_task_read_as_compositions_says_so(tmp_path):
    path = parquet(tmp_path / "a.parquet", mbid=OXIDES, composition=["PtC", "CdC"], spg=[1, 2], e_form=[1.5, 2])
    task, structures = opened(path)[0], official_task("matbench_mp_e_form")
    assert task == replace(structures, inputs="compositions", notes=task.notes, pretraining_overlap=False)
    assert "Compositions only: the structures of matbench_mp_e_form were not read" in task.notes
    assert structures.pretraining_overlap
    perovskite = parquet(tmp_path / "p.parquet", mbid=["mb-perovskites-00001"], formula=["RhTeN3"], e_form=[1.5])
    notes = opened(perovskite)[0].notes
    assert official_task("matbench_perovskites").notes in notes
    assert "Compositions only" in notes


def test_structures_under_a_composition_tasks_ids_say_so(tmp_path):
    path = matbench_json(tmp_path / "a.json", STEELS[:1], structure=[SALT.as_dict()], **{"yield strength": [1.0]})
    task, rows = opened(path)
    assert (task.official, task.inputs, rows.format) == ("matbench_steels", "structures", "matbench_json")
    assert "Structures are the user's own" in task.notes


def test_a_file_with_structures_and_formulas_is_read_for_its_structures(tmp_path):
    for column in ("structure", "relaxed"):
        columns = {"formula": ["NaCl"], column: [SALT.as_dict()], "y": [1.0]}
        task, rows = opened(matbench_json(tmp_path / "a.json", ["a"], **columns))
        assert task.inputs == "structures"
        assert isinstance(next(rows.chunk(0, 1).crystals()), Crystal)


def test_a_composition_task_by_name_reads_what_matbench_publishes(tmp_path, monkeypatch):
    columns = {"composition": ["Fe0.62Ni0.38"] * 312, "yield strength": [float(k) for k in range(312)]}
    content = matbench_json(tmp_path / "matbench_steels.json.gz", list(range(312)), **columns).read_bytes()
    published = ("http://nowhere.invalid/", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(data.crystals.tasks, "published_file", lambda name: published)
    task, rows = open_task("matbench_steels", download_dir=tmp_path)
    assert task == official_task("matbench_steels")
    assert rows.ids == official_ids(task)
    assert (rows.ids[9], rows.targets[9], rows.format) == ("mb-steels-010", 9.0, "composition")
    assert read_compositions(rows).formulas[0] == "Fe31Ni19"
    by_path = opened(tmp_path / "matbench_steels.json.gz")
    assert by_path[0] == task
    assert by_path[1].ids == rows.ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,y\na,1\n", r"a\.csv has no column of formulas among \['y'\]; expected one named 'composition'"),
        ("a.csv", "id,composition,y\n", "has no rows"),
        ("a.csv", "composition,y,z\nFe,1,2\n", r"no target is given; expected --target .*\['y', 'z'\]"),
        (
            "a.csv",
            "composition,remark\nFe,good\n",
            r"no column holds numbers or booleans .* 'remark' has 'good' in line 2",
        ),
        ("a.csv", "composition,y,y\nFe,1,2\n", "a column name twice"),
        ("a.csv", "id,composition,y\n,Fe,1\nb,Fe,1\n", "no id in 1 of its 2 rows"),
        ("a.csv", "composition,y,group\nFe,1,\n", "column 'group' is empty in 1 rows"),
        ("a.parquet", "PAR1 not", "a.parquet is not a Parquet file, or not a whole one"),
    ],
)
def test_tables_that_are_no_task_say_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=message):
        opened(tmp_path / name)


def test_parquet_files_that_are_no_task_say_why(tmp_path):
    path = parquet(tmp_path / "a.parquet", composition=pa.array([], pa.string()), y=pa.array([], pa.float64()))
    with pytest.raises(TaskError, match="has no rows"):
        opened(path)
    with pytest.raises(TaskError, match=r"no column of formulas among \['name', 'y'\]"):
        opened(parquet(tmp_path / "b.parquet", name=["Fe"], y=[1.0]))
    two = parquet(tmp_path / "two.parquet", composition=["Fe"], y=[1], z=[2.5])
    with pytest.raises(TaskError, match=r"expected --target .* \['y', 'z'\]"):
        opened(two)
    assert opened(two, target="z")[1].targets.tolist() == [2.5]
    content = two.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(TaskError, match="not a whole one"):
        opened(tmp_path / "cut.parquet")


def test_fractions_atoms_and_reduced_formulas(tmp_path):
    formulas = ["Fe4 O6", "Ca(OH)2", "HDO", "T2", "Fe0.5Ni0.5", "FeNi", "Li0.5CoO2", "He", "Zr0.655Al0.15Ni0.195"]
    found = parsed(tmp_path, *formulas)
    assert found.reasons == [None] * len(formulas)
    assert (found.fractions.shape, found.fractions.dtype) == ((len(formulas), 94), np.float32)
    assert found.n_atoms.dtype == np.int32
    assert found.n_atoms.tolist() == [10, 5, 3, 2, 1, 2, 4, 1, 1]
    assert found.formulas == ["Fe2O3", "Ca(HO)2", "H2O", "H2", "FeNi", "FeNi", "Li(CoO2)2", "He", "Zr131(Al10Ni13)3"]
    for formula, fractions in zip(formulas, found.fractions, strict=True):
        composition = Composition(formula)
        expected = np.zeros(94)
        for element, amount in composition.items():
            expected[Element(element.symbol).Z - 1] += amount / composition.num_atoms
        np.testing.assert_allclose(fractions, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("Xx2O3", "'Xx2O3' is not a formula: there is no element Xx; expected one such as Fe2O3"),
        ("Am2O3", "'Am2O3' is not a formula of the elements H to Pu .*: it names Am"),
        ("Fe2O3)", r"'Fe2O3\)' is not a formula: its brackets do not match"),
        ("Fe-2O", "'Fe-2O' is not a formula: it cannot be read from '-2O' on"),
        ("rust", "'rust' is not a formula"),
        ("Fe0.0", "it has 0 atoms"),
        ("Fe1e999", "it has inf atoms"),
        ("Fe2000001", "has 2000001 atoms; at most 1000000"),
        ("", "the formula is missing"),
        (None, "the formula is missing"),
    ],
)
def test_a_bad_formula_costs_nobody_but_its_row(tmp_path, formula, reason):
    found = parsed(tmp_path, "NaCl", formula, "Fe")
    assert found.reasons[0] is found.reasons[2] is None
    assert found.formulas == ["NaCl", None, "Fe"]
    assert found.n_atoms.tolist() == [2, 0, 1]
    assert found.fractions.sum(axis=1).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=reason):  # as a reader of the quarantine table would see it
        raise ValueError(found.reasons[1])


def test_a_table_in_capitals_is_not_guessed_at(tmp_path):
    compositions = parsed(tmp_path, "FE2O3", "SIO2", "CO", "UO2")
    assert compositions.formulas == [None, None, None, "UO2"]
    assert compositions.reasons[1].startswith(
        "'SIO2' may be SiO2: no formula of the table has a small letter, and 'FE2O3'"
    )
    assert parsed(tmp_path, "CO", "HF", "CH4").reasons == [None] * 3
    assert parsed(tmp_path, "CO", "Fe2O3").formulas == ["CO", "Fe2O3"]


def test_what_a_formula_was_read_as_is_noted(tmp_path):
    compositions = parsed(tmp_path, "NaCl", "CuSO4.5H2O", "D2O")
    assert compositions.formulas == ["NaCl", "CuH10SO9", "H2O"]
    assert compositions.notes[0] == ()
    assert "a dot before water is that of a hydrate: CuSO4.5H2O is CuSO4 and 5H2O" in compositions.notes[1][0]
    assert "deuterium" in compositions.notes[2][0]


def test_only_compositions_are_read(tmp_path):
    path = matbench_json(tmp_path / "a.json", ["a"], structure=[SALT.as_dict()], y=[1.0])
    with pytest.raises(TaskError, match="the rows are structures"):
        read_compositions(opened(path)[1])


@pytest.fixture(scope="module")
def all_of_e_form() -> tuple[Task, Rows, Compositions]:
    path = SHARED / "mp_e_form_compositions.parquet"
    if not path.exists():
        pytest.skip(f"the shared {path.name} is not here")
    task, rows = opened(path)
    return task, rows, read_compositions(rows)


def test_all_compositions_of_an_official_task(all_of_e_form):
    task, rows, compositions = all_of_e_form
    assert (task.official, task.inputs, task.target) == ("matbench_mp_e_form", "compositions", "e_form")
    assert (task.unit, task.quantity) == ("eV/atom", "energy_per_atom")
    assert len(rows) == task.n_official == 132_752
    assert rows.ids == official_ids(task)
    assert bad_target_reasons(rows.ids, rows.targets, rows.row_numbers) == {}
    assert compositions.reasons == [None] * len(rows)
    np.testing.assert_allclose(compositions.fractions.sum(axis=1), 1, atol=1e-6)
    assert compositions.n_atoms.min() == 1
    folds = make_folds(task, rows.ids, rows.groups)
    assert sorted(one for fold in folds for one in fold.test_ids) == rows.ids
    assert all(sorted(fold.train_ids + fold.test_ids) == rows.ids for fold in folds)


def test_compositions_are_those_of_the_structures_with_the_same_ids(all_of_e_form):
    _, rows, compositions = all_of_e_form
    path = SHARED / "mp_e_form_subset.json.gz"
    if not path.exists():
        pytest.skip(f"the shared {path.name} is not here")
    with_structures = opened(path)[1]
    position = {one: row for row, one in enumerate(rows.ids)}
    for one, target, crystal in zip(
        with_structures.ids,
        with_structures.targets,
        with_structures.chunk(0, len(with_structures)).crystals(),
        strict=True,
    ):
        assert isinstance(crystal, Crystal)
        row = position[one]
        assert rows.targets[row] == pytest.approx(target, abs=1e-6)
        assert compositions.formulas[row] == reduced_formula(crystal)
        counts = np.bincount(crystal.numbers, minlength=95)[1:]
        np.testing.assert_allclose(compositions.fractions[row], counts / counts.sum(), atol=1e-6)
