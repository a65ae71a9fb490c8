"""The benchmark's command: the rows it writes, the table it prints, and that it refuses to compare what differs."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.whole
FIELDS = {"work", "structures", "stock", "ours", "ratio", "ratios", "n", "unit", "max_abs_difference"}


def run(*arguments: Path | str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.speed", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def measured(at_hand, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """One cheap piece of work on all three sets, with six structures in each."""
    results = tmp_path_factory.mktemp("bench") / "results.json"
    done = run("--only", "from flat arrays", "--structures", "6", "--repeats", "2", "--results", results)
    assert done.returncode == 0, done.stderr
    return results, done


def test_results_hold_what_was_measured_and_on_what(measured, at_hand):
    rows = json.loads(measured[0].read_text())
    about = json.loads(measured[0].with_suffix(".about.json").read_text())
    assert {"created", "git_commit", "versions", "processor", "cores", "structures"} <= about.keys()
    assert about["structures"].keys() == {"A", "B", "C"}
    assert ("embedded demo" in about["structures"]["A"]) == (at_hand == "demo")
    assert about["versions"]["chgnet"] == "0.4.2"
    assert [row["structures"] for row in rows] == ["A", "B", "C"]
    for row in rows:
        assert row.keys() >= FIELDS
        assert (row["work"], row["unit"], row["n"]) == ("structure -> graph, from flat arrays", "us", 6)
        assert len(row["ratios"]) == 2
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ("stock", "ours", "ratio"))


@pytest.mark.slow
def test_training_is_measured_on_both_sides(at_hand, tmp_path):
    done = run("--only", "epoch", "--structures", "4", "--repeats", "1", "--results", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    works = {row["work"] for row in json.loads((tmp_path / "results.json").read_text())}
    assert {work.partition(",")[0] for work in works} == {
        "epoch of full fine-tuning", "epoch of head-only fine-tuning", "10 epochs of head-only fine-tuning"
    }  # fmt: skip


def test_the_table_is_printed_again_without_measuring(measured):
    results, done = measured
    before = results.read_bytes()
    again = run("--table", "--results", results)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert results.read_bytes() == before
    header, rule, row, *rest = again.stdout.splitlines()
    assert header == "| work | stock | ours | ratio | ratio on B | ratio on C |"
    assert rule.count("---") == row.count("|") - 1 == 6
    assert row.startswith("| structure -> graph, from flat arrays | ")
    assert [line[:3] for line in rest if line] == ["A: ", "B: ", "C: "]


def test_what_cannot_be_shown_or_measured_is_said(tmp_path):
    nothing = run("--table", "--results", tmp_path / "results.json")
    assert nothing.returncode == 1
    assert nothing.stderr == (
        f"BenchmarkError: no {tmp_path}/results.json with its results.about.json: measure first, without --table\n"
    )
    unknown = run("--only", "no such work", "--structures", "2", "--results", tmp_path / "results.json")
    assert unknown.returncode == 1
    assert "--only 'no such work' fits none of: structure -> graph" in unknown.stderr
    assert list(tmp_path.iterdir()) == []


def test_sides_that_differ_are_not_compared(at_hand, tmp_path):
    from benchmarks.cases import BenchmarkError, Sides, Work, measure, structure_sets
    from benchmarks.checks import same_energies, same_graphs

    cases = structure_sets(4, tmp_path, torch.device("cpu"))[0]["C"]
    assert same_graphs(cases.stock_graphs, cases.graphs) == {"max_abs_difference": 0.0}
    *before, end = cases.graphs.bond_start
    fewer = dataclasses.replace(cases.graphs, bond_start=np.array([*before, end - 1]))
    with pytest.raises(BenchmarkError, match="edges and angles of a graph differ"):
        same_graphs(cases.stock_graphs, fewer)
    far = Work("", lambda _: Sides(lambda: np.zeros(4), lambda: np.array([0, 0, 0, 3e-5]), same_energies), "us")
    with pytest.raises(BenchmarkError, match=r"energies differ by up to 3e-05 .* allowed are 2e-05 and 1e-06"):
        measure(far, cases, 1)
