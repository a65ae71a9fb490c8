"""Opening a task: names, files and folders become the right task, and mistakes are told before any work."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from made_crystals import rock_salt

import data.crystals.tasks
import data.tasks
from data.crystals.crystal import Crystal
from data.crystals.quality import check_crystal
from data.crystals.rows import Rows
from data.crystals.task_table import OFFICIAL_NAMES, official_ids, official_task, published_file
from data.families import task_names
from data.row_numbers import counted
from data.targets import bad_target_reasons
from data.task import Task, TaskError
from data.tasks import open_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEMO_FILE = Path(data.tasks.__file__).parent / "demo" / "demo.parquet"
SALT = rock_salt("Na", "Cl", 5.69)


def write(path: Path, index: list, columns: dict[str, list]) -> Path:
    names = ["structure", *columns]
    data = [[SALT.as_dict(), *cells] for cells in zip(*columns.values(), strict=True)]
    path.write_bytes(gzip.compress(json.dumps({"index": index, "columns": names, "data": data}).encode()))
    return path


def opened(spec: object, folder: Path, **choices) -> tuple[Task, Rows]:
    return open_task(str(spec), **choices, download_dir=folder / "downloads")


def test_the_table_agrees_with_matbench():
    from matbench.metadata import mbv01_metadata

    assert set(OFFICIAL_NAMES) == set(mbv01_metadata)
    for name in OFFICIAL_NAMES:
        task, published = official_task(name), mbv01_metadata[name]
        assert (task.name, task.official, task.n_official) == (name, name, published["num_entries"])
        assert (task.target, task.kind) == (published["target"], published["task_type"])
        assert task.unit == (published["unit"] or "").replace("unitless", "")
        assert task.inputs == published["input_type"] + "s"
        assert published_file(name) == (published["url"], published["hash"])
        assert task.labels.endswith(".")
    energies = {name for name in OFFICIAL_NAMES if official_task(name).quantity == "energy_per_atom"}
    assert energies == {"matbench_mp_e_form", "matbench_perovskites"}


@pytest.mark.parametrize("name", ["mp_e_form", "perovskites"])
def test_official_subsets_are_recognised_by_their_ids(name, tmp_path):
    path = SHARED / f"{name}_subset.json.gz"
    if not path.exists():
        pytest.skip(f"the shared subset {path.name} is not here")
    task, rows = opened(path, tmp_path)
    assert task == official_task(f"matbench_{name}")
    assert len(rows) < task.n_official
    assert bad_target_reasons(rows.ids, rows.targets, rows.row_numbers) == {}
    assert set(rows.ids) <= set(official_ids(task))


def test_a_whole_official_file_by_path_gets_matbenchs_ids(tmp_path):
    n = official_task("matbench_jdft2d").n_official
    assert n is not None
    path = write(tmp_path / "matbench_jdft2d.json.gz", list(range(n)), {"exfoliation_en": [0.5] * n})
    task, rows = opened(path, tmp_path)
    assert task == official_task("matbench_jdft2d")
    assert (rows.ids[0], rows.ids[-1]) == ("mb-jdft2d-001", "mb-jdft2d-636")
    path = write(tmp_path / "matbench_jdft2d.json.gz", list(range(9)), {"exfoliation_en": [0.5] * 9})
    task, rows = opened(path, tmp_path)
    assert task.official is None
    assert "no official folds" in task.notes
    assert rows.ids == list("012345678")


def test_an_official_file_already_downloaded_is_used_and_a_wrong_size_refused(tmp_path, monkeypatch):

    def hold(n_rows: int) -> None:
        """Keep a file of so many rows where downloads are kept, as if Matbench had published it."""
        columns = {"exfoliation_en": list(range(n_rows))}
        content = write(tmp_path / "matbench_jdft2d.json.gz", list(range(n_rows)), columns).read_bytes()
        published = ("http://nowhere.invalid/", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(data.crystals.tasks, "published_file", lambda name: published)

    hold(636)
    task, rows = open_task("matbench_jdft2d", download_dir=tmp_path)
    assert task == official_task("matbench_jdft2d")
    assert (rows.ids[9], rows.targets[9]) == ("mb-jdft2d-010", 9.0)
    hold(9)
    with pytest.raises(TaskError, match="has 9 rows; expected 636"):
        open_task("matbench_jdft2d", download_dir=tmp_path)


def test_impossible_official_ids_and_columns_are_refused(tmp_path):
    ids = ["mb-phonons-0001", "mb-phonons-9999", "mb-phonons-02"]
    with pytest.raises(TaskError, match="2 ids that matbench_phonons does not have: mb-phonons-9999, mb-phonons-02"):
        opened(write(tmp_path / "a.json.gz", ids, {"last phdos peak": [1, 2, 3]}), tmp_path)
    with pytest.raises(TaskError, match=r"no column 'last phdos peak' but \['peak'\]"):
        opened(write(tmp_path / "b.json.gz", ids[:1], {"peak": [1]}), tmp_path)


def test_another_target_for_official_structures_is_a_task_of_ones_own(tmp_path):
    columns = {"last phdos peak": [1, 2], "mine": [0.1, 0.2]}
    path = write(tmp_path / "a.json.gz", ["mb-phonons-0001", "mb-phonons-0002"], columns)
    assert opened(path, tmp_path)[0].official == "matbench_phonons"
    task, rows = opened(path, tmp_path, target="mine")
    assert (task.name, task.official, task.target) == ("a", None, "mine")
    assert rows.targets.tolist() == [0.1, 0.2]


def test_own_files_choose_their_target_kind_and_quantity(tmp_path):
    one = write(tmp_path / "one.json.gz", ["a", "b"], {"y": [1, None], "remark": ["x", None], "group": [1, 2]})
    task, rows = opened(one, tmp_path)
    assert (task.name, task.target, task.kind, task.quantity) == ("one", "y", "regression", "other")
    assert rows.groups == ["1", "2"]
    np.testing.assert_array_equal(rows.targets, [1, np.nan])
    assert opened(one, tmp_path, quantity="energy_per_cell")[0].quantity == "energy_per_cell"
    truth = write(tmp_path / "truth.json.gz", ["a", "b"], {"y": [True, False]})
    task, rows = opened(truth, tmp_path)
    assert (task.kind, rows.targets.tolist()) == ("classification", [1.0, 0.0])
    two = write(tmp_path / "two.json.gz", ["a"], {"y": [1], "z": [2.5]})
    assert opened(two, tmp_path, target="z")[1].targets.tolist() == [2.5]
    mixed = write(tmp_path / "mixed.json.gz", ["a", "b"], {"y": [True, 2]})
    for path, choices, message in (
        (two, {}, r"no target is given; expected --target .* \['y', 'z'\]"),
        (two, {"target": "w"}, r"target 'w' cannot be used; .* \['y', 'z'\]"),
        (one, {"target": "remark"}, "target 'remark' cannot be used"),
        (
            one,
            {"quantity": "energy"},
            "quantity 'energy': expected one of energy_per_atom, energy_per_cell, other",
        ),
        (mixed, {}, "mixes booleans and numbers"),
    ):
        with pytest.raises(TaskError, match=message):
            opened(path, tmp_path, **choices)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "salts"
    folder.mkdir()
    for k, name in enumerate(("a.cif", "b.cif", "POSCAR_c")):
        SALT.copy().scale_lattice(180.0 + k).to(str(folder / name), fmt="poscar" if "POSCAR" in name else "cif")
    (folder / "readme.txt").write_text("not a structure")
    (folder / "t.csv").write_text("\ufefffile,group,e,metal,remark\na.cif,1,-1.5,true,x\nPOSCAR_c,2,,False,\n")
    return folder


def test_a_folder_of_structures(folder, tmp_path):
    task, rows = opened(folder, tmp_path, target="e", quantity="energy_per_atom")
    assert (task.name, task.target, task.kind, task.quantity) == (
        "salts",
        "e",
        "regression",
        "energy_per_atom",
    )
    assert "1 structure files in the folder have no row" in task.notes
    assert rows.ids == ["a.cif", "POSCAR_c"]
    assert rows.groups == ["1", "2"]
    np.testing.assert_array_equal(rows.targets, [-1.5, np.nan])
    first, second = rows.chunk(0, 2).crystals()
    assert isinstance(first, Crystal)
    assert isinstance(second, Crystal)
    assert abs(np.linalg.det(first.lattice)) == pytest.approx(180)
    assert abs(np.linalg.det(second.lattice)) == pytest.approx(182)
    assert opened(folder, tmp_path, target="metal")[0].kind == "classification"
    with pytest.raises(TaskError, match=r"expected --target .*\['e', 'metal'\]"):
        opened(folder, tmp_path)


def test_a_folder_by_id(folder, tmp_path):
    (folder / "t.csv").write_text("id,y\nb,1\na,2\n")
    rows = opened(folder, tmp_path)[1]
    assert (rows.ids, rows.targets.tolist()) == (["b", "a"], [1.0, 2.0])
    (folder / "t.csv").write_text("id,file,y\nfirst,b.cif,1\nsecond,a.cif,2\n")
    assert opened(folder, tmp_path)[1].ids == ["first", "second"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,y\na,1\nq,2\nz,3\n", "2 of 3 rows name no structure file .*: q, z. Expected"),
        ("name,y\nq,1\n", "expected 'file' or 'id'"),
        ("id,y\n", "has no rows"),
        ("id,y\na\n", "line 2 has 1 cells, its header 2"),
        ("id,y,y\na,1,2\n", "a column name twice"),
        ("id,y,group\na,1,\n", "column 'group' is empty in 1 rows"),
        ("id,remark\na,none\n", r"no target is given; .*\[\] \(all columns: \['remark'\]\)"),
    ],
)
def test_tables_that_do_not_fit_their_folder(folder, tmp_path, table, message):
    (folder / "t.csv").write_text(table)
    with pytest.raises(TaskError, match=message):
        opened(folder, tmp_path)


def test_a_row_whose_file_is_missing_costs_nothing_but_itself(folder, tmp_path):
    table = folder / "t.csv"
    table.write_text("id,y\n\nq.cif,3\na,1\nb,2\n,4\n")
    for spec in (folder, table):
        rows = opened(spec, tmp_path)[1]
        missing, a, b, nameless = rows.chunk(0, 4).crystals()
        assert isinstance(a, Crystal)
        assert isinstance(b, Crystal)
        assert str(missing) == "no structure file 'q.cif' is in the folder; line 3 of t.csv names it in column 'id'"
        assert str(nameless) == "no structure file: line 6 of t.csv has nothing in column 'id'"
        assert rows.targets.tolist() == [3, 1, 2, 4]
    without = opened(folder, tmp_path)[1]
    (folder / "q.cif").write_bytes((folder / "a.cif").read_bytes())
    assert opened(folder, tmp_path)[1].sha256 != without.sha256  # so that no cache of the graphs is kept
    table.write_text("id,y\na,1\n" + "".join(f"{name},1\n" for name in "vwxyz"))
    with pytest.raises(TaskError, match=r"5 of 6 rows name no structure file .*: v, w, x, \.\.\.\. Expected"):
        opened(folder, tmp_path)


def test_one_table_a_folder(folder, tmp_path):
    (folder / "u.csv").write_text("id,y\n")
    with pytest.raises(TaskError, match=r"exactly one CSV file.*found t\.csv, u\.csv"):
        opened(folder, tmp_path)


def test_a_misspelt_name_suggests_the_right_one_and_lists_all(tmp_path):
    with pytest.raises(TaskError, match=r"did you mean matbench_perovskites\?") as caught:
        opened("matbench_perovskite", tmp_path)
    assert all(name in str(caught.value) for name in task_names())
    with pytest.raises(TaskError, match=r"no task, file or folder '/nowhere/a\.json\.gz'"):
        opened("/nowhere/a.json.gz", tmp_path)


def test_an_ids_file_restricts_the_rows(tmp_path):
    path = write(tmp_path / "a.json.gz", list("abcd"), {"y": [1, 2, 3, 4], "z": [1, 2, 3, 4]})
    ids = tmp_path / "ids.txt"
    ids.write_text("# chosen by hand\nd\n\nb # the odd one\n")
    task, rows = opened(path, tmp_path, target="y", ids_file=ids)
    assert (rows.ids, rows.targets.tolist()) == (["b", "d"], [2.0, 4.0])
    whole = opened(path, tmp_path, target="y")[1]
    other = opened(path, tmp_path, target="z")[1]
    assert len({rows.sha256, whole.sha256, other.sha256}) == 3
    ids.write_text("b\nd\n")
    assert opened(path, tmp_path, target="y", ids_file=ids)[1].sha256 == rows.sha256
    for text, message in (
        ("x\nb\ny\n", f"2 ids that {task.name} does not have: x, y"),
        ("# none\n", "names no id"),
    ):
        ids.write_text(text)
        with pytest.raises(TaskError, match=message):
            opened(path, tmp_path, target="y", ids_file=ids)
    with pytest.raises(TaskError, match="cannot be read"):
        opened(path, tmp_path, target="y", ids_file=tmp_path / "none")


def test_content_decides_the_identity_of_a_folder(folder, tmp_path):
    before = opened(folder, tmp_path, target="e")[1].sha256
    assert opened(folder, tmp_path, target="e")[1].sha256 == before
    SALT.to(str(folder / "a.cif"), fmt="cif")
    assert opened(folder, tmp_path, target="e")[1].sha256 != before


@pytest.mark.skipif(not DEMO_FILE.exists(), reason="data/demo/demo.parquet is not there yet")
def test_the_demo_opens_and_is_clean(tmp_path):
    task, rows = opened("demo", tmp_path)
    assert "not DFT" in task.labels
    assert rows.groups is not None
    assert bad_target_reasons(rows.ids, rows.targets, rows.row_numbers) == {}
    for crystal in rows.chunk(0, len(rows)).crystals():
        assert isinstance(crystal, Crystal)
        check_crystal(crystal)
    with pytest.raises(TaskError, match="target 'x': that of demo is 'e_form'"):
        opened("demo", tmp_path, target="x")
    with pytest.raises(TaskError, match="quantity 'other': that of demo is 'energy_per_atom'"):
        opened("demo", tmp_path, quantity="other")


def test_an_array_of_targets_is_quarantined_where_any_of_its_numbers_is_no_number():
    targets = np.zeros((4, 2, 3))
    targets[1, 1, 2], targets[2, 0, 0] = np.nan, -np.inf
    reasons = bad_target_reasons(list("abcd"), targets, counted(4))
    assert reasons == {1: "target is missing or not a number", 2: "target is -inf"}
