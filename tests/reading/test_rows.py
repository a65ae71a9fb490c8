"""Reading: every structure arrives as pymatgen would read it, and a bad row costs nobody but itself."""

import gzip
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_crystals import rock_salt
from pymatgen.core import DummySpecies, Element, Lattice, Structure

from data.crystals.crystal import BadCrystalError, Crystal, crystal_from_structure
from data.crystals.layouts.folders import read_folder
from data.crystals.layouts.matbench_files import read_matbench_file
from data.crystals.layouts.readers import read_demo
from data.crystals.quality import check_crystal
from data.crystals.rows import RawChunk, pack_crystal
from data.json_spans import child_spans, object_members
from data.row_numbers import RowNumbers, counted
from data.targets import bad_target_reasons
from data.task import TaskError

SUBSET = Path(__file__).parents[3] / "shared" / "data" / "mp_e_form_subset.json.gz"
NACL = rock_salt("Na", "Cl", 5.69)


def write_matbench(path: Path, structures: list, targets: list, **changes) -> Path:
    table = {
        "index": list(range(len(structures))),
        "columns": ["structure", "y"],
        "data": [[s, y] for s, y in zip(structures, targets, strict=True)],
    }
    text = json.dumps(table | changes).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def crystals_of(source) -> list[Crystal | BadCrystalError]:
    rows = source.rows([str(one) for one in source.index], next(iter(source.columns)))
    return list(rows.chunk(0, len(rows)).crystals())


def parse(structure: object) -> Crystal | BadCrystalError:
    payload = json.dumps(structure).encode()
    return next(RawChunk(0, ["a"], ["a"], [payload], "matbench_json").crystals())


def assert_same(found: Crystal, expected: Crystal) -> None:
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_array_equal(found.frac_coords, expected.frac_coords)
    np.testing.assert_array_equal(found.lattice, expected.lattice)


@pytest.mark.skipif(not SUBSET.exists(), reason="the shared subset of matbench_mp_e_form is not here")
def test_official_layout_reads_as_json_and_pymatgen_do():
    table = json.loads(gzip.decompress(SUBSET.read_bytes()))
    source = read_matbench_file(SUBSET)
    assert source.index == table["index"]
    assert source.columns["e_form"] == [row[1] for row in table["data"]]
    crystals = crystals_of(source)
    assert len(crystals) == 995
    for crystal, row in list(zip(crystals, table["data"], strict=True))[::10]:
        assert_same(crystal, crystal_from_structure(Structure.from_dict(row[0])))
    for crystal in crystals:
        check_crystal(crystal)


def test_a_chunk_survives_pickling_and_knows_its_place(tmp_path):
    source = read_matbench_file(write_matbench(tmp_path / "a.json", [NACL.as_dict()] * 5, [0, 1, 2, 3, 4]))
    rows = source.rows([str(one) for one in source.index], "y")
    chunk = pickle.loads(pickle.dumps(rows.chunk(3, 9)))
    assert (chunk.start, chunk.ids) == (3, ["3", "4"])
    assert len(list(chunk.crystals())) == 2
    assert rows.select([4, 0], "x").targets.tolist() == [4.0, 0.0]


def test_members_in_any_order_and_brackets_quotes_escapes_within_strings(tmp_path):
    structure = NACL.as_dict() | {"comment": 'a "quote", \\ a ] and } and \\" \u2028 é'}
    text = json.dumps({"data": [[1.5, structure, None], [True, structure, "NaN"]], "extra": {"x": [1]}})
    text = f'\n {text[:-1]}, "columns": ["y", "structure", "remark"],\n\t"index": ["a", "b"] }}\n'
    (tmp_path / "a.json").write_text(text)
    source = read_matbench_file(tmp_path / "a.json")
    assert source.columns == {"y": [1.5, True], "remark": [None, "NaN"]}
    for crystal in crystals_of(source):
        assert_same(crystal, crystal_from_structure(NACL))


@pytest.mark.parametrize("text", ['{"a": [1, [2, "]"]], "b": {}, "c": "x\\"", "d": -1.5e3}', "{}", " {}", '{"a":1}'])
def test_spans_cut_out_exactly_the_values(text):
    start = text.index("{")
    members = object_members(text.encode(), start)
    assert {key: json.loads(text[a:b]) for key, (a, b) in members.items()} == json.loads(text)


@pytest.mark.parametrize("text", ['{"a": [1, 2', '{"a": "x\\"}', "[1, 2", '["\\', "[", "3"])
def test_spans_refuse_cut_text(text):
    with pytest.raises(ValueError, match=r"ends in the middle|no JSON"):
        child_spans(text.encode(), 0)


def test_targets_booleans_missing_and_words(tmp_path):
    path = write_matbench(tmp_path / "a.json", [NACL.as_dict()] * 5, [True, None, "high", float("nan"), 2])
    source = read_matbench_file(path)
    np.testing.assert_array_equal(source.rows(list("abcde"), "y").targets, [1.0, np.nan, np.nan, np.nan, 2.0])


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_matbench(tmp_path / "rows.json.gz", [NACL.as_dict()] * 3, [1, 2, 3])
    rows = read_matbench_file(path).rows(["a", "b", "c"], "y")
    assert len(rows.chunk(0, 3).payloads) == 3
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(TaskError, match=r"rows.json.gz was changed while its structures were read"):
        rows.chunk(0, 3)


def test_cut_and_corrupt_files_say_what_to_do(tmp_path):
    whole = write_matbench(tmp_path / "whole.json.gz", [NACL.as_dict()] * 3, [1, 2, 3]).read_bytes()
    text = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (
        whole[:-20],
        whole[:30],
        bytes(flipped),
        text[:-40],
        text[: len(text) // 2],
        b"",
        b"hello",
    ):
        path = tmp_path / "bad.json.gz"
        path.write_bytes(content)
        with pytest.raises(TaskError, match=r"bad\.json\.gz is not a complete .*download it again"):
            read_matbench_file(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": ["remark", "y"], "data": [["salt", 1.0]]},
            r"no column of formulas among \['remark', 'y'\]; expected .* a column 'structure'",
        ),
        ({"index": [0, 1]}, "'index' has 2 entries, 'data' has 1 rows"),
        ({"data": [[NACL.as_dict()]]}, "row 1 is not a list of 2 cells"),
        ({"columns": ["structure", "structure"]}, "a column name twice"),
        ({"data": []}, "'data' must have rows"),
        ({"data": 7}, "no JSON list"),
    ],
)
def test_other_layouts_are_refused(tmp_path, changes, message):
    with pytest.raises(TaskError, match=message):
        read_matbench_file(write_matbench(tmp_path / "a.json", [NACL.as_dict()], [1.0], **changes))
    (tmp_path / "b.json").write_text('{"rows": []}')
    with pytest.raises(TaskError, match="no 'columns' and no 'data' and no 'index'"):
        read_matbench_file(tmp_path / "b.json")


def test_oxidation_states_isotopes_and_every_element_read_as_pymatgen_does():
    charged = NACL.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    heavy = Structure(Lattice.cubic(4), ["D", "T"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    every = Structure(
        Lattice.cubic(40), [Element.from_Z(z) for z in range(1, 95)], np.linspace(0, 1, 282).reshape(94, 3)
    )
    for structure in (charged, heavy, every):
        assert_same(parse(structure.as_dict()), crystal_from_structure(structure))


def test_what_a_row_leaves_out_is_noted():
    heavy = Structure(Lattice.cubic(4), ["H", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]]).as_dict() | {"charge": 1}
    heavy["sites"][0]["species"][0]["element"] = "D"  # which pymatgen itself would write as H
    payloads = [json.dumps(one).encode() for one in (heavy, NACL.as_dict())]
    noted, plain = RawChunk(0, ["a", "b"], ["a", "b"], payloads, "matbench_json").read()
    assert noted.crystal.numbers.tolist() == [1, 3]
    assert noted.notes == (
        "deuterium and tritium are read as hydrogen",
        "the charge of the structure is left out: 1",
    )
    assert plain.notes == ()


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (Structure(Lattice.cubic(3), [DummySpecies("Q")], [[0, 0, 0]]), "site 0: 'Q' is no element but a dummy atom"),
        (Structure(Lattice.cubic(3), ["Na", "Cf"], [[0, 0, 0], [0.5] * 3]), "site 1: unknown element Cf"),
        (Structure(Lattice(np.eye(3), (False,) * 3), ["Na"], [[0, 0, 0]]), "not periodic along a and b and c"),
    ],
)
def test_structures_as_objects_are_held_to_the_same(structure, reason):
    with pytest.raises(BadCrystalError, match=reason):
        crystal_from_structure(structure)


def broken(**changes: object) -> dict:
    return json.loads(json.dumps(NACL.as_dict())) | changes


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (
            Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).as_dict(),
            "disordered.*Na 0.5, K 0.5",
        ),
        (Structure(Lattice.cubic(3), [{"Na": 0.5}], [[0, 0, 0]]).as_dict(), "disordered.*site 0"),
        (Structure(Lattice.cubic(3), ["Am"], [[0, 0, 0]]).as_dict(), "site 0: unknown element Am: CHGNet knows"),
        (
            Structure(Lattice.cubic(3), [DummySpecies("X")], [[0, 0, 0]]).as_dict(),
            "site 0: 'X' is no element but a dummy",
        ),
        (
            broken(sites=[{"species": [{"element": "Vac", "occu": 1}], "abc": [0, 0, 0]}]),
            "'Vac' is no element but a vac",
        ),
        (
            Structure(Lattice(np.eye(3) * 3, (True, True, False)), ["Na"], [[0, 0, 0]]).as_dict(),
            "no crystal: it is not periodic along c",
        ),
        (broken(sites=[]), "empty structure"),
        (broken(lattice={}), "no key 'matrix'"),
        (broken(lattice={"matrix": [[1, 0], [0, 1]]}), r"lattice of shape \(2, 2\)"),
        (broken(sites=[{"species": [{"element": "Na", "occu": 1}], "abc": [0, 0]}]), r"shape \(1, 2\)"),
        (
            broken(sites=[{"species": [{"element": "Na", "occu": 1}], "abc": ["x", 0, 0]}]),
            "not a pymatgen Structure",
        ),
        (None, "not a pymatgen Structure"),
        ("NaCl", "not a pymatgen Structure"),
    ],
)
def test_a_bad_row_yields_its_reason_and_the_next_row_follows(structure, reason):
    payloads = [json.dumps(one).encode() for one in (structure, NACL.as_dict())] + [b"{"]
    bad, good, cut = RawChunk(0, list("abc"), list("abc"), payloads, "matbench_json").crystals()
    assert isinstance(bad, BadCrystalError)
    assert re.search(reason, str(bad)), str(bad)
    assert_same(good, crystal_from_structure(NACL))
    assert isinstance(cut, BadCrystalError)


def test_formulas_are_no_crystals():
    chunk = RawChunk(0, ["a"], ["a"], [b"NaCl"], "composition")
    with pytest.raises(TaskError, match=r"the task has compositions only \(row a is 'NaCl'\): there are no structures"):
        next(chunk.crystals())


def test_packed_crystals_return_as_they_were():
    crystal = crystal_from_structure(NACL)
    good, bad = RawChunk(0, ["a", "b"], ["a", "b"], [pack_crystal(crystal), b"x" * 80], "packed").crystals()
    assert_same(good, crystal)
    assert isinstance(bad, BadCrystalError)


def test_the_demo_layout(tmp_path):
    crystal = crystal_from_structure(NACL)
    columns = {
        "id": ["demo-1", "demo-2"],
        "formula": ["NaCl", "NaCl"],
        "prototype": ["AB_cF8", "AB_cF8"],
        "numbers": [crystal.numbers.tolist()] * 2,
        "frac_coords": [crystal.frac_coords.ravel().tolist()] * 2,
        "lattice": [crystal.lattice.ravel().tolist(), (2 * crystal.lattice).ravel().tolist()],
        "e_form": [-2.0, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "demo.parquet")
    source = read_demo(tmp_path / "demo.parquet")
    rows = source.rows(["demo-1", "demo-2"], "e_form")
    assert rows.groups == ["AB_cF8", "AB_cF8"]
    np.testing.assert_array_equal(rows.targets, [-2.0, np.nan])
    for scale, found in zip((1, 2), rows.chunk(0, 2).crystals(), strict=True):
        assert_same(found, replace(crystal, lattice=scale * crystal.lattice))
    (tmp_path / "demo.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(TaskError, match="is damaged"):
        read_demo(tmp_path / "demo.parquet")


def test_structure_files(tmp_path):
    NACL.to(str(tmp_path / "salt.cif"))
    NACL.to(str(tmp_path / "POSCAR_salt"), fmt="poscar")
    (tmp_path / "bad.cif").write_text("data_\nnothing here")
    (tmp_path / "nameless.vasp").write_text("x\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\ndirect\n0 0 0\n")
    (tmp_path / "t.csv").write_text("file,y\nsalt.cif,1\nPOSCAR_salt,2\nbad.cif,3\nnameless.vasp,4\n")
    cif, poscar, bad, nameless = crystals_of(read_folder(tmp_path))
    assert_same(poscar, crystal_from_structure(Structure.from_file(tmp_path / "POSCAR_salt")))
    assert_same(cif, crystal_from_structure(Structure.from_file(tmp_path / "salt.cif")))
    assert "bad.cif: not readable as CIF" in str(bad)
    assert "nameless.vasp: not readable as POSCAR" in str(nameless), "elements must not be made up"


def crystal(lattice: object, *sites: tuple[int, float, float, float]) -> Crystal:
    return Crystal(
        np.array([site[0] for site in sites], dtype=np.uint8),
        np.array([site[1:] for site in sites], dtype=np.float64).reshape(-1, 3),
        np.array(lattice, dtype=np.float64),
    )


CUBE = np.eye(3) * 4.0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (crystal(CUBE), "empty structure"),
        (crystal(CUBE, (95, 0, 0, 0)), "unknown element Z = 95 at site 0"),
        (crystal(CUBE, (0, 0, 0, 0)), "unknown element Z = 0"),
        (crystal(CUBE, (1, 0, 0, 0), (1, np.nan, 0, 0)), "coordinates of site 1 are not finite"),
        (crystal(np.full((3, 3), np.inf), (1, 0, 0, 0)), "singular lattice"),
        (crystal([[1, 0, 0], [2, 0, 0], [0, 0, 3]], (1, 0, 0, 0)), "singular lattice"),
        (crystal(CUBE * 0, (1, 0, 0, 0)), "singular lattice"),
        (crystal(CUBE * 1e200, (1, 0, 0, 0)), "singular lattice"),
        (crystal(CUBE, (3, 0, 0, 0), (8, 0.1, 0, 0)), r"sites 0 \(Z = 3\) and 1 \(Z = 8\) are 0.400"),
        (crystal(CUBE, (3, 0, 0, 0.95), (8, 0, 0, 3.03)), r"sites 0 .* and 1 .* are 0.320"),
        (crystal(np.diag([4, 4, 0.4]), (3, 0, 0, 0)), "site 0 .*its own periodic image are 0.400"),
        (crystal([[3, 0, 0], [6.2, 3, 0], [6.1, 0.2, 3]], (1, 0, 0, 0), (1, 0.9, 0.0, 0.05)), "overlapping"),
    ],
)
def test_unusable_crystals_are_refused(bad, reason):
    with pytest.raises(BadCrystalError, match=reason):
        check_crystal(bad)


def test_overlaps_are_those_that_pymatgen_finds_also_in_skewed_cells():
    rng = np.random.default_rng(0)
    n_overlapping = 0
    for _ in range(60):
        shear = np.eye(3) + np.tril(rng.uniform(-1.5, 1.5, (3, 3)), -1)
        random = crystal(shear @ np.diag(rng.uniform(0.6, 4, 3)), *[(6, *rng.uniform(-2, 2, 3)) for _ in range(4)])
        structure = Structure(Lattice(random.lattice), random.numbers, random.frac_coords)
        nearest = min((n.nn_distance for all_n in structure.get_all_neighbors(0.6) for n in all_n), default=1.0)
        if nearest < 0.5:
            n_overlapping += 1
            with pytest.raises(BadCrystalError, match=f"{nearest:.3f} Angstrom apart"):
                check_crystal(random)
        else:
            check_crystal(random)
    assert 10 < n_overlapping < 50


def test_bad_targets_and_repeated_ids():
    ids, targets = ["a", "b", "a", "c", "d"], np.array([1.0, np.nan, 2.0, np.inf, 0.0])
    reasons = bad_target_reasons(ids, targets, RowNumbers("line", [2, 3, 4, 5, 6]))
    assert sorted(reasons) == [1, 2, 3]
    assert "not a number" in reasons[1]
    assert "line 2 has it already" in reasons[2]
    assert "inf" in reasons[3]


@pytest.mark.parametrize("mark", [-999, 999, -9999, 9999, 99999, -99999, 1e20, -1e30, 9.96921e36, -(2**31), -(2**63)])
@pytest.mark.parametrize("values", [[0.0, 1.17, 3.4, 9.0], [-3.1, 0.4, -0.2, 1.0]])
def test_a_mark_for_a_missing_value_is_no_target(mark, values):
    for targets in ([*values, mark], [mark, *values, mark, np.nan]):
        reasons = reasons_of(targets)
        marked = [k for k, target in enumerate(targets) if target == mark]
        assert [k for k in reasons if not np.isnan(targets[k])] == marked
        assert all("a common mark for a missing value" in reasons[k] for k in marked)


def test_several_marks_in_one_column_and_a_negative_one_among_large_values():
    assert sorted(reasons_of([1.5, -999, 99999, 2.5, 1e20, 0.5])) == [1, 2, 4]
    assert sorted(reasons_of([120.0, -999, 440.0, 95.0])) == [1]  # bulk moduli, none of which is negative


@pytest.mark.parametrize(
    "values",
    [
        [3.0, 999.0, 9999.0, 20000.0, 450.0],
        [-2500.0, -999.0, 1200.0],  # formation energies in meV
        [9999.0, 99999.0, 15000.0],
        [1e17, 3e18, 1e20, 1e19],  # charge carriers in a cm3
        [0.0, 0.0, 1e20, 3e20, 2e21],
        [1e20, 1e20, 2e20],
        [-999.0, -999.0],
        [99.0, 98.0, 1.0, -99.0],
        [1000.0, 9998.0, 1.0, 1e19],
    ],
)
def test_a_value_that_looks_like_a_mark_among_others_like_it_is_a_target(values):
    assert reasons_of(values) == {}


def reasons_of(targets: list[float]) -> dict[int, str]:
    """Reasons of rows that have ids of their own."""
    ids = [str(k) for k in range(len(targets))]
    return bad_target_reasons(ids, np.array(targets, dtype=np.float64), counted(len(targets)))
