"""Queues: experiments that change one field of a baseline, run by the real command, ranked by verdict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from data.tasks import open_task
from tune import run_sweep
from tune.run_queue import app
from tune.spaces.queue_file import load_queue
from tune.spaces.space import SpaceError
from tune.sweep.queue_run import queue_for_task

QUEUE = """\
description: small, for tests
seeds: 2
gate: {continue_below: 2.0, stop_above: 1000.0}
baseline:
  model: composition_network
  parameters: {epochs: 12, batch_size: 16, lr: 0.002, width: 16, rounds: 1, head_width: 16, head_depth: 1, keep: last}
experiments:
  too_fast: {lr: 1.0e-6}
  wide: {several: true, width: 32, head_width: 32}
  ridge: {model: ridge}
  never: {epochs: 13}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a queue and a task of binary compositions, whose target is linear in their fractions."""
    folder = tmp_path_factory.mktemp("queue")
    random = np.random.default_rng(0)
    elements = ["Li", "Na", "K", "Mg", "Ca", "Al", "Si", "O", "S", "F", "Cl", "N"]
    weights = dict(zip(elements, random.normal(0, 3, len(elements)), strict=True))
    rows = []
    while len(rows) < 160:
        a, b = random.choice(elements, 2, replace=False)
        n, m = random.integers(1, 6, 2)
        target = (weights[a] * n + weights[b] * m) / (n + m) + random.normal(0, 0.1)
        rows.append({"id": f"c{len(rows)}", "composition": f"{a}{n}{b}{m}", "energy": target})
    pd.DataFrame(rows).to_csv(folder / "salts.csv", index=False)
    (folder / "small.yaml").write_text(QUEUE)
    return folder


def run(folder, *arguments, expect=0):
    """Run the command to its end, one training at a time, and return what it printed."""
    where = [f"--storage={folder}/results", f"--task={folder}/salts.csv", "--max-concurrent=1"]
    done = CliRunner().invoke(app, [*where, *arguments], env={"MATSWEEP_CACHE": str(folder / "cache")})
    assert done.exit_code == expect, done.output
    return done.output


@pytest.fixture(scope="module")
def ranked(folder, ray_session):
    """A queue run to its end: its folder and its output."""
    text = QUEUE.replace("continue_below: 2.0, stop_above: 1000.0", "continue_below: 0.5, stop_above: 4.0")
    text = text.replace("  never: {epochs: 13}\n", "")
    text = text.replace("too_fast: {lr: 1.0e-6}", "slow: {lr: 0.0005}")
    (folder / "small.yaml").write_text(text)
    output = run(folder, f"--queue={folder}/small.yaml", "--name=q", "--folds=0,2")
    return folder / "results" / "q", output


def test_experiments_get_a_verdict_against_the_baseline_and_are_ranked_by_it(ranked):
    folder, output = ranked
    ranking = json.loads((folder / "queue.json").read_text())
    entries = {entry["experiment"]: entry for entry in ranking["experiments"]}
    assert set(entries) == {"baseline", "slow", "wide", "ridge"}
    assert entries["ridge"]["verdict"] == "better"  # the target is linear
    assert ranking["experiments"][0]["experiment"] == "ridge"
    assert entries["slow"]["verdict"] in ("worse", "within noise", "undecided")
    assert entries["baseline"]["verdict"] == "baseline"
    for entry in ranking["experiments"]:
        if "gain" in entry:
            low, high = entry["gain_interval"]
            assert low <= entry["gain"] <= high
            assert entry["sentence"]
    assert entries["baseline"]["val"] - entries["ridge"]["val"] == pytest.approx(entries["ridge"]["gain"], abs=0.3)
    table = (folder / "QUEUE.md").read_text()
    assert table.count("\n| ") == 1 + len(entries)
    assert "several" not in table
    assert "QUEUE.md" in output


def test_a_queues_folder_stays_in_the_storage(folder):
    output = run(folder, f"--queue={folder}/small.yaml", "--name=../out", expect=1)
    assert "--name '../out': expected the name of a folder" in " ".join(output.split())
    assert not (folder / "out").exists()


def test_the_gate_leaves_out_other_seeds(ranked):
    folder, output = ranked
    found = {name: json.loads((folder / name / "results.json").read_text()) for name in ("baseline", "slow", "wide")}
    for name, results in found.items():
        assert len(results["seeds"]) == (2 if results["first_seed_val"] <= 0.5 else 1), name
    assert {name: len(results["seeds"]) for name, results in found.items()} == {"baseline": 2, "slow": 1, "wide": 2}
    assert "slow: first seed" in output
    assert "not better than 0.5: no other seed" in output
    results = json.loads((folder / "ridge" / "results.json").read_text())
    assert len(results["seeds"]) == 1  # there is no chance in it


def test_every_lever_of_a_queue_is_proven(ranked):
    """Of the baseline what is not the default, and its seed; of an experiment each field that it changes."""
    folder, _ = ranked
    proven = {
        name: [(check["lever"], check["values"]) for check in json.loads((folder / name / "levers.json").read_text())]
        for name in ("baseline", "slow", "wide", "ridge")
    }
    assert {lever for lever, _ in proven["baseline"]} == {
        "epochs", "batch_size", "lr", "width", "rounds", "head_width", "head_depth", "keep", "seed"
    }  # fmt: skip
    assert proven["slow"] == [("lr", [0.002, 0.0005])]
    assert proven["wide"] == [("width", [16, 32]), ("head_width", [16, 32])]
    assert proven["ridge"] == []


@pytest.fixture(scope="module")
def hopeless(folder, ray_session):
    """A queue whose levers were mended after a refusal, and whose gate ends it: its folder and its output."""
    text = QUEUE.replace("too_fast: {lr: 1.0e-6}", "scaled: {target_scale: standard}")  # natural is that already
    text = text.replace("width: 32, head_width: 32}", "width: 32, target_scale: standard}")
    (folder / "mended.yaml").write_text(text)
    arguments = [f"--queue={folder}/mended.yaml", "--name=mended", "--folds=0"]
    refused = run(folder, *arguments, expect=1)
    left = list((folder / "results/mended").rglob("sweep.json"))
    (folder / "mended.yaml").write_text(QUEUE.replace("stop_above: 1000.0", "stop_above: 0.01"))
    return folder / "results/mended", run(folder, *arguments), refused, left


def test_a_lever_that_does_nothing_is_told_before_anything_is_trained_and_may_be_mended(hopeless):
    """All such levers at once, in whatever experiment."""
    _, output, refused, left = hopeless
    refused = " ".join(refused.split())
    assert "queue mended: experiment scaled and wide: lever target_scale does nothing" in refused
    assert "training the chosen" not in refused
    assert left == []
    assert "does nothing" not in output


def test_a_hopeless_experiment_ends_the_queue(hopeless):
    folder, output, *_ = hopeless
    assert "The queue ends after baseline" in output
    ranking = json.loads((folder / "queue.json").read_text())
    assert [(entry["experiment"], entry["seeds"]) for entry in ranking["experiments"]] == [("baseline", 1)]
    assert "The queue ended after baseline" in (folder / "QUEUE.md").read_text()


def test_run_again_it_repeats_only_what_is_missing(ranked, folder):
    done, _ = ranked
    before = {path: path.stat().st_mtime_ns for path in done.glob("*/results.json")}
    shutil.rmtree(done / "wide")
    output = run(folder, f"--queue={folder}/small.yaml", "--name=q", "--folds=0,2")
    for path, time in before.items():
        assert (path.stat().st_mtime_ns == time) == (path.parent.name != "wide")
    assert output.count("wide: validation") == 1


def test_other_options_under_the_same_name_are_refused(ranked, folder):
    output = run(folder, f"--queue={folder}/small.yaml", "--name=q", "--folds=0,1", expect=1)
    assert "is of another queue or of other options: choose another --name" in output
    assert "Traceback" not in output


def test_an_experiment_is_gone_on_with_by_its_queue_alone(ranked, folder):
    done = CliRunner().invoke(run_sweep.app, [f"--storage={ranked[0]}", "--resume=slow"])
    assert done.exit_code == 1
    assert "is an experiment of a queue" in done.output


def test_what_an_experiment_cannot_do_is_said_before_any_is_trained(ranked, folder, capsys):
    arguments = [f"--queue={folder}/small.yaml", "--name=moved", "--folds=0", "--tta=2"]
    assert "reads compositions, which moving atoms does not change" in run(folder, *arguments, expect=1)
    assert not (folder / "results/moved").exists()


def test_a_queue_whose_experiments_do_not_go_with_the_task_is_refused():
    queue, task = load_queue("daily"), open_task("demo", download_dir=Path())[0]
    assert [one.space for one in queue_for_task(queue, task).experiments] == [one.space for one in queue.experiments]
    with pytest.raises(SpaceError, match="undo_mp2020 corrects CHGNet's energies"):
        queue_for_task(queue, replace(task, quantity="other"))
    few = queue.model_copy(
        update={"experiments": [one for one in queue.experiments if one.name in ("baseline", "huber")]}
    )
    with pytest.raises(SpaceError, match="'huber': of a classification it is what the baseline is"):
        queue_for_task(few, replace(task, kind="classification", quantity="other"))


@pytest.mark.parametrize(
    ("name", "experiments"),
    [("daily", 23), ("mp_e_form_levers", 24), ("mp_e_form_full_levers", 6), ("mp_e_form_gp_levers", 13)],
)
def test_a_shipped_queue_changes_one_field_at_a_time(name, experiments):
    queue = load_queue(name)
    assert queue.experiments[0].name == "baseline"
    assert len(queue.experiments) == experiments
    assert all(len(experiment.change) == 1 for experiment in queue.experiments[1:])


def broken(old, new):
    return QUEUE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            broken("several: true, ", ""),
            "'wide' changes 2 fields, width, head_width: nobody could tell which one did it",
        ),
        (broken("lr: 1.0e-6", "lr: 0.002"), "'too_fast' changes nothing"),
        (broken("lr: 1.0e-6", "learning_rate: 1"), "experiment 'too_fast': unknown field 'learning_rate'"),
        (broken("lr: 1.0e-6", "lr: {uniform: [0.1, 0.2]}"), "is a range: an experiment has one value"),
        (broken("lr: 1.0e-6", "ema_decay: 0.9"), "ema_decay 0.9 changes nothing with averaging 'none'"),
        (broken("model: ridge", "model: rigde"), "experiment 'ridge': no model 'rigde'"),
        (broken("  never:", "  baseline:"), "cannot be called 'baseline'"),
        (broken("stop_above", "stop_over"), "gate.stop_over: Extra inputs are not permitted"),
        (broken("experiments:", "experiment:"), "A queue has `baseline`"),
        (broken("seeds: 2", "seeds: 0"), "seeds: Input should be greater than or equal to 1"),
        ("[1, 2", "not YAML"),
        *[
            (broken("  never:", f"  '{name}':"), f"experiment {name!r}: the name becomes a folder")
            for name in ("../../evil", "a/b", ".", "..", ".hidden", "", "a b", "seed_1", "ensemble", "reference")
        ],
        *[
            (broken("stop_above: 1000.0", f"stop_above: {value}"), "gate.stop_above: Input should be a finite number")
            for value in (".nan", ".inf")
        ],
    ],
)
def test_a_mistake_is_named(tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpaceError) as problem:
        load_queue(str(tmp_path / "mine.yaml"))
    assert says in str(problem.value)
    assert "mine.yaml" in str(problem.value)


def test_an_unknown_queue_is_refused():
    with pytest.raises(SpaceError, match="no queue 'weekly'"):
        load_queue("weekly")
