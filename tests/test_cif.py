"""The CIF reader: reads what a file says, and refuses what it leaves open."""

from collections import Counter

import gemmi
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from data.cif import read_cif
from data.crystal import BadCrystalError

SALT = {
    "cell": (5.64, 5.64, 5.64, 90, 90, 90),
    "symmetry": ["_symmetry_space_group_name_H-M 'F m -3 m'"],
    "sites": ["Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"],
}
SALT_FORMULA = ["_chemical_formula_sum 'Na Cl'", "_cell_formula_units_Z 4"]
BRUCITE = {
    "cell": (3.142, 3.142, 4.766, 90, 90, 120),
    "symmetry": ["_symmetry_space_group_name_H-M 'P -3 m 1'"],
    "sites": ["Mg Mg 0 0 0", "O O 0.3333 0.6667 0.2203", "H H 0.3333 0.6667 0.413"],
}
P1 = ["_symmetry_space_group_name_H-M 'P 1'", "_symmetry_equiv_pos_as_xyz 'x,y,z'"]


def cif(cell=(5, 5, 5, 90, 90, 90), symmetry=P1, sites=("Na1 Na 0 0 0",), extra=(), columns="label type_symbol"):
    """A CIF file; a site is its cells in the order of `columns` and x, y, z, then those of further columns."""
    first, _, rest = columns.partition("|")
    lines = ["data_x"]
    lines += [f"_cell_length_{x} {v}" for x, v in zip("abc", cell[:3], strict=True)]
    lines += [f"_cell_angle_{x} {v}" for x, v in zip(("alpha", "beta", "gamma"), cell[3:], strict=True)]
    lines += [*symmetry, *extra, "loop_"]
    lines += [f"_atom_site_{name}" for name in [*first.split(), "fract_x", "fract_y", "fract_z", *rest.split()]]
    return "\n".join([*lines, *sites, ""]).encode()


def content(read):
    counts = Counter(read.crystal.numbers.tolist())
    return " ".join(f"{gemmi.Element(z).name}{n}" for z, n in sorted(counts.items()))


def reason(file):
    with pytest.raises(BadCrystalError) as error:
        read_cif(file)
    return str(error.value)


def operators(group):
    return ["loop_", "_space_group_symop_operation_xyz", *[f"'{op.triplet()}'" for op in group.operations()]]


@pytest.mark.parametrize(
    "symmetry",
    [
        "_symmetry_space_group_name_H-M 'F m 3 m'",
        "_symmetry_space_group_name_H-M Fm-3m",
        "_space_group_name_H-M_alt 'f m -3 m'",
        "_space_group.name_H-M_alt 'F_m_-3_m'",
        "_symmetry_space_group_name_H-M F m -3 m",
        "_space_group_name_Hall '-F 4 2 3'",
        "_space_group_IT_number 225",
        "_symmetry_Int_Tables_number 225\n_symmetry_space_group_name_H-M ?",
        "_symmetry_Int_Tables_number 225\n_symmetry_space_group_name_H-M 'F m 3 barm'",
    ],
)
def test_every_way_to_name_a_group(symmetry):
    assert content(read_cif(cif(**SALT | {"symmetry": [symmetry]}))) == "Na4 Cl4"


@pytest.mark.parametrize("name", ["R -3 c", "R -3 c H", "R -3 c :H", "R-3cH", "R -3 c:h", "H -3 c"])
def test_hexagonal_axes_of_a_rhombohedral_group(name):
    symmetry = [f"_symmetry_space_group_name_H-M '{name}'"]
    corundum = cif((4.759, 4.759, 12.991, 90, 90, 120), symmetry, ["Al1 Al 0 0 0.3523", "O1 O 0.3064 0 0.25"])
    assert content(read_cif(corundum)) == "O18 Al12"


@pytest.mark.parametrize("name", ["R -3 c", "R -3 c R", "R -3 c :R", "R-3cR"])
def test_rhombohedral_axes_of_a_rhombohedral_group(name):
    symmetry = [f"_symmetry_space_group_name_H-M '{name}'"]
    cell = (5.128, 5.128, 5.128, 55.28, 55.28, 55.28)
    corundum = cif(cell, symmetry, ["Al1 Al 0.3523 0.3523 0.3523", "O1 O 0.5564 0.9436 0.25"])
    assert content(read_cif(corundum)) == "O6 Al4"


def test_axes_that_the_cell_cannot_have():
    symmetry = ["_symmetry_space_group_name_H-M 'R -3 c :R'"]
    corundum = cif((4.759, 4.759, 12.991, 90, 90, 120), symmetry, ["Al1 Al 0 0 0.3523"])
    assert "cannot have R -3 c:R" in reason(corundum)
    assert "cannot have F m -3 m" in reason(cif(**SALT | {"cell": (5.64, 5.64, 5.9, 90, 90, 90)}))


def test_an_origin_that_the_name_leaves_open():
    diamond = {"cell": (3.567, 3.567, 3.567, 90, 90, 90), "sites": ["C1 C 0.125 0.125 0.125"]}
    bare = ["_symmetry_space_group_name_H-M 'F d -3 m'"]
    assert content(read_cif(cif(**diamond, symmetry=["_symmetry_space_group_name_H-M 'F d -3 m Z'"]))) == "C8"
    assert content(read_cif(cif(**diamond, symmetry=["_symmetry_space_group_name_H-M 'F d -3 m :1'"]))) == "C16"
    formula = ["_chemical_formula_sum C", "_cell_formula_units_Z 8"]
    read = read_cif(cif(**diamond, symmetry=bare, extra=formula))
    assert content(read) == "C8"
    assert "read as F d -3 m:2" in read.notes[0]
    assert "can mean" in reason(cif(**diamond | {"cell": (5, 5, 5, 90, 90, 90)}, symmetry=bare))


def test_no_symmetry_at_all():
    four = ["Na Na 0 0 0", "Na Na 0 .5 .5", "Na Na .5 0 .5", "Na Na .5 .5 0"]
    four += ["Cl Cl .5 .5 .5", "Cl Cl .5 0 0", "Cl Cl 0 .5 0", "Cl Cl 0 0 .5"]
    whole = SALT | {"symmetry": [], "sites": four}
    for extra in ([], SALT_FORMULA, ["_chemical_formula_sum 'Na4 Cl4'", "_cell_formula_units_Z 4"]):
        read = read_cif(cif(**whole, extra=extra))
        assert content(read) == "Na4 Cl4"
        assert read.notes == ("the file says nothing of symmetry and is read as P 1",)
    asymmetric = SALT | {"symmetry": ["_symmetry_space_group_name_H-M ?"]}
    assert "no symmetry is given" in reason(cif(**asymmetric, extra=SALT_FORMULA))
    assert "density" in reason(cif(**asymmetric, extra=["_exptl_crystal_density_diffrn 2.16"]))
    assert "Z is 4" in reason(cif(**asymmetric, extra=["_cell_formula_units_Z 4"]))
    sites = [f"{site} 4" for site in SALT["sites"]]
    multiplicities = asymmetric | {"sites": sites, "columns": "label type_symbol | symmetry_multiplicity"}
    assert "multiplicity 4" in reason(cif(**multiplicities))
    assert content(read_cif(cif(**asymmetric))) == "Na1 Cl1"  # nothing to hold it against, and a note


def test_names_that_are_unknown_or_contradict_each_other():
    unknown = ["_symmetry_space_group_name_H-M 'F x -3 m'"]
    assert "'F x -3 m' is unknown" in reason(cif(**SALT | {"symmetry": unknown}))
    two = ["_symmetry_space_group_name_H-M 'F m -3 m'", "_symmetry_Int_Tables_number 221"]
    assert "contradict each other" in reason(cif(**SALT | {"symmetry": two}))
    hall = ["_symmetry_space_group_name_H-M 'F m -3 m'", "_symmetry_space_group_name_Hall '-P 4 2 3'"]
    assert "contradicts" in reason(cif(**SALT | {"symmetry": hall}))


def test_operators_that_are_not_those_of_the_named_group():
    primitive = operators(gemmi.find_spacegroup_by_name("P m -3 m"))
    named = [*SALT["symmetry"], *primitive]
    assert "not of" in reason(cif(**SALT | {"symmetry": named}))
    assert "but the cell has" in reason(cif(**SALT | {"symmetry": named}, extra=SALT_FORMULA))
    read = read_cif(cif(**SALT | {"symmetry": named}, extra=["_chemical_formula_sum NaCl", "_cell_formula_units_Z 1"]))
    assert content(read) == "Na1 Cl1"
    assert "operators" in read.notes[0]
    four = ["Na Na 0 0 0", "Na Na 0 .5 .5", "Na Na .5 0 .5", "Na Na .5 .5 0"]
    read = read_cif(cif(**SALT | {"symmetry": [*SALT["symmetry"], "_symmetry_equiv_pos_as_xyz 'x,y,z'"], "sites": four}))
    assert content(read) == "Na4"


def test_operators_must_be_a_group():
    symmetry = ["loop_", "_symmetry_equiv_pos_as_xyz", "'x,y,z'", "'-x,-y,z+1/2'", "'x,-y,z'"]
    assert "not a group" in reason(cif(symmetry=symmetry))
    assert "no symmetry operator" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y'"]))
    assert "no symmetry operator" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y,q'"]))
    assert "does not keep volumes" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y,y'"]))


def test_a_magnetic_group_without_its_time_reversals():
    symmetry = ["loop_", "_space_group_symop_magn_operation.id", "_space_group_symop_magn_operation.xyz"]
    symmetry += ["1 x,y,z,+1", "2 -x,-y,-z,-1"]
    symmetry += ["loop_", "_space_group_symop_magn_centering.id", "_space_group_symop_magn_centering.xyz"]
    symmetry += ["1 x,y,z,+1", "2 x+1/2,y+1/2,z+1/2,-1"]
    read = read_cif(cif(symmetry=symmetry, sites=["Mn Mn 0 0 0", "O O 0.3 0.2 0.1"]))
    assert content(read) == "O4 Mn2"


def settings():
    """Every setting in gemmi's table with a cell that fits it and no smaller symmetry."""
    for group in gemmi.spacegroup_table():
        if group.number < 3:
            shape = (5.1, 6.2, 7.3, 81, 97, 104)
        elif group.number < 16:
            axis = group.qualifier.strip("-")[0]
            shape = (5.1, 6.2, 7.3, *{"a": (105, 90, 90), "b": (90, 105, 90), "c": (90, 90, 105)}[axis])
        elif group.number < 75:
            shape = (5.1, 6.2, 7.3, 90, 90, 90)
        elif group.number < 143:
            shape = (6.1, 6.1, 7.3, 90, 90, 90)
        elif group.number < 195:
            shape = (6.1, 6.1, 6.1, 77, 77, 77) if group.ext == "R" else (6.1, 6.1, 9.3, 90, 90, 120)
        else:
            shape = (6.1, 6.1, 6.1, 90, 90, 90)
        scale = max(1.2, len(group.operations()) ** (1 / 3))
        yield group, tuple(round(length * scale, 3) for length in shape[:3]) + shape[3:]


def images(group, position):
    """The images of a position of whole 24ths, or of one in general, by gemmi's own operators."""
    return {
        tuple(round(x % 1.0, 6) % 1.0 for x in op.apply_to_xyz(list(position))) for op in group.operations()
    }


def shortest(positions, lattice):
    """The shortest distance of two atoms, in a cell that is not very oblique."""
    d = positions[:, None] - positions[None]
    d = (d - np.rint(d)) @ lattice
    return np.sqrt((d * d).sum(-1))[np.triu_indices(len(positions), 1)].min(initial=9.0)


def random_salt(group, shape, rng):
    """Si on the origin and O anywhere, no two atoms nearer than 1.2 Angstrom."""
    lattice = Lattice.from_parameters(*shape).matrix
    silicon = images(group, (0, 0, 0))
    while True:
        position = rng.random(3).round(4)
        atoms = {"Si": np.array(sorted(silicon)), "O": np.array(sorted(images(group, position)))}
        if len(atoms["O"]) == len(group.operations()) and shortest(np.concatenate(list(atoms.values())), lattice) > 1.2:
            return atoms, ["Si1 Si 0 0 0", "O1 O {} {} {}".format(*position)]


def holds(read, atoms):
    """Whether a crystal has these atoms, each once."""
    for symbol, expected in atoms.items():
        found = read.crystal.frac_coords[read.crystal.numbers == gemmi.Element(symbol).atomic_number]
        d = found[:, None] - expected[None]
        nearest = np.abs(d - np.rint(d)).max(-1) < 1e-4
        if len(found) != len(expected) or not (nearest.sum(0) == 1).all():
            return False
    return len(read.crystal.numbers) == sum(map(len, atoms.values()))


def test_every_setting_by_operators_hall_symbol_and_name():
    """A setting that a name or number leaves open is read as it is meant, or refused."""
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for group, shape in settings():
        atoms, sites = random_salt(group, shape, rng)
        n_si, n_o = len(atoms["Si"]), len(atoms["O"])
        formula = [f"_chemical_formula_sum 'Si{n_si} O{n_o}'", "_cell_formula_units_Z 1"]
        quote = "'" if '"' in group.hall else '"'
        ways = {
            "operators": operators(group),
            "Hall symbol": [f"_space_group_name_Hall {quote}{group.hall}{quote}"],
            "full name": [f"_symmetry_space_group_name_H-M '{group.xhm()}'"],
            "name": [f"_symmetry_space_group_name_H-M '{group.hm}'"],
            "short name": [f"_symmetry_space_group_name_H-M '{group.short_name()}'", *formula],
            "number": [f"_space_group_IT_number {group.number}", *formula],
        }
        for way, symmetry in ways.items():
            try:
                read = read_cif(cif(shape, symmetry, sites))
            except BadCrystalError as error:
                assert way not in ("operators", "Hall symbol", "full name"), (group.xhm(), str(error))
                outcomes[way, "refused"] += 1
                continue
            assert holds(read, atoms), (way, group.xhm(), group.hall)
            outcomes[way, "read"] += 1
    assert outcomes["operators", "read"] == len(list(gemmi.spacegroup_table()))
    assert outcomes["name", "read"] > 500
    assert outcomes["number", "read"] > 200
