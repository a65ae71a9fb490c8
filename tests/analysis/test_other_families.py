"""Sweeps of a family other than crystals: its own words in messages and on pages, its own facts or none."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_runs import make_rows, predict, write_options, write_run
from typer.testing import CliRunner

import tune.compare
import tune.ensemble
import tune.leaderboard
import tune.report
from models.family import Column, FactsError
from models.registry import FAMILY_FACTS
from tune.runs import load_sweep

TASK = {"name": "scans", "family": "images", "example": "image", "groups": "subject"}
OF_CRYSTALS = ("crystal", "composition", "formula", "structure", "CHGNet")


def rows_of_subjects(n: int = 60) -> pd.DataFrame:
    """Images of two folds, each of a subject of its own, in a table as it is written."""
    return make_rows(2, n, prefix="i").rename(columns={"composition": "subject"})


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A user's folder with two sweeps of images."""
    monkeypatch.chdir(tmp_path)
    rows = rows_of_subjects()
    trust = np.linspace(0.2, 1, len(rows))
    for name, error in (("a", 0.2), ("b", 0.1)):
        write_run(
            tmp_path / "ray_results" / name,
            rows.assign(trust=trust, trusted=trust >= 0.5),
            predict(rows, error, seeds=2, jitter=0.001),
            val_rows=rows_of_subjects(8),
            val_members=predict(rows_of_subjects(8), error, seeds=2, jitter=0.001),
            task=TASK,
        )
    return tmp_path / "ray_results"


def output(command, *arguments: str) -> str:
    done = CliRunner().invoke(command.app, list(arguments))
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_messages_speak_of_its_examples_and_groups(here):
    text = output(tune.compare, "a", "b")
    assert "120 ids in common, 120 subjects." in text
    assert "10,000 resamples of subjects, p from the mean difference of each subject" in text
    assert "These are test images" in text
    assert "over images and seeds together" in text
    assert "| id | fold | subject |" in text
    assert list(pd.read_csv(here / "compare-a-b/differences.csv"))[2] == "subject"
    board = output(tune.leaderboard)
    assert "best over images, 10,000 resamples of subjects." in board
    assert not [word for word in OF_CRYSTALS if word in text + board]


def test_its_groups_keep_their_name_in_files_and_notebooks(here):
    output(tune.ensemble, "a/seed_0", "b/seed_0", "--name", "both")
    for file in ("both/ensemble/preds_fold_0.csv", "both/ensemble/val_fold_1.csv", "both/reference/preds_fold_1.csv"):
        assert list(pd.read_csv(here / file))[:3] == ["id", "subject", "y_true"]
    (worst, *_) = json.loads((here / "both/results.json").read_text())["ensemble"]["trust"]["worst"]
    assert worst["subject"].startswith("I")
    sweep = load_sweep("both")
    assert sweep.members["ensemble"].test["group"][0] == "I0"
    assert sweep.predictions["subject"][0] == "I0"


def test_rows_of_one_group_are_drawn_together(here):
    """Five images of each subject that err alike are worth one."""
    rows = make_rows(2, 60, of_each=5, prefix="i").rename(columns={"composition": "subject"})
    by_subject = np.random.default_rng(1).normal(0.2, 0.1, 24).repeat(5)
    for name, columns in (("together", rows), ("apart", rows.assign(subject=rows["id"]))):
        write_run(here / f"a_{name}", columns, {"seed_0": columns["y_true"] + by_subject}, task=TASK, by_chance=False)
        write_run(here / f"b_{name}", columns, {"seed_0": columns["y_true"]}, task=TASK, by_chance=False)
    assert "24 subjects." in output(tune.compare, "a_together", "b_together")
    assert "120 subjects." in output(tune.compare, "a_apart", "b_apart")


def test_without_facts_a_page_has_errors_by_target_and_the_worst_examples(here):
    output(tune.report, "a")
    page = (here / "a/report.html").read_text()
    assert 'id="target"' in page
    assert 'id="elements"' not in page
    assert "the image, or the prediction, is far from what was trained on" in page
    assert "50 of 120 images hold" in page
    assert ">subject</button>" in page
    text = page[: page.index("<script>")]
    assert not [word for word in OF_CRYSTALS if word in text]


# ---- facts of a family: the functions that `FamilyFacts` lists --------------------------------------------------

OPENED = "scan"
GROUP_HEAD = "person"
PRETRAINED = "a network that was pretrained on photographs"
TRUST = "the image is darker than usual"
COLUMNS = (
    Column("clinic", "category", "By clinic", "images of {}", "clinics", share="are of {}"),
    Column("width", "number", "By width", "images {} wide", "widths", list_head="pixels across", opened=True,
           ranges=((100, "up to 100"), (float("inf"), "over 100"))),
    Column("thumbnail", "picture", list_head="image", note="Images are drawn small.", opened=True),
)  # fmt: skip


def group_html(group):
    return f"<b>{group}</b>"


def facts_of_groups(groups):
    return {"clinic": ["east" if int(name[1:]) % 2 else "west" for name in groups]}


def facts_of_rows(rows):
    if not len(rows):
        raise FactsError("The scans are of another kind")
    return pd.DataFrame({"width": 50.0 + np.arange(len(rows))}, index=pd.Index(rows.ids, name="id"))


def pictures(rows, ids):
    return {name: f"<svg class='thumbnail'><title>{name}</title></svg>" for name in ids}


def training_note(configs):
    return f"in {len(configs)} folds"


def references(model, notes):
    return ["@article{images}"]


@dataclass(frozen=True)
class SeenImages:
    ids: set[str]
    groups: set[str]
    n_unreadable: int = 0

    def equal_ids(self, rows, groups):
        raise FactsError("The scans cannot be compared")


def read_seen(source):
    lines = Path(source).read_text().split()
    if lines[0] != "images":
        return None
    if len(lines) < 2:
        raise FactsError(f"{source} has no image")
    return SeenImages(set(lines[1:]), set())


@pytest.fixture
def with_facts(monkeypatch):
    """The family says what it knows: by a module and a line of the registry."""
    monkeypatch.setitem(FAMILY_FACTS, "images", __name__)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_facts_of_groups_are_on_the_page_and_what_is_not_opened_says_why(here, with_facts):
    output(tune.report, "a")
    page = (here / "a/report.html").read_text()
    assert "<h2>By clinic</h2>" in page
    assert "Errors are largest for images of " in page
    assert "The scans cannot be opened any more: no sweep" in page
    assert "<b>I7</b>" in page
    assert ">person</button>" in page
    assert "a prediction is marked: the image is darker than usual." in page


def test_facts_and_pictures_of_opened_rows_are_on_the_page(tmp_path, with_facts):
    from data.tasks import open_task

    _, opened = open_task("demo", download_dir=Path("not-needed"))  # whatever rows: the facts are made here
    ids = opened.ids[:120]
    rows = rows_of_subjects().assign(id=ids)
    folder = write_run(tmp_path / "a", rows, predict(rows, 0.1), task=TASK, sha256=opened.sha256)
    write_options(folder)
    output(tune.report, str(folder))
    page = (folder / "report.html").read_text()
    assert page.count("<svg class='thumbnail'>") == 50
    assert "Errors are largest for images up to 100 wide" in page or "smallest for images up to 100 wide" in page
    assert ">pixels across</button>" in page
    assert "Images are drawn small." in page


def test_what_its_pretraining_has_seen_is_read_by_the_family(here, with_facts):
    ids = [f"i-{k:04d}" for k in range(60)]
    (here / "seen.txt").write_text("images " + " ".join(ids))
    text = output(tune.leaderboard, "--contamination", str(here / "seen.txt"))
    assert "60 test images were seen (60 by id, 0 by scan), 60 were not. 95 % intervals over subjects" in text
    (here / "listed.txt").write_text("\n".join(ids))  # a list of ids is one for every family
    assert "60 test images were seen" in output(tune.leaderboard, "--contamination", str(here / "listed.txt"))
    (here / "none.txt").write_text("images")
    refused = CliRunner().invoke(tune.leaderboard.app, ["--contamination", str(here / "none.txt")])
    assert (refused.exit_code, "--contamination " in refused.output, "has no image" in refused.output) == (
        1,
        True,
        True,
    )
