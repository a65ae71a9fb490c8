"""CSV and Parquet as programs write them: cells mean what they say, and what could mean two things is refused."""

import datetime
import gzip
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_crystals import face_centred

from data.crystals.rows import Rows
from data.task import Task, TaskError
from data.tasks import open_task

CASES = Path(__file__).parents[3] / "shared" / "cases" / "tables"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not here")
COPPER = face_centred("Cu", 3.6)


def opened(path: Path, **choices) -> tuple[Task, Rows]:
    return open_task(str(path), **choices, download_dir=Path("never used"))


def table(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def formulas(rows: Rows) -> list[str]:
    return [payload.decode() for payload in rows.chunk(0, len(rows)).payloads]


@pytest.mark.parametrize("word", ["", "NaN", "nan", "NA", "None", "null", "N/A", "<NA>"])
def test_a_missing_cell_beside_booleans_or_numbers_is_a_missing_target(tmp_path, word):
    task, rows = opened(table(tmp_path, f"formula,metal\nFe,True\nNaCl,FALSE\nCu,{word}\n"))
    assert task.kind == "classification"
    np.testing.assert_array_equal(rows.targets, [1, 0, np.nan])
    task, rows = opened(table(tmp_path, f"formula,y\nFe,1\nNaCl,-2.5e-1\nCu,{word}\n"))
    assert task.kind == "regression"
    np.testing.assert_array_equal(rows.targets, [1, -0.25, np.nan])


def test_ids_groups_and_formulas_stay_text(tmp_path):
    task, rows = opened(table(tmp_path, "ID,Formula,y,group\n00123,NaN,1,01\n1.0,Fe,2,1\n1,true,inf,1\n"))
    assert rows.ids == ["00123", "1.0", "1"]
    assert rows.groups == ["01", "1", "1"]
    assert formulas(rows) == ["NaN", "Fe", "true"]
    assert rows.targets.tolist() == [1, 2, np.inf]
    assert "Taken: ids from column 'ID', formulas from column 'Formula', the target from column 'y'." in task.notes


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_delimiters_trailing_ones_and_blank_lines(tmp_path, delimiter, newline):
    lines = ["id,formula,y (eV),,", "a,Fe,1.5,,", "", ",,,,", 'b,"Na\nCl",-2', "c,Cu,,,"]
    text = newline.join(line.replace(",", delimiter) for line in lines)
    task, rows = opened(table(tmp_path, text))
    assert (task.target, rows.ids) == ("y (eV)", ["a", "b", "c"])
    np.testing.assert_array_equal(rows.targets, [1.5, -2, np.nan])
    assert [rows.row_numbers.of(k) for k in range(3)] == ["line 2", "line 5", "line 7"]
    assert ("separated by" in task.notes) == (delimiter != ",")


@pytest.mark.parametrize("name", ["a.CSV", "a.tsv", "a.csv.gz"])
def test_endings(tmp_path, name):
    text = b"formula,y\nFe,1\n"
    task, rows = opened(table(tmp_path, gzip.compress(text) if name.endswith(".gz") else text, name))
    assert (task.name, rows.targets.tolist()) == ("a", [1])


def test_decimal_commas_are_read_where_the_whole_file_has_them(tmp_path):
    task, rows = opened(table(tmp_path, "formula;y;n\nFe;1,5;3\nCu;-0,25;4\nNi;1,234e-2;\n"), target="y")
    assert rows.targets.tolist() == [1.5, -0.25, 0.01234]
    assert "Commas in numbers of a.csv are decimal ones." in task.notes
    assert "separated by semicolons" in task.notes
    assert opened(table(tmp_path, 'formula,y\nFe,"1,5"\nCu,2\n'))[1].targets.tolist() == [1.5, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('formula,y\nFe,1\nCu,"1,234"\n', r"line 3 has '1,234' in column 'y', which may be 1234 or 1\.234"),
        ('formula,y\nFe,"1,234.5"\n', r"line 2 has '1,234\.5' in column 'y'; write numbers without separators"),
        ("formula;y\nFe;1.234,5\n", "without separators of thousands"),
        ('formula,y\nFe,"1,234,567"\n', "without separators of thousands"),
        ("formula;y\nFe;1,5\nCu;2.5\n", r"line 2 has '1,5' in column 'y' and line 3 has '2\.5' in column 'y'"),
        ("formula;y;z\nFe;1,5;2.5\n", r"and line 2 has '2\.5' in column 'z'"),
        ("formula,y\nFe,1\nCu\n", "line 3 has 1 cells, its header 2"),
        ("formula,y\nFe,1,2\n", "line 2 has 3 cells, its header 2"),
        ("formula;y\nFe;1;2\n", "line 2 has 3 cells, its header 2"),
        ("formula,,y\nFe,1,2\n", "column 2 has no name in the first line"),
        ("formula,y,y\nFe,1,2\n", "a column name twice"),
        ('formula,y\nFe,"1\n', "is not a CSV file: unexpected end of data"),
        (b"\x00\x01\x02,\n", "bytes that are zero"),
        ("", "has no rows"),
    ],
)
def test_tables_that_could_mean_two_things_are_refused(tmp_path, text, message):
    with pytest.raises(TaskError, match=message):
        opened(table(tmp_path, text))


@pytest.mark.parametrize("cell", ["5%", "0.5 eV", "1 000.5", "1'000", "0.5(2)", "0.5±0.1", "yes", "2024-01-01", "1/2"])
def test_where_no_cell_is_a_number_the_refusal_shows_one(tmp_path, cell):
    file = tmp_path / "t.csv"
    file.write_text("formula,y\n" + "".join(f"{metal}Cl,{cell}\n" for metal in ("Li", "Na", "K", "Rb", "Cs")))
    with pytest.raises(
        TaskError,
        match=re.escape(
            f"no column holds numbers or booleans to learn, written as 1.5, true or false: 'y' has {cell!r} in line 2"
        ),
    ):
        opened(file)


def test_targets_that_are_text_are_counted_and_one_is_shown(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("formula,y\nLiCl,1\nNaCl,<2\nKCl,n/a\nRbCl,3 eV\nCsCl,\u22124.5\n")
    task, rows = opened(file)
    assert "Of the targets 2 are no number: '<2' in line 3." in task.notes
    np.testing.assert_array_equal(rows.targets, [1, np.nan, np.nan, np.nan, -4.5])


def test_text_beside_numbers_is_a_missing_target_and_no_other_number(tmp_path):
    rows = opened(table(tmp_path, 'formula,y\nFe,1\nCu,1_000\nNi,"1,234"\nZn,about 3\nAg,0x10\n'))[1]
    np.testing.assert_array_equal(rows.targets, [1, *[np.nan] * 4])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings(tmp_path, encoding):
    task, rows = opened(table(tmp_path, "id,formula,größe\nSäure,Fe,1\n".encode(encoding)))
    assert (task.target, rows.ids) == ("größe", ["Säure"])
    said = {"utf-16": "read as UTF-16", "latin-1": "read as Latin-1", "cp1252": "read as Latin-1"}
    assert said.get(encoding, "") in task.notes
    assert ("is read as" in task.notes) == (encoding in said)


def test_the_index_of_pandas(tmp_path):
    frame = pd.DataFrame({"formula": ["Fe", "NaCl"], "y": [1.0, 2.0]}, index=["p", "q"])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv")
    for ending in ("parquet", "csv"):
        task, rows = opened(tmp_path / f"a.{ending}")
        assert (task.target, rows.ids) == ("y", ["p", "q"])
        assert "ids from the index, which has no name" in task.notes
    frame.rename_axis("name").to_parquet(tmp_path / "a.parquet")
    task, rows = opened(tmp_path / "a.parquet")
    assert (task.target, rows.ids) == ("y", ["p", "q"])
    assert "ids from the index 'name'" in task.notes
    frame.reset_index(drop=True).assign(id=["00", "01"]).to_parquet(tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet")[1].ids == ["00", "01"]


@pytest.mark.parametrize(
    "numbers",
    [
        pa.array([Decimal("1.25"), None, Decimal("-3")], pa.decimal128(10, 3)),
        pa.array([Decimal("1.25"), None, Decimal("-3")], pa.decimal256(40, 3)),
        pa.array(np.array([1.25, np.nan, -3], dtype=np.float16)),
        pa.array([1.25, None, -3], pa.float32()),
        pa.array([1.25, float("nan"), -3]),
        pa.array([1.25, None, -3]).dictionary_encode(),
    ],
    ids=lambda numbers: str(numbers.type)[:20],
)
def test_numbers_of_every_kind_in_parquet(tmp_path, numbers):
    columns = {"id": ["00", "01", "02"], "formula": pa.array(["Fe", "Cu", "Fe"]).dictionary_encode(), "y": numbers}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    task, rows = opened(tmp_path / "a.parquet")
    assert (task.target, task.kind, rows.ids, formulas(rows)) == (
        "y", "regression", ["00", "01", "02"], ["Fe", "Cu", "Fe"],
    )  # fmt: skip
    np.testing.assert_array_equal(rows.targets, [1.25, np.nan, -3])


def test_other_columns_of_parquet(tmp_path):
    columns = {
        "formula": pa.array([b"Fe", b"Cu"]),  # text that some programs write without saying so
        "n": pa.array([1, None], pa.uint8()),
        "day": [datetime.date(2026, 1, 1)] * 2,
        "bytes": pa.array([b"\xff", b"\xfe"]),
        "list": [[1.0], [2.0]],
        "metal": [True, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(TaskError, match=r"\['n', 'metal'\] \(all columns: \['n', 'metal'\]\)"):
        opened(tmp_path / "a.parquet")
    task, rows = opened(tmp_path / "a.parquet", target="metal")
    assert (task.kind, formulas(rows)) == ("classification", ["Fe", "Cu"])
    np.testing.assert_array_equal(rows.targets, [1, np.nan])


def test_the_same_cells_in_a_folder(tmp_path):
    for name in ("00123", "1"):
        COPPER.to(str(tmp_path / f"{name}.cif"))
    table(tmp_path, "file;metal;e;\n00123.cif;True;1,5;\n1;NaN;;\n", "t.CSV")
    task, rows = opened(tmp_path, target="metal")
    assert (task.kind, rows.ids) == ("classification", ["00123.cif", "1"])
    np.testing.assert_array_equal(rows.targets, [1, np.nan])
    np.testing.assert_array_equal(opened(tmp_path, target="e")[1].targets, [1.5, np.nan])


@needs_cases
def test_the_shared_cases_of_tables(tmp_path):
    for name in ("good00", "good01", "good02", "good03", "good04", "good05"):
        COPPER.to(str(tmp_path / f"{name}.cif"))
    (tmp_path / "t.csv").write_bytes((CASES / "bool_with_NaN.csv").read_bytes())
    task, rows = opened(tmp_path)
    assert task.kind == "classification"
    np.testing.assert_array_equal(rows.targets, [1, 0, np.nan, 0, 1, 0])
    task, rows = opened(CASES / "decimal_target.parquet")
    assert (task.target, task.kind) == ("gap", "regression")
    assert np.isfinite(rows.targets).all()
    task, rows = opened(CASES / "formulas.csv")
    assert len(rows) == 42
