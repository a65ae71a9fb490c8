"""Errors split into crystals that pretraining has seen and others: by id, by structure, beside the controls."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_runs import make_rows, make_run, write_options
from pymatgen.core import Structure
from typer.testing import CliRunner

from data.crystals.convert import reduced_formula
from data.crystals.rows import Rows
from data.tasks import open_task
from tune.analysis.contamination import exposure_markdown, exposures
from tune.analysis.ranking import Ranking, rankings
from tune.analysis.seen import SeenError, read_seen, seen_ids
from tune.ensemble import app as average
from tune.leaderboard import app as leaderboard
from tune.runs import SweepRun, load_sweep, weights_of

FROM_SCRATCH = {fold: {"weights": "random", "seed": 0} for fold in range(5)}
PRETRAINED = {fold: {"weights": "0.3.0", "seed": 0} for fold in range(5)}


@pytest.fixture
def rows() -> pd.DataFrame:
    return make_rows()


@pytest.fixture
def listed(rows, tmp_path) -> Path:
    """Half of the crystals of every fold."""
    file = tmp_path / "seen.txt"
    file.write_text("# of pretraining\n" + "\n".join(rows["id"][:100]) + "\nmp-149  # not of this task\n")
    return file


def section_of(tmp_path: Path, rows: pd.DataFrame, **errors: tuple[float, float]) -> Ranking:
    """Runs with these errors on seen and on unseen crystals; `scratch` starts from random weights."""
    y, seen = rows["y_true"].to_numpy(), np.arange(len(rows)) < 100
    runs = []
    for name, (on_seen, on_unseen) in errors.items():
        configs = FROM_SCRATCH if name == "scratch" else PRETRAINED
        spread = 1 + 0.2 * np.random.default_rng(len(runs)).normal(size=len(rows))
        predicted = y + np.where(seen, on_seen, on_unseen) * spread
        runs.append(make_run(tmp_path, name, rows, {"seed_0": predicted, "reference": y + 0.9}, configs=configs))
    return rankings(runs, {})[0]


def test_errors_are_split_by_listed_ids_beside_the_controls(tmp_path, rows, listed):
    section = section_of(tmp_path, rows, tuned=(0.1, 0.3), scratch=(0.4, 0.4))
    (split,) = exposures([section], str(listed))
    assert (split.n_by_id, split.n_equal, split.n_unseen, split.control) == (100, 0, 100, "scratch")
    lines = {line.name: line for line in split.lines}
    assert {name: line.role for name, line in lines.items()} == {
        "tuned": "pretrained", "scratch": "from scratch", "pretrained + reference (0.3.0)": "zero-shot",
    }  # fmt: skip
    tuned = lines["tuned"]
    table = section.places[0].entry.table
    error = (table["y_true"] - table["y_pred"]).abs()
    seen = table["id"].isin(rows["id"][:100])
    by_part = [error[part].groupby(table["fold"][part]).mean().mean() for part in (seen, ~seen)]
    assert [tuned.seen.value, tuned.unseen.value] == pytest.approx(by_part)
    assert tuned.seen.low < tuned.seen.value < tuned.seen.high
    assert tuned.advantage.value == pytest.approx(by_part[1] - by_part[0])
    assert tuned.advantage.low > 0.15
    assert tuned.beyond_control.value == pytest.approx(tuned.advantage.value - lines["scratch"].advantage.value)
    assert lines["scratch"].beyond_control is None
    text = exposure_markdown(split, 3)
    assert "100 test crystals were seen (100 by id, 0 by structure), 100 were not." in text
    assert "| scratch | from scratch (control) |" in text
    assert "more than crystals that are easier for any model explain, so that its score flatters it." in text
    assert "null" not in json.dumps(split.as_dict())


def test_crystals_that_are_easier_for_everyone_show_no_gain(tmp_path, rows, listed):
    section = section_of(tmp_path, rows, tuned=(0.10, 0.20), scratch=(0.21, 0.31))
    (split,) = exposures([section], str(listed))
    assert split.lines[0].advantage.low > 0
    assert "the interval holds 0, so that nothing shows a gain from having seen them." in exposure_markdown(split, 3)


def test_without_a_control_nothing_is_concluded_and_a_peer_can_be_one(tmp_path, rows, listed):
    section = section_of(tmp_path, rows, tuned=(0.1, 0.3))
    (split,) = exposures([section], str(listed))
    assert split.control == ""
    assert "sweep --space scratch, or give --peers." in exposure_markdown(split, 3)
    assert "beyond" not in exposure_markdown(split, 3)
    peers = pd.DataFrame({"good": rows["y_true"].to_numpy() + 0.05, "bad": 9.0}, index=rows["id"])
    (section,) = rankings(section.runs, {"peers.parquet": peers})
    (split,) = exposures([section], str(listed))
    assert (split.control, [line.name for line in split.lines][:2]) == ("good", ["good", "tuned"])
    assert "bad" not in [line.name for line in split.lines]


def test_an_average_of_pretrained_networks_is_no_control(tmp_path, rows, listed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = section_of(tmp_path, rows, tuned=(0.1, 0.3), other=(0.2, 0.3), scratch=(0.4, 0.4))
    for name, parts in (("both", ["tuned", "other"]), ("all", ["both", "scratch"])):
        assert CliRunner().invoke(average, [*parts, "--name", name]).exit_code == 0
    averages = [load_sweep(name) for name in ("both", "all")]
    assert [weights_of(run) for run in averages] == ["0.3.0", "0.3.0, random"]
    (section,) = rankings([*section.runs, *averages], {})
    (split,) = exposures([section], str(listed))
    assert split.control == "scratch"
    assert {line.name for line in split.lines if line.role == "pretrained"} == {"tuned", "other", "both", "all"}
    assert [line.name for line in split.lines if line.role == "zero-shot"] == ["pretrained + reference (0.3.0)"]


@pytest.fixture(scope="module")
def demo() -> Rows:
    return open_task("demo", download_dir=Path())[1]


def demo_run(tmp_path: Path, demo: Rows) -> SweepRun:
    """A run of the first 300 crystals of the demo, as if its task had no others."""
    crystals = list(demo.chunk(0, 300).crystals())
    table = pd.DataFrame(
        {
            "fold": np.arange(300) % 5,
            "id": demo.ids[:300],
            "composition": [reduced_formula(crystal) for crystal in crystals],
            "y_true": demo.targets[:300],
        }
    )
    run = make_run(tmp_path, "demo", table, {"seed_0": table["y_true"].to_numpy() + 0.1}, sha256=demo.sha256)
    write_options(Path(run.address))
    return run


def structures(demo: Rows, positions: list[int]) -> list[Structure]:
    chosen = [next(iter(demo.chunk(k, k + 1).crystals())) for k in positions]
    return [Structure(crystal.lattice, crystal.numbers, crystal.frac_coords) for crystal in chosen]


def test_a_crystal_is_seen_if_it_equals_a_structure_however_that_is_written(tmp_path, demo):
    (section,) = rankings([demo_run(tmp_path, demo)], {})
    positions = list(range(0, 300, 12))
    wanted = {demo.ids[k] for k in positions}
    changed = structures(demo, positions)
    for k, structure in enumerate(changed):
        structure.translate_sites(list(range(len(structure))), [0.1, 0.2, 0.3])  # another origin
        structure.scale_lattice(structure.volume * 1.1)  # another functional's volume
        if k % 2:
            structure.make_supercell([2, 1, 1])

    cells = [[structure.as_dict(), 0.0] for structure in changed]
    file = tmp_path / "seen.json.gz"
    with gzip.open(file, "wt") as text:
        json.dump({"index": list(range(len(cells))), "columns": ["structure", "y"], "data": cells}, text)
    folder = tmp_path / "seen"
    (folder / "deeper").mkdir(parents=True)
    for k, structure in enumerate(changed):
        structure.to(filename=str(folder / ("deeper" if k % 3 else ".") / f"{k}.cif"))
    (folder / "notes.txt").write_text("not a structure")

    by_id, of_file = seen_ids(section, read_seen(str(file), "crystals"))
    assert by_id == set()
    assert wanted <= of_file
    # others that equal one of them are distorted copies of the same prototype and elements
    formula = dict(zip(section.places[0].entry.table["id"], section.places[0].entry.table["group"], strict=True))
    assert {formula[one] for one in of_file} == {formula[one] for one in wanted}
    assert len(of_file) < 150
    assert seen_ids(section, read_seen(str(folder), "crystals"))[1] == of_file

    (split,) = exposures([section], str(file))
    assert (split.n_equal, split.n_unseen) == (len(of_file), 300 - len(of_file))


def test_ids_of_a_file_of_structures_count_too(tmp_path, demo):
    (section,) = rankings([demo_run(tmp_path, demo)], {})
    alone = structures(demo, [700])[0]  # which the run does not have, under the id of one that it has
    file = tmp_path / "seen.json"
    file.write_text(json.dumps({"index": [demo.ids[5]], "columns": ["structure"], "data": [[alone.as_dict()]]}))
    assert seen_ids(section, read_seen(str(file), "crystals"))[0] == {demo.ids[5]}


def test_what_cannot_be_split_says_why(tmp_path, rows, listed, demo):
    def refused(source: str | Path, section: Ranking) -> str:
        with pytest.raises(SeenError) as problem:
            exposures([section], str(source))
        return str(problem.value)

    section = section_of(tmp_path, rows, tuned=(0.1, 0.3))
    (tmp_path / "none.txt").write_text("mp-149\n")
    assert "none of the 200 test crystals of made is seen" in refused(tmp_path / "none.txt", section)
    (tmp_path / "all.txt").write_text("\n".join(rows["id"]))
    assert "none of the 200 test crystals of made is unseen" in refused(tmp_path / "all.txt", section)
    (tmp_path / "few.txt").write_text("\n".join(rows["id"][:3]))
    assert "3 compositions on one side are too few for an interval" in refused(tmp_path / "few.txt", section)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert "names no id" in refused(tmp_path / "empty.txt", section)
    (tmp_path / "bad.json").write_text("{}")
    assert "expected Matbench's layout" in refused(tmp_path / "bad.json", section)
    (tmp_path / "folder").mkdir()
    assert "has no structure that can be read" in refused(tmp_path / "folder", section)

    run = demo_run(tmp_path, demo)
    write_options(Path(run.address), task="gone.json.gz")
    (section,) = rankings([run], {})
    file = tmp_path / "seen.json"
    cell = structures(demo, [0])[0].as_dict()
    file.write_text(json.dumps({"index": [0], "columns": ["structure"], "data": [[cell]]}))
    why = refused(file, section)
    assert "structures of made are needed, or a list of ids instead" in why
    assert "demo: The structures cannot be opened any more: there is no task" in why


def test_the_leaderboard_has_the_split(tmp_path, rows, listed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section_of(tmp_path, rows, tuned=(0.1, 0.3), scratch=(0.4, 0.4))
    done = CliRunner().invoke(leaderboard, ["--contamination", str(listed)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "ray_results" / "leaderboard.md").read_text()
    assert f"### Seen in pretraining, by {listed}" in text
    assert "| name | role | MAE seen | MAE unseen | advantage on seen | beyond that of scratch |" in text
    assert text.rstrip().splitlines()[-1].startswith("tuned is better on seen crystals by 0.")
    (loaded,) = json.loads((tmp_path / "ray_results" / "leaderboard.json").read_text())["sections"]
    assert loaded["contamination"]["n_by_id"] == 100
    assert loaded["contamination"]["lines"][0]["seen"]["value"] == pytest.approx(0.1, abs=0.02)
