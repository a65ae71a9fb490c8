"""Structure files of every kind: one reader, which gives the crystal that was meant or says why it cannot."""

import bz2
import gzip
import io
import json
import lzma

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from made_crystals import rock_salt
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from data.crystals.crystal import BadCrystalError, Crystal
from data.crystals.formats.structure_files import read_structure_file, structure_file_format
from tune.run_sweep import app

NACL = rock_salt("Na", "Cl", 5.69)
ATOMS = Atoms(
    "NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.45, 0.4]], cell=[[4, 0, 0], [0.5, 4, 0], [0, 0, 5]], pbc=True
)
XYZ = """2
Lattice="4.0 0.0 0.0 0.5 4.0 0.0 0.0 0.0 5.0" Properties=species:S:1:pos:R:3 pbc="T T T"
Na 0.0 0.0 0.0
Cl 2.225 1.8 2.0
"""
RES = """TITL salt
CELL 0.71073 5.64 5.64 5.64 90 90 90
ZERR 4 0.001 0.001 0.001 0 0 0
LATT 4
SYMM X,-Y,-Z
SYMM -X,Y,-Z
SYMM -X,-Y,Z
SFAC NA CL
UNIT 4 4
REM the rest of the file is a refinement
WGHT 0.1
FVAR 0.7
NA1 1 10.0 10.0 10.0 10.125 0.01
CL1 2 10.5 10.5 10.5 10.125 0.01 0.02 0.01 =
    0.0 0.0 0.0
HKLF 4
END
"""
AIRSS = """TITL salt-1 -0.01 80.0 -5.4 0 0 2 (P1) n - 1
CELL 1.54180 4.0 4.0 5.0 90 90 90
LATT -1
SFAC Na Cl
Na 1 0 0 0 1.0
Cl 2 0.5 0.5 0.4 1.0
END
"""
VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <atominfo>
  <array name="atoms"><set><rc><c>r </c><c>   1</c></rc><rc><c>O </c><c>   2</c></rc></set></array>
  <array name="atomtypes"><set>
   <rc><c>   1</c><c>r </c><c>91.2</c><c>12.0</c><c>  PAW_PBE Zr_sv 04Jan2005                </c></rc>
   <rc><c>   1</c><c>O </c><c>16.0</c><c> 6.0</c><c>  PAW_PBE O 08Apr2002                    </c></rc>
  </set></array>
 </atominfo>
 <structure name="initialpos"><crystal><varray name="basis"><v>1 0 0</v><v>0 1 0</v><v>0 0 1</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.1 0.1 0.1</v></varray></structure>
 <calculation>
  <structure><crystal><varray name="basis"><v>4 0 0</v><v>0.5 4 0</v><v>0 0 5</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.5 0.45 0.4</v></varray></structure>
  <energy><i name="e_0_energy">-1.0</i></energy>
 </calculation>
</modeling>
"""


def written(structure: Structure, fmt: str) -> bytes:
    return structure.to(fmt=fmt).encode()


def read(name: str, text: str | bytes) -> Crystal:
    return read_structure_file(name, text if isinstance(text, bytes) else text.encode()).crystal


def reason_of(name: str, text: str | bytes) -> str:
    with pytest.raises(BadCrystalError) as caught:
        read(name, text)
    assert str(caught.value).startswith(name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.cif", "cif"),
        ("A.CIF.GZ", "cif"),
        ("a.mcif", "cif"),
        ("mp-1/POSCAR", "poscar"),
        ("POSCAR.gz", "poscar"),
        ("CONTCAR_relaxed", "poscar"),
        ("POSCAR.mp-12", "poscar"),
        ("a.vasp.bz2", "poscar"),
        ("POSCAR_a.cif", "cif"),
        ("a.res", "res"),
        ("a.extxyz", "xyz"),
        ("a.json.xz", "json"),
        ("vasprun.xml.gz", "vasprun"),
        ("vasprun.xml-001", "vasprun"),
        ("relax_vasprun.xml", "vasprun"),
        ("poscar_list.csv", None),
        ("POSCAR~", None),
        ("POSCAR.png", None),
        ("._a.cif", None),
        ("README.md", None),
        ("id_prop.csv", None),
    ],
)
def test_a_name_tells_the_format(name, format):
    assert structure_file_format(name) == format


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.cif", written(NACL, "cif")),
        ("POSCAR", written(NACL, "poscar")),
        ("a.json", written(NACL, "json")),
        ("a.res", RES.encode()),
    ],
)
def test_packed_files_are_read_whatever_they_are_called(name, content, pack):
    for called in (name, f"{name}.gz"):
        crystal = read(called, pack(content))
        assert sorted(crystal.numbers.tolist()) == [11] * 4 + [17] * 4


def test_pymatgen_json_and_poscar_come_back_as_they_were():
    for name, fmt in (("a.json", "json"), ("a.vasp", "poscar")):
        crystal = read(name, written(NACL, fmt))
        np.testing.assert_allclose(crystal.lattice, NACL.lattice.matrix, atol=1e-12)
        np.testing.assert_allclose(crystal.frac_coords, NACL.frac_coords, atol=1e-12)
        assert crystal.numbers.tolist() == list(NACL.atomic_numbers)


@pytest.mark.parametrize(
    "text",
    [
        XYZ,
        XYZ.replace("\n", "\r\n"),
        XYZ.replace(' pbc="T T T"', ""),
        XYZ.replace("species:S:1:pos:R:3", "pos:R:3:species:S:1")
        .replace("Na 0.0 0.0 0.0", "0 0 0 Na")
        .replace("Cl 2.225 1.8 2.0", "2.225 1.8 2.0 Cl"),
        XYZ.replace("species:S:1:pos", "id:I:1:species:S:1:pos").replace("Na ", "1 Na ").replace("Cl ", "2 Cl "),
        XYZ.replace("species:S", "Z:I").replace("Na ", "11 ").replace("Cl ", "17 "),
        XYZ.replace("pos:R:3", "pos:R:3:Z:I:1").replace("0.0\nCl", "0.0 11\nCl").replace("1.8 2.0", "1.8 2.0 17"),
        XYZ.replace(" Properties=species:S:1:pos:R:3", ""),
        XYZ.replace('pbc="T T T"', 'energy=-1.5 name="a b" pbc="T T T"'),
    ],
)
def test_extended_xyz(text):
    crystal = read("a.xyz", text)
    assert crystal.numbers.tolist() == [11, 17]
    np.testing.assert_allclose(crystal.lattice, ATOMS.cell.array)
    np.testing.assert_allclose(crystal.frac_coords, ATOMS.get_scaled_positions(), atol=1e-12)


def test_what_ase_writes_as_extended_xyz_comes_back():
    out = io.StringIO()
    ase.io.write(out, ATOMS, format="extxyz")
    np.testing.assert_allclose(read("a.extxyz", out.getvalue()).frac_coords, ATOMS.get_scaled_positions(), atol=1e-8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2\nwater\nH 0 0 0\nO 0 0 1\n", "no Lattice"),
        (XYZ.replace("T T T", "T T F"), "not periodic along c"),
        (XYZ.replace("T T T", "F F F"), "not periodic along a and b and c"),
        (XYZ + XYZ, "follows the 2 atoms: several frames"),
        (XYZ.replace("2\nL", "3\nL"), "2 lines of atoms for 3"),
        (XYZ.replace("2\nL", "1\nL"), "follows the 1 atoms"),
        (XYZ.replace("Cl ", "X "), "site 1: 'X' is no element but a dummy"),
        (XYZ.replace("Cl ", "Cl1 "), "site 1: 'Cl1' is no element"),
        (XYZ.replace("1.8", "nan"), "no position of three numbers"),
        (XYZ.replace("1.8 2.0", "1.8"), "no position of three numbers"),
        (XYZ.replace("5.0", "five"), "line 2"),
        (XYZ.replace("0.0 0.0 5.0", "0.0 0.0"), "line 2"),
        (XYZ.replace("0.0 0.0 5.0", "0.0 0.0 0.0"), "singular lattice"),
        (XYZ.replace("species:S:1:pos:R:3", "forces:R:3"), "names no species or no pos"),
        (XYZ.replace("pos:R:3", "pos:R:2"), "expected pos:R:3"),
        (XYZ.replace("species:S:1", "forces:R:x:species:S:1"), "is not name:type:count of each property"),
        (
            XYZ.replace("pos:R:3", "pos:R:3:Z:I:1").replace("0.0\nCl", "0.0 11\nCl").replace("1.8 2.0", "1.8 2.0 16"),
            "line 4: 'Cl 2.225 1.8 2.0 16' names two elements",
        ),
        ("", "number of atoms"),
    ],
)
def test_extended_xyz_that_is_no_crystal(text, reason):
    assert reason in reason_of("a.xyz", text)


def test_shelx_files_are_expanded_by_their_symmetry():
    crystal = read("a.res", RES)
    structure = Structure(crystal.lattice, crystal.numbers, crystal.frac_coords)
    assert StructureMatcher(primitive_cell=False).fit(structure, NACL)
    assert crystal.numbers.tolist() == [11] * 4 + [17] * 4


def test_airss_files_are_read_as_they_stand():
    crystal = read("a.res", AIRSS)
    np.testing.assert_array_equal(crystal.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.4]])
    np.testing.assert_allclose(np.linalg.norm(crystal.lattice, axis=1), [4, 4, 5])
    assert crystal.numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RES.replace("UNIT 4 4", "UNIT 4 8"), "formula"),
        (RES.replace("LATT 4", "LATT 1"), "formula"),
        (RES.replace("LATT 4\n", ""), "no LATT"),
        (RES.replace("LATT 4", "LATT 9"), "expected one LATT, a number from 1 to 7"),
        (RES.replace("LATT 4", "LATT 1\nLATT 4"), "expected one LATT"),
        (RES.replace("SYMM X,-Y,-Z", "SYMM X,Q,-Z"), "is no symmetry operator"),
        (RES.replace("SYMM X,-Y,-Z", "SYMM X,6,-Z"), "is no symmetry operator"),
        (RES.replace("CL1 2", "CL1 3"), "SFAC has 2 elements, and no number 3"),
        (RES.replace("10.5 10.5 10.5 10.125", "10.5 10.5 10.5 10.0625"), "disordered structure"),
        (RES.replace("10.5 10.5 10.5", "10.5 21.0 10.5"), "follows a free variable"),
        (RES.replace("10.5 10.5 10.5 10.125", "10.5 10.5 10.5 21.0"), "FVAR does not have"),
        (RES.replace("FVAR 0.7", "PART 1"), "disordered structure: 'PART 1'"),
        (RES.replace("FVAR 0.7", "FVAR 0.7 half"), "'FVAR 0.7 half': expected numbers"),
        (RES.replace("FVAR 0.7", "MOVE 1 1 1 -1"), "atoms are moved"),
        (AIRSS.replace("Na 1", "FRAG 17 4 4 5 90 90 90\nC1 1 0.3 0.3 0.3\nFEND\nNa 1"), "of a fragment"),
        (AIRSS.replace("Cl 2", " Na 1 0.2 0.2 0.2 1.0\nCl 2"), "begins with a space, as a comment of SHELX's does"),
        (AIRSS.replace("0.4 1.0", "0.4 1.O"), "the occupancy '1.O' is not a number"),
        (AIRSS + AIRSS.replace("4.0 4.0", "6.0 6.0"), "several structures"),
        (RES.replace("FVAR 0.7", "WHAT is this"), "neither an atom nor an instruction"),
        (AIRSS.replace("SFAC Na Cl", "SFAC Na Xx"), "element"),
        (AIRSS.replace("0.4 1.0", "0.4 0.5"), "disordered structure"),
        (AIRSS.replace("4.0 4.0 5.0 90 90 90", "4.0 4.0 5.0"), "expected one CELL, of a wavelength, three lengths"),
        (AIRSS.replace("LATT", "CELL 1.5 6 6 6 90 90 90\nLATT"), "expected one CELL"),
        (AIRSS.replace("CELL", "REM"), "no CELL"),
    ],
)
def test_shelx_files_that_leave_the_crystal_open(text, reason):
    assert reason in reason_of("a.res", text)


def test_the_last_step_of_a_vasp_run_by_the_elements_of_its_potentials():
    crystal = read("vasprun.xml", VASPRUN)
    assert crystal.numbers.tolist() == [40, 8]
    np.testing.assert_array_equal(crystal.lattice, ATOMS.cell.array)
    np.testing.assert_array_equal(crystal.frac_coords, [[0, 0, 0], [0.5, 0.45, 0.4]])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (VASPRUN[:-30], "cut or damaged"),
        (VASPRUN.replace("<v>0.5 0.45 0.4</v>", "<v>0.5 ***** 0.4</v>"), "not three numbers"),
        (VASPRUN.replace("<v>0.5 0.45 0.4</v>", ""), "2 elements, coordinates of shape (1, 3)"),
        (VASPRUN.replace("calculation", "nothing"), "no structure of an ionic step"),
        (VASPRUN.replace("PAW_PBE O ", "PAW_PBE N "), "an atom is 'O', and its potential 'PAW_PBE N"),
        ("<a/>", "no structure of an ionic step"),
        (VASPRUN.replace("ISO-8859-1", "ISO-1"), "cut or damaged"),
    ],
)
def test_runs_without_a_last_step(text, reason):
    assert reason in reason_of("vasprun.xml", text)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.cif", b"", "not readable as CIF"),
        ("a.cif.gz", gzip.compress(b"data_a", mtime=0)[:-9], "packed, and damaged or cut"),
        ("a.cif.bz2", b"BZh91AY&SY nothing", "packed, and damaged or cut"),
        ("a.cif.xz", lzma.compress(b"data_a" * 99)[:-20], "packed, and damaged or cut"),
        ("a.json", b"[1, 2]", "not a pymatgen Structure"),
        ("a.json", json.dumps({"@class": "Molecule", "sites": []}).encode(), "no key 'lattice'|empty"),
        ("a.txt", b"salt", "no structure file by its name"),
    ],
)
def test_what_is_no_structure_file_says_so(name, content, reason):
    assert any(one in reason_of(name, content) for one in reason.split("|"))


@pytest.mark.parametrize(
    ("name", "pack"), [("POSCAR.gz", gzip.compress), ("POSCAR.bz2", bz2.compress), ("POSCAR.xz", lzma.compress)]
)
def test_a_small_file_that_unpacks_to_much_is_refused(name, pack):
    assert "more than 64 MiB" in reason_of(name, pack(bytes(65 << 20)))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore:No Pauling electronegativity:UserWarning")  # of pymatgen, for argon
@pytest.mark.parametrize(("unit", "is_far"), [(1.0, False), (1.08, False), (1 / 0.529177, True), (10.0, True)])
def test_a_crystal_whose_atoms_do_not_touch_is_noted(unit, is_far):
    """As one in Bohr is, where Angstrom is meant; noble gases never touch."""
    for structure in (
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64 * unit), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567 * unit), ["C"], [[0, 0, 0]]),
        Structure(Lattice.cubic(6.14 * unit), ["Cs"] * 2, [[0, 0, 0], [2.5, 1.5, -0.5]]),
    ):
        for name, fmt in (("a.cif", "cif"), ("POSCAR", "poscar")):
            notes = read_structure_file(name, structure.to(fmt=fmt).encode()).notes
            assert [note for note in notes if "no atoms touch" in note] == list(notes)
            assert bool(notes) == is_far
    argon = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.26 * unit), ["Ar"], [[0, 0, 0]])
    assert read_structure_file("POSCAR", argon.to(fmt="poscar").encode()).notes == ()


@pytest.mark.whole
def test_a_sweep_lists_what_its_reader_noted_and_why_it_refused(tmp_path):
    """A folder of files of several kinds, in a sweep of a moment: notes.csv and quarantine.csv, from the cache."""
    folder = tmp_path / "salts"
    folder.mkdir()
    elements = ["Li", "Na", "K", "Rb", "Cs", "Mg", "Ca", "Sr", "Ba", "Zn"]
    lines = ["file,y"]
    for k, metal in enumerate(elements):
        for other in ("O", "S", "F"):
            structure = Structure(Lattice.cubic(2.4 + 0.1 * k), [metal, other], [[0, 0, 0], [0.5, 0.5, 0.5]])
            structure.to(str(folder / f"{metal}{other}.vasp"), fmt="poscar")
            lines.append(f"{metal}{other}.vasp,{k / 10 + len(other)}")
    heavy = (folder / "LiF.vasp").read_text().replace("Li", "D").replace("1.0\n", "0.5\n", 1)
    (folder / "LiF.vasp").write_text(heavy)
    (folder / "NaF.vasp").write_text((folder / "NaF.vasp").read_text().replace("Na F\n1", "Na X\n1"))
    (folder / "salt.res").write_text(AIRSS)
    (folder / "salt.vasp.gz").write_bytes(gzip.compress((folder / "LiO.vasp").read_bytes()))
    (folder / "t.csv").write_text("\n".join([*lines, "salt.res,1.5", "salt.vasp.gz,0.5", "lost.vasp,0.5"]) + "\n")
    done = CliRunner().invoke(
        app,
        ["--space=dummy", f"--task={folder}", f"--storage={tmp_path}/results", "--name=salts", "--folds=0"],
        env={"MATSWEEP_CACHE": str(tmp_path / "cache")},
    )
    assert done.exit_code == 0, done.output
    results = tmp_path / "results" / "salts"
    notes = pd.read_csv(results / "notes.csv")
    assert notes.values.tolist() == [[4, "LiF.vasp", "deuterium and tritium are read as hydrogen"]]
    quarantine = pd.read_csv(results / "quarantine.csv")
    table = (folder / "t.csv").read_text().splitlines()
    assert [table[line - 1].split(",")[0] for line in quarantine["line"]] == quarantine["id"].tolist()
    assert quarantine["id"].tolist() == ["NaF.vasp", "lost.vasp"]
    assert "'X' is no element but a dummy" in quarantine["reason"][0]
    assert "'lost.vasp' is in the folder; line 34 of t.csv names it" in quarantine["reason"][1]
    record = json.loads((results / "results.json").read_text())
    assert record["data"]["n_noted"] == 1
    assert "1 row was read with notes (notes.csv): 1 x deuterium and tritium are read as hydrogen." in record["notes"]
    assert "notes.csv" in (results / "RESULTS.md").read_text()
