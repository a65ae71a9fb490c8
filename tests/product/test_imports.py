"""Commands answer at once: what takes seconds to import is imported where it is used, and nowhere before."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from official_runs import SMALL, official_rows, official_run
from sweeps import REPOSITORY

COMMANDS = (
    "tune/run_sweep.py",
    "tune/run_queue.py",
    "tune/compare.py",
    "tune/ensemble.py",
    "tune/leaderboard.py",
    "tune/report.py",
    "tune/submit.py",
    "models/predict.py",
    "data/build_cache.py",
)
HEAVY = {
    *("torch", "ray", "sklearn", "pymatgen", "pandas", "pyarrow", "scipy", "matplotlib", "optuna", "numba", "numpy"),
    *("chgnet", "ase", "plotly", "requests"),
}
# Runs a command as Python itself would, and writes down what it has imported by its end.
RUNNER = """
import atexit, runpy, sys
from pathlib import Path

file, *sys.argv = sys.argv[1:]
atexit.register(lambda: Path(file).write_text(" ".join(name for name in sys.modules if "." not in name)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RECORD = {
    "git_commit": "abc",
    "created": "2026-11-21T20:49:52+00:00",
    "versions": {"torch": "2.13.0", "chgnet": "0.4.2"},
}


def imported_by(folder: Path, command: str, *arguments: str, expect: int = 0) -> set[str]:
    """The packages and modules that a command imports, given in a folder."""
    file = folder / "imported.txt"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(file), str(REPOSITORY / command), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    names = set(file.read_text().split())
    assert "typer" in names, "the command ran"
    return names


@pytest.fixture(scope="module")
def finished(ridge_sweep, tmp_path_factory) -> Path:
    """A folder with `ray_results`: a sweep of some crystals of the demo, and two of an official task."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(ridge_sweep, folder / "ray_results/searched")
    rows = official_rows(SMALL)
    y = rows["y_true"].to_numpy()
    for name, error in (("a", 0.1), ("b", 0.2)):
        members = {"seed_0": y + error * np.sin(np.arange(len(y)))}
        official_run(folder / "ray_results" / name, SMALL, rows, members, record=RECORD)
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["--no-such-option"]], ids=" ".join)
@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_read_before_anything_heavy_is_imported(tmp_path, command, arguments):
    expect = 0 if arguments == ["--help"] else 2
    assert imported_by(tmp_path, command, *arguments, expect=expect) & HEAVY == set()


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("tune/run_sweep.py", "--space=none-of-this-name"),
        ("tune/run_sweep.py", "--folds=9"),
        ("tune/run_sweep.py", "--split=random"),
        ("tune/run_sweep.py", "--only-failed"),
        ("tune/run_queue.py", "--queue=none-of-this-name"),
        ("tune/run_queue.py", "--gpus-per-trial=1.5"),
    ],
)
def test_a_mistake_that_shows_at_once_is_told_before_anything_heavy_is_imported(tmp_path, command, mistake):
    assert imported_by(tmp_path, command, mistake, expect=1) & HEAVY == set()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("tune/compare.py", ["a", "b"]),
        ("tune/leaderboard.py", []),
        ("tune/report.py", ["searched"]),
        ("tune/submit.py", ["a", "--algorithm=Ours"]),
        ("tune/ensemble.py", ["a", "b", "--name=both"]),
    ],
)
def test_what_reads_finished_sweeps_imports_neither_torch_nor_ray(finished, command, arguments):
    assert imported_by(finished, command, *arguments) & {"torch", "ray", "chgnet"} == set()


def test_a_notebook_that_reads_a_sweep_imports_neither_torch_nor_ray(finished):
    program = "import sys; from tune.runs import load_sweep; sweep = load_sweep(sys.argv[1]); sweep.trials; "
    program += "sweep.histories; sweep.predictions; print({'torch', 'ray', 'pandas'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program, f"{finished}/ray_results/searched"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{'pandas'}\n"
