"""POSCAR files: what VASP takes is read as VASP takes it, and what leaves the crystal open is refused."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar

from data.crystals.crystal import BadCrystalError, crystal_from_structure
from data.crystals.formats.poscar import read_poscar

HEAD = "salt\n{scale}\n4 0 0\n0.5 4 0\n0 0 5\n"
TAIL = "Na Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
PLAIN = HEAD.format(scale="1.0") + TAIL
LATTICE = np.array([[4, 0, 0], [0.5, 4, 0], [0, 0, 5.0]])


def read(text: str):
    return read_poscar(text.encode())


@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        ("2", 2),
        ("1.0D+00", 1),
        ("0.5E1 ! Angstrom", 5),
        ("-640", 2),
        ("-640.0   # volume of the cell", 2),
        ("1 2 3", [1, 2, 3]),
        ("1.5 of the primitive cell", 1.5),
    ],
)
@pytest.mark.parametrize("cartesian", [False, True])
def test_scale_factors_are_of_the_cell_and_of_cartesian_positions(scale, factors, cartesian):
    tail = "Na Cl\n1 1\nCartesian\n0 0 0\n2.25 2.0 2.5\n" if cartesian else TAIL
    crystal = read(HEAD.format(scale=scale) + tail).crystal
    np.testing.assert_allclose(crystal.lattice, LATTICE * factors, rtol=1e-12)
    np.testing.assert_allclose(crystal.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]], atol=1e-12)
    assert crystal.numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("text", "numbers", "note"),
    [
        (PLAIN.replace("Na Cl", "Na_pv Cl"), [11, 17], "names of potentials are read as their element: Na_pv as Na"),
        (PLAIN.replace("Na Cl", "Na_sv/1a2b3c Cl/44"), [11, 17], "Na_sv as Na"),
        (PLAIN.replace("Na Cl", "Na Cl ! comment"), [11, 17], None),
        (PLAIN.replace("1 1\n", "1 1 # counts\n"), [11, 17], None),
        (PLAIN.replace("Na Cl\n1 1", "Na Cl Na\n1 0 1"), [11, 11], "a species without atoms is left out: Cl"),
        (PLAIN.replace("Na Cl\n1 1", "Na Cl Na\n1 1 1") + "0.5 0.5 0\n", [11, 17, 11], None),
        (PLAIN.replace("Na Cl\n1 1", "Na\nCl\n1\n1"), [11, 17], None),
        (PLAIN.replace("Na Cl", "Na1 Na2"), [11, 11], "Na2 is read as Na"),
        (PLAIN.replace("Na Cl", "Na+ Cl-"), [11, 17], "Na+ is read as Na"),
        (PLAIN.replace("Na Cl", "D Cl"), [1, 17], "deuterium and tritium are read as hydrogen"),
        (PLAIN.replace("0 0 0\n", "0 0 0 Na1\n"), [11, 17], None),
        (PLAIN.replace("0 0 0\n", "0 0 0 T T T\n"), [11, 17], None),
        (
            PLAIN.replace(
                "Direct\n0 0 0\n0.5 0.5 0.5", "Selective dynamics\nDirect\n0 0 0 T F T\n0.5 0.5 0.5 F F F Cl"
            ),
            [11, 17],
            None,
        ),
        (PLAIN.replace("\n", "\r\n"), [11, 17], None),
        (PLAIN.replace(" ", "\t"), [11, 17], None),
        ("\ufeff" + PLAIN, [11, 17], None),
        (PLAIN + "\n0.1 0 0\n0 0 0.1\n\n", [11, 17], None),
        (PLAIN + "\n  NaN NaN NaN\n  NaN NaN NaN\n", [11, 17], None),
        (PLAIN + "Lattice velocities and vectors\n1\n0 0 0\n0 0 0\n0 0 0\nCartesian\n0 0 0\n0 0 0\n", [11, 17], None),
        (
            PLAIN.replace("Na Cl\n", "").replace("0 0 0\n0.5 0.5 0.5", "0 0 0 Na\n0.5 0.5 0.5 Cl"),
            [11, 17],
            "elements are named behind the positions only",
        ),
    ],
)
def test_what_programs_write_is_read(text, numbers, note):
    reading = read(text)
    assert reading.crystal.numbers.tolist() == numbers
    np.testing.assert_array_equal(reading.crystal.lattice, LATTICE)
    np.testing.assert_array_equal(reading.crystal.frac_coords[:2], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert (note or "") in "; ".join(reading.notes)
    assert bool(reading.notes) == bool(note)


def test_a_comment_in_latin_1_is_no_obstacle():
    reading = read_poscar(PLAIN.replace("salt", "Ångström\x85 salt").encode("latin-1"))
    assert reading.crystal.numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PLAIN.replace("Na Cl\n", ""), "the elements are not named"),
        (PLAIN.replace("Na Cl\n", "").replace("salt", "Na Cl"), "the elements are not named"),
        (PLAIN.replace("Na Cl\n", "").replace("0 0 0\n", "0 0 0 Na\n"), "the elements are not named"),
        (
            PLAIN.replace("Na Cl\n1 1", "2").replace("0 0 0\n0.5 0.5 0.5", "0 0 0 Na\n0.5 0.5 0.5 Cl"),
            "the elements are not named",
        ),
        (PLAIN.replace("Na Cl", "Na X"), "species 'X': 'X' is no element but a dummy"),
        (PLAIN.replace("Na Cl", "Na Va"), "'Va' is no element but a vacancy"),
        (PLAIN.replace("Na Cl", "H.5 Cl"), "species 'H.5'"),
        (PLAIN.replace("Na Cl", "Na CL"), "'CL' is no element .write Cl"),
        (PLAIN.replace("Na Cl", "Na Cm"), "unknown element Cm"),
        (PLAIN.replace("0 0 0\n", "0 0 0 Cl\n"), "line 9: the position is labelled Cl, and the counts make it Na"),
        (PLAIN.replace("1 1\n", "1 2\n"), "2 positions for 3 atoms"),
        (PLAIN.replace("1 1\n", "1 2\n") + "\n0 0 0\n", "2 positions for 3 atoms"),
        (PLAIN.replace("1 1\n", "2\n"), "1 counts of atoms .* for 2 species"),
        (PLAIN + "0.25 0.25 0.25\n", "line 11: another position"),
        (PLAIN + PLAIN, "line 11: 'salt' behind the positions"),
        (PLAIN.replace("1 1\n", "0 0\n").replace("0 0 0\n0.5 0.5 0.5\n", "\n"), "no atoms|lines"),
        (PLAIN.replace("1 1\n", "1 -1\n"), "counts"),
        (PLAIN.replace("1 1\n", "1 ²\n"), "counts"),
        (PLAIN.replace("1 1\n", "1 1" + 5000 * "0" + "\n"), "counts"),
        (HEAD.format(scale="1e999") + TAIL, "not a scale factor"),
        (HEAD.format(scale="0") + TAIL, "line 2: '0' is not a scale factor"),
        (HEAD.format(scale="1 2") + TAIL, "line 2: '1 2' is not a scale factor"),
        (HEAD.format(scale="1 -2 3") + TAIL, "must all be positive"),
        (HEAD.format(scale="5,64") + TAIL, "line 2: '5,64' is not a scale factor"),
        (PLAIN.replace("0.5 4 0", "0.5 4"), "line 4: '0.5 4' is not a lattice vector"),
        (PLAIN.replace("0.5 4 0", "0.5 **** 0"), "line 4: .* is not a lattice vector"),
        (PLAIN.replace("0.5 0.5 0.5", "0.5 0.5 0.5 0.25"), "line 10: .* more than the three numbers"),
        (PLAIN.replace("1 1\n", "1.0 1.0\n"), "line 7: '1.0 1.0' are not counts of atoms, whole numbers"),
        (PLAIN.replace("0.5 0.5 0.5", "0.5-0.5 0.5"), "1 positions for 2 atoms: line 10, '0.5-0.5 0.5', is none"),
        (PLAIN.replace("0.5 0.5 0.5", "0.5 nan 0.5"), "line 10: '0.5 nan 0.5' is not a position"),
        (PLAIN.replace("Direct\n", ""), "line 8: '0' where 'Direct' or 'Cartesian' is expected"),
        (PLAIN.replace("Direct\n", "Selective dynamics\nDirect\n"), "selective dynamics, and a position with ''"),
        (PLAIN.replace("0.5 4 0", "8 0 0").replace("Direct", "Cartesian"), "singular lattice"),
        (HEAD.format(scale="-5").replace("0.5 4 0", "8 0 0") + TAIL, "singular lattice"),
        ("salt\n1\n", "3 lines|2 lines"),
        ("", "0 lines"),
    ],
)
def test_what_leaves_the_crystal_open_is_refused(text, reason):
    with pytest.raises(BadCrystalError, match=reason):
        read(text)


def test_a_binary_file_is_no_text():
    with pytest.raises(BadCrystalError, match="no text"):
        read_poscar(bytes(range(256)))


def test_pymatgen_and_ase_write_what_comes_back(real_structures):
    import io

    from ase import Atoms
    from ase.io import write

    for structure in real_structures[:10]:
        crystal = crystal_from_structure(structure)
        atoms = Atoms(crystal.numbers, scaled_positions=crystal.frac_coords, cell=crystal.lattice, pbc=True)
        for direct in (True, False):
            out = io.StringIO()
            write(out, atoms, format="vasp", direct=direct)
            for text in (Poscar(structure).get_str(direct=direct, significant_figures=16), out.getvalue()):
                found = read(text).crystal
                assert found.numbers.tolist() == crystal.numbers.tolist()
                np.testing.assert_allclose(found.lattice, crystal.lattice, atol=1e-12)
                np.testing.assert_allclose(found.frac_coords, crystal.frac_coords, atol=1e-10)


def test_oxidation_states_behind_positions_are_no_obstacle():
    charged = Structure(Lattice.cubic(4), ["Na+", "Cl-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert read(Poscar(charged).get_str()).crystal.numbers.tolist() == [11, 17]
