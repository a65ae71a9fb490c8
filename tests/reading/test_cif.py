"""The CIF reader: reads what a file says, and refuses what it leaves open."""

from collections import Counter

import gemmi
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from data.crystals.crystal import BadCrystalError
from data.crystals.formats.cif.reader import read_cif

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


def content(reading):
    counts = Counter(reading.crystal.numbers.tolist())
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
        "_space_group_name_H-M_full 'F 4/m -3 2/m'",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry_space_group_name_H-M '-F 4 2 3'",
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


def test_full_names():
    symmetry = ["_space_group_name_H-M_full 'P 21/b 21/n 21/m'"]
    perovskite = ["Gd Gd .984 .061 .25", "Fe Fe 0 .5 0", "O1 O .101 .467 .25", "O2 O .696 .301 .051"]
    formula = ["_chemical_formula_sum 'Gd Fe O3'", "_cell_formula_units_Z 4"]
    reading = read_cif(cif((5.35, 5.61, 7.67, 90, 90, 90), symmetry, perovskite, formula))
    assert content(reading) == "O12 Fe4 Gd4"


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
    reading = read_cif(cif(**diamond, symmetry=bare, extra=formula))
    assert content(reading) == "C8"
    assert "read as F d -3 m:2" in reading.notes[0]
    assert "can mean" in reason(cif(**diamond | {"cell": (5, 5, 5, 90, 90, 90)}, symmetry=bare))


def test_no_symmetry_at_all():
    four = ["Na Na 0 0 0", "Na Na 0 .5 .5", "Na Na .5 0 .5", "Na Na .5 .5 0"]
    four += ["Cl Cl .5 .5 .5", "Cl Cl .5 0 0", "Cl Cl 0 .5 0", "Cl Cl 0 0 .5"]
    whole = SALT | {"symmetry": [], "sites": four}
    for extra in ([], SALT_FORMULA, ["_chemical_formula_sum 'Na4 Cl4'", "_cell_formula_units_Z 4"]):
        reading = read_cif(cif(**whole, extra=extra))
        assert content(reading) == "Na4 Cl4"
        assert reading.notes == ("the file says nothing of symmetry and is read as P 1",)
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
    origins = ["_symmetry_space_group_name_H-M 'F d -3 m :1'", "_symmetry_space_group_name_Hall '-F 4vw 2vw 3'"]
    diamond = {"cell": (5, 5, 5, 90, 90, 90), "sites": ["C1 C 0.125 0.125 0.125"], "symmetry": origins}
    assert "can mean" in reason(cif(**diamond))
    formula = ["_chemical_formula_sum C", "_cell_formula_units_Z 8"]
    assert content(read_cif(cif(**diamond, extra=formula))) == "C8"


def test_operators_that_are_not_those_of_the_named_group():
    primitive = operators(gemmi.find_spacegroup_by_name("P m -3 m"))
    named = [*SALT["symmetry"], *primitive]
    assert "not of" in reason(cif(**SALT | {"symmetry": named}))
    assert "but the cell has" in reason(cif(**SALT | {"symmetry": named}, extra=SALT_FORMULA))
    reading = read_cif(
        cif(**SALT | {"symmetry": named}, extra=["_chemical_formula_sum NaCl", "_cell_formula_units_Z 1"])
    )
    assert content(reading) == "Na1 Cl1"
    assert "operators" in reading.notes[0]
    four = ["Na Na 0 0 0", "Na Na 0 .5 .5", "Na Na .5 0 .5", "Na Na .5 .5 0"]
    reading = read_cif(
        cif(**SALT | {"symmetry": [*SALT["symmetry"], "_symmetry_equiv_pos_as_xyz 'x,y,z'"], "sites": four})
    )
    assert content(reading) == "Na4"


def test_operators_must_be_a_group():
    symmetry = ["loop_", "_symmetry_equiv_pos_as_xyz", "'x,y,z'", "'-x,-y,z+1/2'", "'x,-y,z'"]
    assert "not a group" in reason(cif(symmetry=symmetry))
    assert "no symmetry operator" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y'"]))
    assert "no symmetry operator" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y,q'"]))
    assert "does not keep volumes" in reason(cif(symmetry=["_symmetry_equiv_pos_as_xyz 'x,y,y'"]))


def test_operators_of_a_supercell():
    thirds = ["'x,y,z'", "'x+1/3,y,z'", "'x+0.6667,y,z'", "'-x,-y,-z'", "'2/3-x,-y,-z'", "'-x+1/3,-y,-z'"]
    symmetry = ["loop_", "_symmetry_equiv_pos_as_xyz", *thirds]
    cell = (15, 5, 5, 81, 97, 104)
    assert content(read_cif(cif(cell, symmetry, ["Na1 Na 0 0 0", "Cl1 Cl .1 .5 .5"]))) == "Na3 Cl6"
    named = [*symmetry, "_symmetry_space_group_name_H-M 'P -1'"]
    assert content(read_cif(cif(cell, named, ["Na1 Na 0 0 0"]))) == "Na3"
    wrong = [*symmetry, "_symmetry_space_group_name_H-M 'P 1'"]
    assert "group number 2, not of" in reason(cif(cell, wrong, ["Na1 Na 0 0 0"]))


def test_a_magnetic_group_without_its_time_reversals():
    symmetry = ["loop_", "_space_group_symop_magn_operation.id", "_space_group_symop_magn_operation.xyz"]
    symmetry += ["1 x,y,z,+1", "2 -x,-y,-z,-1"]
    symmetry += ["loop_", "_space_group_symop_magn_centering.id", "_space_group_symop_magn_centering.xyz"]
    symmetry += ["1 x,y,z,+1", "2 x+1/2,y+1/2,z+1/2,-1"]
    reading = read_cif(cif(symmetry=symmetry, sites=["Mn Mn 0 0 0", "O O 0.3 0.2 0.1"]))
    assert content(reading) == "O4 Mn2"


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
    return {tuple(round(x % 1.0, 6) % 1.0 for x in op.apply_to_xyz(list(position))) for op in group.operations()}


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


def holds(reading, atoms):
    """Whether a crystal has these atoms, each once."""
    for symbol, expected in atoms.items():
        positions = reading.crystal.frac_coords[reading.crystal.numbers == gemmi.Element(symbol).atomic_number]
        d = positions[:, None] - expected[None]
        nearest = np.abs(d - np.rint(d)).max(-1) < 1e-4
        if len(positions) != len(expected) or not (nearest.sum(0) == 1).all():
            return False
    return len(reading.crystal.numbers) == sum(map(len, atoms.values()))


def test_every_setting_by_operators_hall_symbol_and_name():
    """A setting that a name or number leaves open is read as it is meant, or refused."""
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for index, (group, shape) in enumerate(settings()):
        atoms, sites = random_salt(group, shape, rng)
        n_si, n_o = len(atoms["Si"]), len(atoms["O"])
        formula = [f"_chemical_formula_sum 'Si{n_si} O{n_o}'", "_cell_formula_units_Z 1"]
        quote = "'" if '"' in group.hall else '"'
        ways = {
            "operators": operators(group),
            "Hall symbol": [f"_space_group_name_Hall {quote}{group.hall}{quote}"],
            "full name": [f"_symmetry_space_group_name_H-M '{group.xhm()}'"],
            "name": [f"_symmetry_space_group_name_H-M '{group.hm}'"],
        }
        if index % 4 == 0:  # these have many candidates, and take time
            ways["short name"] = [f"_symmetry_space_group_name_H-M '{group.short_name()}'", *formula]
            ways["number"] = [f"_space_group_IT_number {group.number}", *formula]
        for way, symmetry in ways.items():
            try:
                reading = read_cif(cif(shape, symmetry, sites))
            except BadCrystalError:
                outcomes[way, "refused"] += 1
                continue
            assert holds(reading, atoms), (way, group.xhm(), group.hall)
            outcomes[way, "read"] += 1
    for way in ("operators", "Hall symbol", "full name"):
        assert outcomes[way, "read"] == len(list(gemmi.spacegroup_table()))
    assert outcomes["name", "read"] > 500
    assert outcomes["short name", "read"] > 100
    assert outcomes["number", "read"] > 40


@pytest.mark.parametrize(
    ("site", "element", "note"),
    [
        ("Fe1 Fe3+ 0 0 0", "Fe", ""),
        ("Fe1 Fe+3 0 0 0", "Fe", ""),
        ("Fe1 Fe0+ 0 0 0", "Fe", ""),
        ("Fe1 FE 0 0 0", "Fe", "'FE' is read as Fe"),
        ("D1 D 0 0 0", "H", "deuterium is read as hydrogen"),
        ("H1 2H 0 0 0", "H", "isotope 2H is read as H"),
        ("T1 T 0 0 0", "H", "tritium is read as hydrogen"),
        ("C1 13C 0 0 0", "C", "isotope 13C is read as C"),
        ("T1 Si 0 0 0", "Si", ""),  # a tetrahedral site
        ("B1 Ti4+ 0 0 0", "Ti", ""),  # a B site
        ("O1A . 0 0 0", "O", ""),
        ("Na(1) . 0 0 0", "Na", ""),
        ("Cl_2 . 0 0 0", "Cl", ""),
        ("Fe2+ ? 0 0 0", "Fe", ""),
        ("FE1 ? 0 0 0", "Fe", "'FE' is read as Fe"),
        ("AL1 ? 0 0 0", "Al", "'AL' is read as Al"),
        ("fe1 ? 0 0 0", "Fe", "'fe' is read as Fe"),
    ],
)
def test_what_an_atom_is(site, element, note):
    reading = read_cif(cif(sites=[site]))
    assert content(reading) == f"{element}1"
    assert reading.notes == ((note,) if note else ())


@pytest.mark.parametrize(
    "label",
    "X1 M1 T1 Q1 A1 R2 OH OW1 OW Wat1 Va Vac Va1 Uiso Cal CA1 CO1 NO1 SI HO1 OA NH4 Cn1 Me Ln1 1 *".split(),
)
def test_labels_that_are_no_element(label):
    assert label in reason(cif(sites=[f"{label} 0 0 0"], columns="label"))


@pytest.mark.parametrize("symbol", "X M Q Va Vac Wat OH NH4 H2O Du CO Cal Ca1+Sr Xx 0+".split())
def test_type_symbols_that_are_no_element(symbol):
    assert symbol in reason(cif(sites=[f"site {symbol} 0 0 0"]))


def test_type_symbols_without_labels_may_be_numbered():
    assert content(read_cif(cif(sites=["Na1 0 0 0", "Cl2 .5 .5 .5"], columns="type_symbol"))) == "Na1 Cl1"
    assert "a site without a label: its type symbol 'OH1'" in reason(cif(sites=["OH1 0 0 0"], columns="type_symbol"))


def test_elements_that_the_network_does_not_know():
    assert reason(cif(sites=["Am1 Am 0 0 0"])).startswith("unknown element Am (Z = 95) at site Am1: CHGNet knows Z = 1")


def test_the_formula_decides_what_a_label_means():
    cobalt = ["CO1 0 0 0", "O1 .5 .5 .5"]
    reading = read_cif(cif(sites=cobalt, columns="label", extra=["_chemical_formula_sum 'Co O'"]))
    assert content(reading) == "O1 Co1"
    carbonyl = ["CO1 0 0 0", "OC1 0 0 .24"]
    assert content(read_cif(cif(sites=carbonyl, columns="label", extra=["_chemical_formula_sum 'C O'"]))) == "C1 O1"
    assert "not clearly" in reason(cif(sites=cobalt, columns="label", extra=["_chemical_formula_sum 'Co C O'"]))
    other = ["Fe1 Mn 0 0 0"]
    assert "label says Fe" in reason(cif(sites=other))
    assert content(read_cif(cif(sites=other, extra=["_chemical_formula_sum Mn"]))) == "Mn1"
    assert "formula is 'Fe'" in reason(cif(sites=["M1 Mn 0 0 0"], extra=["_chemical_formula_sum Fe"]))


@pytest.mark.parametrize("formula", ["Mg H2 O2", "'Mg (O H)2'", "Mg(OH)2", "'Mg1 O2 D2'", "MG O2 H2", "Mg0.5OH"])
def test_hydrogens_in_the_formula(formula):
    extra = [f"_chemical_formula_sum '{formula.strip(chr(39))}'"]
    assert content(read_cif(cif(**BRUCITE, extra=extra))) == "H2 O2 Mg1"
    without = BRUCITE | {"sites": BRUCITE["sites"][:2]}
    assert "but the cell has" in reason(cif(**without, extra=extra))
    label = BRUCITE | {"sites": ["Mg 0 0 0", "OH 0.3333 0.6667 0.2203"], "columns": "label"}
    assert "but the cell has" in reason(cif(**label, extra=extra))


def test_hydrogens_that_nothing_but_a_name_tells_of():
    water = ["Ca1 Ca 0 0 0", "OW1 O .5 .5 .5"]
    assert "water" in reason(cif(sites=water))
    assert content(read_cif(cif(sites=water, extra=["_chemical_formula_sum CaO"]))) == "O1 Ca1"
    assert content(read_cif(cif(sites=[*water, "H1 H .5 .5 .3"]))) == "H1 O1 Ca1"
    oxide = ["Ca1 Ca 0 0 0", "O1 O .5 .5 .5"]
    for name, missing in (("calcium oxide hydrate", True), ("Calcium hydroxide", True), ("dehydrated lime", False)):
        file = cif(sites=oxide, extra=[f"_chemical_name_systematic '{name}'"])
        if missing:
            assert f"its name '{name}' tells of hydrogens" in reason(file)
        else:
            assert content(read_cif(file)) == "O1 Ca1"
    named = ["_chemical_name_systematic 'calcium hydroxide'", "_chemical_formula_sum CaO"]
    assert content(read_cif(cif(sites=oxide, extra=named))) == "O1 Ca1"
    attached = cif(sites=["O1 O 0 0 0 1"], columns="label type_symbol | attached_hydrogens")
    assert "hydrogens attached to site O1" in reason(attached)


@pytest.mark.parametrize(
    ("formula", "tag"),
    [
        ("2(Na 1+), 2(Cl 1-)", "moiety"),
        ("Na Cl", "structural"),
        ("NaCl", "iupac"),
    ],
)
def test_other_formulas_where_there_is_no_sum(formula, tag):
    extra = [f"_chemical_formula_{tag} '{formula}'"]
    assert content(read_cif(cif(**SALT, extra=extra))) == "Na4 Cl4"
    assert "formula" in reason(cif(**SALT | {"sites": ["Na1 Na 0 0 0"]}, extra=extra))


def test_hydrates_in_a_formula():
    sites = ["Cu Cu 0 0 0", "O1 O .5 0 0", "O2 O 0 .5 0", "H1 H .5 .19 0", "H2 H .5 -.19 0"]
    for formula in ("CuO.H2O", "CuO*1H2O", "'Cu O, H2 O'", "CuO·H2O"):
        extra = [f"_chemical_formula_structural '{formula.strip(chr(39))}'"]
        assert content(read_cif(cif(sites=sites, extra=extra))) == "H2 O2 Cu1"
        assert "formula" in reason(cif(sites=sites[:2], extra=extra))


def test_density_volume_and_z():
    assert content(read_cif(cif(**SALT, extra=["_exptl_crystal_density_diffrn 2.16"]))) == "Na4 Cl4"
    assert "density" in reason(cif(**SALT, extra=["_exptl_crystal_density_diffrn 1.9"]))
    assert "_cell_volume" in reason(cif(**SALT, extra=["_cell_volume 44.8"]))
    assert read_cif(cif(**SALT, extra=["_cell_volume 180.5"])).notes
    assert not read_cif(cif(**SALT, extra=["_cell_volume 179.4(2)"])).notes
    assert "Z = 2" in reason(cif(**SALT, extra=["_chemical_formula_sum NaCl", "_cell_formula_units_Z 2"]))
    density = ["_chemical_formula_sum NaCl", "_cell_formula_units_Z 2", "_exptl_crystal_density_diffrn 2.16"]
    assert "Z = 2 does not fit" in read_cif(cif(**SALT, extra=density)).notes[0]


def test_a_cell_of_another_unit_or_scale_than_its_density_is_no_crystal():
    """Formula and Z fit a cell of any size."""
    bohr = SALT | {"cell": (*[length / 0.529177 for length in SALT["cell"][:3]], 90, 90, 90)}
    assert "may be in Bohr" in reason(cif(**bohr, extra=[*SALT_FORMULA, "_exptl_crystal_density_diffrn 2.16"]))
    for density in (5.0, 0.8, 216, 2.16e6):
        why = reason(cif(**SALT, extra=[*SALT_FORMULA, f"_exptl_crystal_density_diffrn {density}"]))
        assert f"its density is {density:g} g/cm3" in why


@pytest.mark.parametrize(
    ("density", "note"),
    [
        (2.16, ""),
        (1.9, "its density is 1.9 g/cm3, but"),
        (1.08, "its density is 1.08 g/cm3, but"),  # of half the Z
        (4.32, "its density is 4.32 g/cm3, but"),
        (2163, "its density 2163 is taken as kg/m3"),
        (0.00216, "its density 0.00216 is taken as g/mm3"),
    ],
)
def test_a_density_of_another_z_or_unit_is_noted(density, note):
    reading = read_cif(cif(**SALT, extra=[*SALT_FORMULA, f"_exptl_crystal_density_diffrn {density}"]))
    assert content(reading) == "Na4 Cl4"
    assert [text[: len(note)] for text in reading.notes] == ([note] if note else [])


def test_occupancies():
    def site(*values):
        return cif(
            sites=[f"Fe{k} Fe {k / 4} 0 0 {v}" for k, v in enumerate(values)], columns="label type_symbol|occupancy"
        )

    assert content(read_cif(site("1", "1.0", "?", "."))) == "Fe4"
    assert read_cif(site("1.000(3)")).notes == ()
    assert read_cif(site("0.9999")).notes == ("occupancy 0.9999 is read as 1",)
    assert reason(site("0.5")) == "disordered structure: site Fe0 has the occupancy 0.5"
    assert reason(site("1.005")) == "site Fe0 has an occupancy above 1: 1.005"
    assert "'full', not a number" in reason(site("full"))
    assert "occupancy 0" in reason(site("1", "0"))
    groups = cif(sites=["C1 C 0 0 0 1", "C2 C .5 0 0 2"], columns="label type_symbol|disorder_group")
    assert "disorder groups 1, 2" in reason(groups)
    dummy = cif(sites=["C1 C 0 0 0 dum"], columns="label type_symbol|calc_flag")
    assert "dummy" in reason(dummy)


@pytest.mark.parametrize("name", ["occupancy", "type_symbol", "symmetry_multiplicity"])
def test_what_is_said_of_sites_outside_their_loop(name):
    """Nobody can tell which of the sites it is of; left aside, half an atom would be read as one."""
    file = cif(extra=[f"_atom_site_{name} 0.5"], sites=["Na1 0 0 0", "Cl1 .5 .5 .5"], columns="label")
    assert f"_atom_site_{name} has 1 values; expected one for each of the 2 sites" in reason(file)


def test_two_lists_of_operators():
    first = ["loop_", "_symmetry_equiv_pos_as_xyz", "x,y,z", "-x,-y,-z"]
    second = ["loop_", "_space_group_symop_operation_xyz", "-x,-y,-z", "x,y,z"]
    site = ["Na1 Na .1 .2 .3"]
    assert content(read_cif(cif(symmetry=[*first, *second], sites=site))) == "Na2"
    assert "its symmetry operators differ" in reason(cif(symmetry=[*first, *second[:2], "x,y,z"], sites=site))


@pytest.mark.parametrize("formula", ["Ar2048", "Ar1000 Kr1048"])
def test_one_atom_missing_of_two_thousand(formula):
    steps = [(i, j, k) for i in range(16) for j in range(16) for k in range(16) if (i + j + k) % 2 == 0]
    n_argon = 2048 if formula == "Ar2048" else 1000
    sites = [f"A{n} {'Ar' if n < n_argon else 'Kr'} {i / 16} {j / 16} {k / 16}" for n, (i, j, k) in enumerate(steps)]
    stated = [f"_chemical_formula_sum '{formula}'", "_cell_formula_units_Z 1"]
    whole = {"cell": (42.4, 42.4, 42.4, 90, 90, 90), "extra": stated}
    assert content(read_cif(cif(**whole, sites=sites))) == formula
    assert f"its formula is {formula!r}" in reason(cif(**whole, sites=sites[1:]))


def test_atoms_on_one_another():
    assert "two full atoms on one site: sites Fe1" in reason(cif(sites=["Fe1 Fe 0 0 0", "Ni1 Ni 0 0 1.0"]))
    assert "two full atoms on one site" in reason(cif(sites=["Fe1 Fe 0 0 0", "Fe2 Fe 0 0 0"]))
    assert "0.30 Angstrom apart" in reason(cif(sites=["Fe1 Fe 0 0 0", "Fe2 Fe 0 0 0.06"]))
    inversion = ["loop_", "_symmetry_equiv_pos_as_xyz", "x,y,z", "-x,-y,-z"]
    assert "neither one atom nor two" in reason(cif(symmetry=inversion, sites=["Fe1 Fe 0 0 0.03"]))
    assert "neither" not in str(read_cif(cif(symmetry=inversion, sites=["Fe1 Fe 0 0 0.1"])).notes)


def test_sites_that_symmetry_gives_too():
    inversion = ["loop_", "_symmetry_equiv_pos_as_xyz", "x,y,z", "-x,-y,-z"]
    reading = read_cif(cif(symmetry=inversion, sites=["Fe1 Fe .2 .1 .3", "Fe2 Fe .8 .9 .7"]))
    assert content(reading) == "Fe2"
    assert "read once: Fe2" in reading.notes[0]
    assert "two full atoms" in reason(cif(symmetry=inversion, sites=["Fe1 Fe .2 .1 .3", "Ni2 Ni .8 .9 .7"]))
    part = SALT | {"sites": [*SALT["sites"], "Cl2 Cl 0.5 0 0"]}
    assert "lack some" in reason(cif(**part))
    assert content(read_cif(cif(**part, extra=SALT_FORMULA))) == "Na4 Cl4"


def test_rounded_positions_are_moved_onto_their_special_position():
    reading = read_cif(cif(**BRUCITE))
    oxygen = reading.crystal.frac_coords[reading.crystal.numbers == 8]
    np.testing.assert_allclose(np.sort(oxygen[:, :2], axis=0), [[1 / 3, 1 / 3], [2 / 3, 2 / 3]], atol=1e-15)
    assert reading.notes == ()
    rough = BRUCITE | {"sites": ["Mg Mg 0 0 0", "O O .33 .67 .22"]}
    assert "moved onto special positions, O by" in read_cif(cif(**rough)).notes[0]


def test_cell_that_is_none():
    for cell, word in (
        ((5, 5, -5, 90, 90, 90), "above 0"),
        ((5, 5, 0, 90, 90, 90), "above 0"),
        ((5, 5, "?", 90, 90, 90), "_cell_length_c is missing"),
        ((5, 5, "five", 90, 90, 90), "_cell_length_c is 'five', not a number"),
        ((5, 5, 5, 90, 90, 200), "between 0 and 180"),
        ((5, 5, 5, 30, 30, 90), "no cell has the angles"),
    ):
        assert word in reason(cif(cell))


def test_positions_that_are_none():
    assert "site Na1 has no position along y: '?'" in reason(cif(sites=["Na1 Na 0 ? 0"]))
    assert "'1/3'" in reason(cif(sites=["Na1 Na 0 0 1/3"]))
    assert "'0,5'" in reason(cif(sites=["Na1 Na 0 0 0,5"]))
    cartesian = b"data_x\n_cell_length_a 5\nloop_\n_atom_site.Cartn_x\n_atom_site.label\n1.0 C1\n"
    cartesian += (
        b"_cell_length_b 5\n_cell_length_c 5\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
    )
    assert "Cartesian" in reason(cartesian)


CROWD = [f"C C {i / 28:.4f} {j / 28:.4f} {k / 28:.4f}" for i in range(28) for j in range(28) for k in range(28)]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"what is this", "not a valid CIF file: line 1"),
        (b"\x1f\x8b\x08\x00\x00", "not a valid CIF file"),
        (b"data_x\n_cell_length_a 5\n", "no atoms"),
        (cif()[:-8], "not a valid CIF file"),
        (cif(extra=["_publ_section_title", ";never ended"]), "unterminated text field"),
        (cif(extra=["_cell_length_a 6"]), "_cell_length_a is there twice"),
        (cif() + cif().replace(b"data_x", b"data_y"), "2 structures (x, y)"),
        (cif(extra=["_cell_modulation_dimension 1"]), "modulated"),
        (cif(extra=["_space_group_ssg_name 'X'"]), "modulated"),
        (cif((99, 99, 99, 90, 90, 90), sites=CROWD), "it lists 21952 sites; at most 20000"),
    ],
)
def test_broken_files(file, words):
    message = reason(file)
    assert words in message
    assert len(message) < 300
    assert "\n" not in message


def test_encodings():
    author = ["_publ_author_name 'Müller'"]
    for file, notes in (
        (cif(extra=author), 0),
        (b"\xef\xbb\xbf" + cif(extra=author), 0),
        (cif(extra=author) + b"\x1a", 0),
        (cif(extra=author) + bytes(300), 0),
        (cif(extra=author).replace(b"\n", b"\r\n"), 0),
        (cif(extra=author).replace(b"\n", b"\r"), 0),
        (cif(extra=author).decode().encode("latin-1"), 1),
        (cif(extra=author).decode().encode("utf-16"), 1),
    ):
        reading = read_cif(file)
        assert content(reading) == "Na1"
        assert len(reading.notes) == notes


def test_blocks_without_a_structure_are_passed_over():
    assert content(read_cif(b"data_global\n_journal_year 1999\n" + cif())) == "Na1"
    assert "gave up" not in content(read_cif(cif() + b"data_refln\n_refln_index_h 1\n"))


def test_lattice_stands_as_pymatgen_puts_it():
    cell = (5.1, 6.2, 7.3, 81, 97, 104)
    np.testing.assert_array_equal(read_cif(cif(cell)).crystal.lattice, Lattice.from_parameters(*cell).matrix)


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")  # of spglib, which pymatgen calls
@pytest.mark.parametrize("symprec", [None, 1e-3])
def test_what_pymatgen_writes(symprec):
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti4+", "O2-"], [[0, 0, 0], [0.3053, 0.3053, 0]]
    )
    oblique = Structure(Lattice.from_parameters(4, 5, 6, 80, 95, 105), ["K", "F"], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.7]])
    for structure in (rutile, oblique, oblique.get_reduced_structure(), rutile * (2, 1, 1)):
        reading = read_cif(str(CifWriter(structure, symprec=symprec)).encode())
        again = Structure(reading.crystal.lattice, reading.crystal.numbers.tolist(), reading.crystal.frac_coords)
        plain = structure.copy().remove_oxidation_states()
        assert reading.notes == ()
        assert len(again) == len(plain) or symprec
        assert again.matches(plain, scale=False, primitive_cell=symprec is not None, attempt_supercell=False)
