"""The benchmark of a sweep at full size, on a few rows: every stage is measured, and the sizes add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROWS = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc"),
]


@pytest.fixture(scope="module")
def measured(at_hand, tmp_path_factory) -> tuple[Path, dict, str]:
    """Folder, results and what was printed."""
    folder = tmp_path_factory.mktemp("scale")
    options = ["--rows", str(ROWS), "--folder", str(folder / "files"), "--results", str(folder / "scale.json")]
    command = [sys.executable, "-m", "benchmarks.scale", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "scale.json").read_text()), done.stdout


def test_every_step_tells_the_memory_of_the_driver_and_of_two_trials(measured):
    steps = {step["name"]: step for step in measured[1]["steps"]}
    assert list(steps)[:5] == [
        "open the file",
        "build the cache",
        "read the cache",
        "open the file again",
        "load the dataset",
    ]
    head, whole = list(steps)[5:]
    assert head == "two head-only trials on a whole fold"
    assert whole.startswith("two trials of the whole network on ")
    for name, step in steps.items():
        processes = {held["process"]: held for held in step["processes"]}
        assert next(iter(processes)) == "driver"
        for held in processes.values():
            assert held["beyond_store"] > 0, (name, held)
            assert 0 < held["private"] <= held["pss"]
    assert "converter 1" in [held["process"] for held in steps["build the cache"]["processes"]]
    for name in (head, whole):
        assert [held["process"] for held in steps[name]["processes"]] == ["driver", "trial 1", "trial 2"]


def test_sizes_are_those_of_every_row(measured):
    data = measured[1]["data"]
    n_rows, n_atoms, n_bonds = data["n_rows"], data["n_atoms"], data["n_bonds"]
    assert n_rows == data["n_graphs"] == sum(data["fold_rows"].values()) == ROWS
    assert 20 < n_atoms / n_rows < 40
    assert data["shared_bytes"] == {
        "graphs": n_atoms * (1 + 12) + n_bonds * (4 + 3) + n_rows * 36 + 2 * 8 * (n_rows + 1),
        "features": n_atoms * (64 + 1) * 4 + n_rows * 4,
        "fractions and outputs": n_rows * (94 * 4 + 8),
    }
    assert 0 < data["file_bytes"] < data["json_bytes"]
    assert data["cache_bytes"] > 0


def test_the_table_has_a_line_for_each_process_of_each_step(measured):
    folder, results, printed = measured
    held = [(step["name"], one["process"]) for step in results["steps"] for one in step["processes"]]
    lines = [line.split(" | ") for line in printed.splitlines() if line.count(" | ") == 7]
    assert [(line[0].removeprefix("| "), line[2]) for line in lines[1:]] == held
    assert f"| rows, graphs | {ROWS}, {ROWS} |" in printed
    assert list((folder / "files").iterdir()) == []  # nothing of the synthetic data is left
