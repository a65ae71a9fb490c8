"""Layouts that people have: each is read as it is, bad records are single rows, and what was taken is said."""

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from made_crystals import rock_salt
from pymatgen.core import Structure

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.rows import Rows
from data.crystals.task_table import official_task
from data.task import Task, TaskError
from data.tasks import open_task
from tune.arguments import absolute_spec

VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"
SALTS = [rock_salt("Na", "Cl", 5.69), rock_salt("K", "Br", 6.6), rock_salt("Li", "F", 4.03)]
IDS = ["mp-1", "mp-2", "mp-3"]
E = [-2.0, -1.5, -3.0]


def opened(path: Path, **choices) -> tuple[Task, Rows]:
    return open_task(str(path), **choices, download_dir=Path("never used"))


def read(rows: Rows) -> list[Crystal | BadCrystalError]:
    return list(rows.chunk(0, len(rows)).crystals())


def assert_salts(rows: Rows, *, ids: list[str] = IDS) -> None:
    """The rows are the three salts with their energies, atom by atom."""
    assert rows.ids == ids
    np.testing.assert_allclose(rows.targets, E)
    for crystal, structure in zip(read(rows), SALTS, strict=True):
        assert isinstance(crystal, Crystal), crystal
        assert crystal.numbers.tolist() == list(structure.atomic_numbers)
        np.testing.assert_allclose(crystal.lattice, structure.lattice.matrix, atol=1e-6)
        shifts = crystal.frac_coords - structure.frac_coords
        np.testing.assert_allclose(shifts, np.round(shifts), atol=1e-6)


def atoms_of(structure: Structure) -> Atoms:
    return Atoms(
        numbers=structure.atomic_numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three CIF files by number."""
    folder = tmp_path / "salts"
    folder.mkdir()
    for k, structure in enumerate(SALTS):
        structure.to(str(folder / f"{k:05d}.cif"))
    return folder


def test_a_folder_of_cgcnn(folder):
    (folder / "atom_init.json").write_text('{"1": [0, 1]}')
    (folder / "id_prop.csv").write_text("".join(f"{k:05d},{e}\n" for k, e in enumerate(E)))
    (folder / "other.csv").write_text("a,b\n")  # of several, id_prop.csv is the table
    task, rows = opened(folder)
    assert_salts(rows, ids=["00000", "00001", "00002"])
    assert task.target == "target"
    assert "no line of column names: they are taken as id, target" in task.notes
    assert "have no row" not in task.notes
    (folder / "id_prop.csv").write_text("gone,1\n00001,2\n")
    gone, crystal = read(opened(folder)[1])
    assert str(gone) == "no structure file 'gone' is in the folder; line 1 of id_prop.csv names it in column 'id'"
    assert isinstance(crystal, Crystal)
    (folder / "id_prop.csv").write_text("id,e\n" + "".join(f"{k:05d},{e}\n" for k, e in enumerate(E)))
    assert opened(folder)[0].target == "e"


def test_a_folder_of_alignn_with_several_targets(tmp_path):
    for k, structure in enumerate(SALTS):
        structure.to(str(tmp_path / f"POSCAR-JVASP-{k}.vasp"), fmt="poscar")
    names = [f"POSCAR-JVASP-{k}.vasp" for k in range(3)]
    lines = [f"{name},{e},{k}\n" for k, (name, e) in enumerate(zip(names, E, strict=True))]
    (tmp_path / "id_prop.csv").write_text("".join(lines))
    with pytest.raises(TaskError, match=r"expected --target .*\['target_1', 'target_2'\]"):
        opened(tmp_path)
    assert_salts(opened(tmp_path, target="target_1")[1], ids=names)
    assert opened(tmp_path, target="target_2")[1].targets.tolist() == [0, 1, 2]


def test_folders_of_vasp_inputs_are_named_by_their_folder(tmp_path):
    for row_id, structure in zip(IDS, SALTS, strict=True):
        (tmp_path / "deep" / row_id).mkdir(parents=True)
        structure.copy().scale_lattice(99).to(str(tmp_path / "deep" / row_id / "POSCAR"), fmt="poscar")
    table = tmp_path / "targets.CSV"
    table.write_text("material_id,e\n" + "".join(f"{row_id},{e}\n" for row_id, e in zip(IDS, E, strict=True)))
    (tmp_path / ".~lock.targets.csv").write_text("LibreOffice")
    (tmp_path / "._targets.csv").write_text("macOS")
    (first, *_), task = read(opened(tmp_path)[1]), opened(tmp_path)[0]
    assert abs(np.linalg.det(first.lattice)) == pytest.approx(99)
    assert "CONTCAR" not in task.notes
    for row_id, structure in zip(IDS, SALTS, strict=True):
        structure.to(str(tmp_path / "deep" / row_id / "CONTCAR"), fmt="poscar")
    task, rows = opened(tmp_path)
    assert_salts(rows)
    assert "In 3 folders with several structures of a VASP run its last one is read, CONTCAR." in task.notes
    table.write_text("file,e\ndeep/mp-1/POSCAR,1\n")
    assert abs(np.linalg.det(read(opened(tmp_path)[1])[0].lattice)) == pytest.approx(99)


def test_names_that_fit_several_files_or_one_file_twice_are_refused(folder):
    table = folder / "t.csv"
    shutil.copy(folder / "00000.cif", folder / "00000.vasp")
    table.write_text("id,e\n00000,1\n")
    with pytest.raises(TaskError, match=r"00000 may be 00000\.cif, 00000\.vasp"):
        opened(folder)
    table.write_text("id,e\n00001,1\n00001.cif,2\n")
    with pytest.raises(TaskError, match=r"00001, 00001\.cif mean the same file 00001\.cif"):
        opened(folder)


def test_one_of_several_tables_is_given_by_its_path(folder):
    for name, e in (("train", 1), ("test", 2)):
        (folder / f"{name}.csv").write_text(f"structure_id,e\n00000,{e}\n00001,{e}\n")
    with pytest.raises(TaskError, match=r"found test\.csv, train\.csv\. Give the path of one"):
        opened(folder)
    task, rows = opened(folder / "test.csv")
    assert (task.inputs, rows.targets.tolist()) == ("structures", [2, 2])


def records() -> list[dict]:
    """The salts as JARVIS has them, one with Cartesian coordinates."""
    return [
        {
            "jid": row_id,
            "e": e,
            "gap": "na" if k == 1 else 1.0,
            "atoms": {
                "lattice_mat": structure.lattice.matrix.tolist(),
                "coords": (structure.cart_coords if k == 1 else structure.frac_coords).tolist(),
                "elements": [site.specie.symbol for site in structure],
                "cartesian": k == 1,
                "props": [""] * len(structure),
            },
            "efg": [[1, 2]],
        }
        for k, (row_id, e, structure) in enumerate(zip(IDS, E, SALTS, strict=True))
    ]


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".zip", ".jsonl"])
def test_records_of_jarvis(tmp_path, ending):
    path = tmp_path / f"dft_3d{ending}"
    text = json.dumps(records()).encode()
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dft_3d.json", text)
    elif ending == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records()))
    else:
        path.write_bytes(gzip.compress(text) if ending == ".json.gz" else text)
    task, rows = opened(path, target="e")
    assert task.name == "dft_3d"
    assert_salts(rows)
    assert "ids from column 'jid', structures from column 'atoms'" in task.notes
    np.testing.assert_array_equal(opened(path, target="gap")[1].targets, [1, np.nan, 1])


def test_rows_are_numbered_as_people_count_them_in_their_file(tmp_path, frame):
    lines = frame.reset_index().to_json(orient="records", lines=True).splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]))
    frame.reset_index().to_json(tmp_path / "a.json", orient="records", indent=1)
    frame.to_json(tmp_path / "split.json", orient="split")
    frame.assign(structure=[json.dumps(structure) for structure in frame["structure"]]).to_parquet(tmp_path / "a.pq")
    frame["structure"] = [structure.to(fmt="cif") for structure in SALTS]
    frame.to_csv(tmp_path / "a.csv")
    ase.io.write(tmp_path / "a.xyz", [atoms_of(structure) for structure in SALTS], format="extxyz")
    text = (tmp_path / "a.xyz").read_text().splitlines()
    n_atoms, labels = str(len(SALTS[0])), text[1]
    (tmp_path / "a.xyz").write_text("\n".join(text).replace(f"\n{labels}", f"\ne=1 {labels}"))
    for name, expected in {
        "a.jsonl": ("line", [1, 3, 4]),
        "a.json": ("row", [1, 2, 3]),
        "split.json": ("row", [1, 2, 3]),
        "a.pq": ("row", [1, 2, 3]),
        "a.csv": (
            "line",
            [k + 1 for k, line in enumerate((tmp_path / "a.csv").read_text().split("\n")) if "mp-" in line],
        ),
        "a.xyz": ("line", [k + 1 for k, line in enumerate(text) if line == n_atoms]),
    }.items():
        numbers = opened(tmp_path / name)[1].row_numbers
        assert (name, numbers.unit, list(numbers.values)) == (name, *expected)
    (tmp_path / "ids.txt").write_text("mp-3\n")
    numbers = opened(tmp_path / "a.jsonl", ids_file=tmp_path / "ids.txt")[1].row_numbers
    assert (numbers.unit, numbers.values) == ("line", [4])


def test_a_record_that_does_not_say_what_its_coordinates_are_is_a_bad_row(tmp_path):
    """Angstrom read as fractions of the cell would be another crystal."""
    content = records()
    del content[0]["atoms"]["cartesian"]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert "no key 'cartesian'" in str(read(opened(path, target="e")[1])[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"elements": ["Na"] * 7 + ["Xx"]}, "site 7"),
        ({"elements": ["Na"]}, r"1 elements, coordinates of shape \(8, 3\)"),
        ({"elements": []}, "no atoms"),
        ({"coords": [["x"] * 3] * 8}, "not a structure in JARVIS's layout"),
        ({"lattice_mat": [[0] * 3] * 3, "cartesian": True}, "singular lattice"),
        ({"coords": None}, r"coordinates of shape \(\)"),
        ({"cartesian": "yes"}, "'cartesian' is 'yes'"),
    ],
)
def test_a_bad_record_is_one_bad_row(tmp_path, change, reason):
    content = records()
    content[0]["atoms"] |= change
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    bad, *others = read(opened(path, target="e")[1])
    assert all(isinstance(one, Crystal) for one in others)
    assert isinstance(bad, BadCrystalError)
    with pytest.raises(BadCrystalError, match=reason):
        raise bad


@pytest.fixture
def frame() -> pd.DataFrame:
    """The salts as dictionaries in a data frame with a named index."""
    structures = [json.loads(structure.to_json()) for structure in SALTS]
    for structure in structures:
        structure.pop("properties")
        for site in structure["sites"]:
            site.pop("properties")
    return pd.DataFrame({"structure": structures, "e": E}, index=pd.Index(IDS, name="material_id"))


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "records", "lines"])
def test_data_frames_with_structures_in_json(tmp_path, frame, orient):
    path = tmp_path / "frame.json"
    if orient in ("records", "lines"):
        frame.reset_index().to_json(path, orient="records", lines=orient == "lines")
    else:
        frame.to_json(path, orient=orient)
    task, rows = opened(path)
    assert task.target == "e"
    assert_salts(rows)
    assert "structures from column 'structure', the target from column 'e'" in task.notes


@pytest.mark.parametrize("cell", ["dictionary", "json", "cif"])
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_tables_with_structures_in_a_column(tmp_path, frame, cell, ending):
    if cell == "json":
        frame["structure"] = [structure.to_json() for structure in SALTS]
    elif cell == "cif":
        frame["structure"] = [structure.to(fmt="cif") for structure in SALTS]
    path = tmp_path / f"frame{ending}"
    if ending == ".csv" and cell == "dictionary":
        frame["structure"] = [json.dumps(structure) for structure in frame["structure"]]
    frame.to_parquet(path) if ending == ".parquet" else frame.to_csv(path)
    assert_salts(opened(path)[1])


def test_structures_as_text_in_matbenchs_layout(tmp_path):
    data = [[structure.to_json(), e] for structure, e in zip(SALTS, E, strict=True)]
    (tmp_path / "a.json").write_text(json.dumps({"index": IDS, "columns": ["structure", "e"], "data": data}))
    assert_salts(opened(tmp_path / "a.json")[1])


def test_what_pandas_printed_of_a_structure_is_refused(tmp_path):
    pd.DataFrame({"structure": [str(one) for one in SALTS], "e": E}).to_csv(tmp_path / "a.csv")
    with pytest.raises(TaskError, match="column 'structure' holds 'Full Formula"):
        opened(tmp_path / "a.csv")


def test_two_columns_of_structures_are_not_chosen_from(tmp_path, frame):
    two = frame.rename(columns={"structure": "initial_structure"}).assign(relaxed=frame["structure"])
    two.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TaskError, match="structures in 2 columns, initial_structure, relaxed: name one"):
        opened(tmp_path / "a.parquet")


def test_a_pickle_is_refused_unread(tmp_path):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    pd.to_pickle(Runs(), tmp_path / "a.pkl")
    with pytest.raises(TaskError, match=r"pickle by its name; reading one runs .* Save the table as Parquet or JSON"):
        opened(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".extxyz", ".xyz", ".xyz.gz"])
def test_frames_of_an_extended_xyz_file(tmp_path, ending):
    frames = [atoms_of(structure) for structure in SALTS]
    for atoms, row_id, e in zip(frames, IDS, E, strict=True):
        atoms.info.update(material_id=row_id, e=e, remark="a b")
    path = tmp_path / f"frames{ending}"
    ase.io.write(path, frames, format="extxyz")
    task, rows = opened(path)
    assert_salts(rows)
    assert "ids from 'material_id' of each frame" in task.notes
    assert task.name == "frames"


def test_frames_that_are_no_crystals_are_single_rows_and_energies_are_labels(tmp_path):
    frames = [atoms_of(SALTS[0]), Atoms("H2O", [[0, 0, 0], [0, 0, 1], [0, 1, 0]]), bulk("Si"), bulk("Al")]
    frames[3].pbc = (True, True, False)
    for k, atoms in enumerate(frames):
        atoms.info["energy"] = float(k)
    path = tmp_path / "a.xyz"
    ase.io.write(path, frames, format="extxyz")
    text = path.read_text()
    path.write_text(text.replace("Si       0.0", "CO       0.0"))
    rows = opened(path, target="energy")[1]
    assert rows.ids == ["0", "1", "2", "3"]
    good, molecule, unknown, slab = read(rows)
    assert isinstance(good, Crystal)
    assert "1.xyz: not readable as extended XYZ: no crystal: line 2 has no Lattice" in str(molecule)
    assert "'CO' is no element (write Co for it, if that is meant)" in str(unknown)
    assert "not periodic along c" in str(slab)
    for content, message in (
        (text[:-20], "ends within frame 3"),
        ("8 atoms\n", "line 1 is '8 atoms'; expected the number of atoms of frame 0"),
        ("", "has no frames"),
        ("1\n\nH 0 0 0\n", "no frame is a crystal"),
    ):
        path.write_text(content)
        if content == text[:-20]:
            path.write_text("\n".join(text.splitlines()[:-1]))
        with pytest.raises(TaskError, match=message):
            opened(path)


@pytest.mark.parametrize("ending", [".db", ".json"])
def test_an_ase_database(tmp_path, ending):
    path = tmp_path / f"mine{ending}"
    with ase.db.connect(path) as database:
        for row_id, e, structure in zip(IDS, E, SALTS, strict=True):
            database.write(atoms_of(structure), e=e, material_id=row_id, data={"bulk": 2 * e, "list": [1]})
    assert_salts(opened(path, target="e")[1])
    task, rows = opened(path, target="bulk")
    assert rows.targets.tolist() == [2 * e for e in E]
    assert "ids from 'material_id' of each row" in task.notes


def test_an_ase_database_without_ids_and_a_file_that_is_none(tmp_path):
    with ase.db.connect(tmp_path / "mine.db") as database:
        database.write(atoms_of(SALTS[0]), e=1.0)
    assert opened(tmp_path / "mine.db")[1].ids == ["1"]
    content = (tmp_path / "mine.db").read_bytes()
    (tmp_path / "cut.db").write_bytes(content[:2000])
    with pytest.raises(TaskError, match=r"cut\.db is not an ASE database that can be read"):
        opened(tmp_path / "cut.db")


@pytest.fixture
def runs(tmp_path) -> Path:
    """A run of VASP that ASE comes with, as it is, packed, cut, with too few steps, and under pressure."""
    folder = tmp_path / "runs"
    good, pressed = ((VASP / f"vasprun_{kind}.xml").read_text() for kind in ("dfpt", "pstress"))
    texts = {
        "good": good,
        "cut": good[:30000],
        "short": pressed.replace('name="NELM">    60', 'name="NELM">     5'),
        "pressed": pressed,
    }
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "vasprun.xml").write_text(text)
    (folder / "series" / "packed").mkdir(parents=True)
    (folder / "series" / "packed" / "vasprun.xml.gz").write_bytes(gzip.compress(good.encode()))
    return folder


@pytest.mark.skipif(not VASP.exists(), reason="this ASE comes without its test data")
def test_a_folder_of_vasp_runs(runs):
    task, rows = opened(runs, quantity="energy_per_atom")
    assert (task.target, task.quantity) == ("energy_per_atom", "energy_per_atom")
    by_id = dict(zip(rows.ids, zip(read(rows), rows.targets, strict=True), strict=True))
    expected = ase.io.read(VASP / "vasprun_dfpt.xml")
    for name in ("good", "series/packed"):
        crystal, energy = by_id[name]
        assert isinstance(crystal, Crystal)
        assert crystal.numbers.tolist() == expected.numbers.tolist()
        np.testing.assert_allclose(crystal.lattice, expected.cell.array, atol=1e-6)
        assert energy == pytest.approx(expected.get_potential_energy() / len(expected), abs=1e-6)
    for name, reason in (("cut", "the file is cut or damaged"), ("short", "not converged"), ("pressed", "PSTRESS")):
        crystal, energy = by_id[name]
        assert reason in str(crystal)
        assert np.isnan(energy)


@pytest.mark.skipif(not VASP.exists(), reason="this ASE comes without its test data")
def test_a_folder_with_a_run_twice_is_refused(runs):
    (runs / "good" / "vasprun.xml.gz").write_bytes(b"")
    with pytest.raises(TaskError, match=r"good has both vasprun\.xml and vasprun\.xml\.gz"):
        opened(runs)


def test_what_is_in_no_layout_says_what_is_read(tmp_path):
    SALTS[0].to(str(tmp_path / "one.cif"))
    SALTS[0].to(str(tmp_path / "one.json"))
    (tmp_path / "a.xlsx").write_bytes(b"\xd0\xcf\x11\xe0 not a table")
    (tmp_path / "b.json").write_text('{"a": {"0": 1}}')
    (tmp_path / "c.json").write_text("[1, 2]")
    (tmp_path / "d.json").write_text('[{"id": 1}, {"id"')
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("a.cif", "")
        archive.writestr("b.cif", "")
    for name, message in (
        ("one.cif", "is one structure; put it into a folder"),
        ("one.json", "is one structure"),
        ("a.xlsx", r"nothing that is read as a task\. Files that are read: .*\.parquet or \.csv"),
        ("b.json", "expected a column 'structure' or 'composition'"),
        ("c.json", "row 1 is '1', no dictionary; expected .*a list of records"),
        ("d.json", "not a complete JSON file"),
        ("e.zip", "holds 2 files; expected one"),
    ):
        with pytest.raises(TaskError, match=message):
            opened(tmp_path / name)
    (tmp_path / "none").mkdir()
    with pytest.raises(TaskError, match=r"exactly one CSV file.* or runs of VASP.*no files at all"):
        opened(tmp_path / "none")


@pytest.mark.parametrize("name", ["demo", "matbench_phonons"])
def test_a_known_name_beats_a_path_of_that_name_and_says_so(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    SALTS[0].to(str(folder / "a.cif"))
    (folder / "t.csv").write_text("id,e\na,1\n")
    assert absolute_spec(name) == name
    assert absolute_spec(f"./{name}") == str(folder)
    task, rows = opened(Path(absolute_spec(f"./{name}")))
    assert (task.name, rows.ids, task.official) == (f"own_{name}", ["a"], None)
    if name == "demo":
        task, rows = open_task(name, download_dir=tmp_path)
        assert len(rows) > 900
        assert f"what lies here under that name is ./{name}" in task.notes
        monkeypatch.chdir(folder)
        assert "lies here" not in open_task(name, download_dir=tmp_path)[0].notes
    else:
        assert official_task(name).notes == ""
