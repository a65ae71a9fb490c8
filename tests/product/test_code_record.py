"""The hash of the code, and the folder of machine code, change with what can change a number, and with nothing else."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.machine.module_files import PACKAGES, imported_modules, module_files
from tune.records.code_record import TELLING, TRIALS

REPOSITORY = Path(__file__).resolve().parents[2]
CYCLE = {
    "data/crystals/cells.py": "from data.crystals.angles import RIGHT\nCUBIC = 1\n",
    "data/crystals/angles.py": "def a_cell():\n    import data.crystals.cells\nRIGHT = 90\n",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the code, without what Python and numba have made of it."""
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def output(tree: Path, program: str) -> str:
    """What a program prints that finds the code in a tree."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_hash(tree: Path) -> str:
    return output(tree, "from tune.records.code_record import code_sha256; print(code_sha256())")


def append(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as content:
        content.write(text)


@pytest.mark.parametrize("changed", ["data/crystals/cells.py", "data/crystals/angles.py"])
def test_a_module_in_a_new_folder_counts_when_a_trial_reaches_it(tree, changed):
    for name, text in CYCLE.items():
        append(tree / name, text)
    append(tree / "models/training/__init__.py", "")
    append(tree / "models/training/schedules.py", "import numpy as np, data.crystals.cells\n")
    without = code_hash(tree)
    append(
        tree / "models/training/losses.py",
        "\n\ndef later():\n    from models.training import (  # noqa\n        schedules,\n    )\n",
    )
    before = code_hash(tree)
    append(tree / changed, "# another\n")
    assert len({without, before, code_hash(tree)}) == 3


@pytest.mark.parametrize(
    "file",
    [
        "models/crystals/chgnet/anchors.json",
        "tune/spaces/space.py",
        "tune/trials/preemption.py",
        "data/crystals/graph_cache.py",
    ],
)
def test_what_decides_a_number_counts(tree, file):
    before = code_hash(tree)
    append(tree / file, "\n")
    assert code_hash(tree) != before


@pytest.mark.parametrize(
    "file",
    [
        *("models/predict.py", "models/crystals/ase_calculator.py", "data/build_cache.py", "tune/run_sweep.py"),
        *("tune/pages/report.html", "tune/report.py", "tune/trials/terminal.py", "data/crystals/unused.py"),
    ],
)
def test_what_trains_nothing_does_not_count(tree, file):
    before = code_hash(tree)
    append(tree / file, "\n# a comment\n")
    assert code_hash(tree) == before


def test_a_sweep_and_its_workers_import_nothing_that_does_not_count(tree):
    names = output(tree, "import sys, tune.trials.search; print(*(name for name in sys.modules))").split()
    files = {str(file.relative_to(REPOSITORY).with_suffix("")) for file in module_files([TRIALS], leave_out=TELLING)}
    ours = {name.replace(".", "/") for name in names if name.split(".")[0] in PACKAGES}
    ours = {name for name in ours if not (REPOSITORY / name).is_dir()}  # a package is no code
    assert ours - files <= {
        name.replace(".", "/") for name in (*TELLING, "data.machine.interruption", "data.machine.module_files")
    }


def test_imports_are_read_from_the_text_as_python_reads_them():
    files = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    for file in files:
        text, names = file.read_text(encoding="utf-8"), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert imported_modules(text) >= {name for name in names if name.split(".")[0] in PACKAGES}, file


def test_a_module_that_was_moved_is_missed(tree):
    (tree / "tune/trials/search.py").rename(tree / "tune/searches.py")
    with pytest.raises(ModuleNotFoundError, match=r"no module tune\.trials\.search in"):
        module_files([TRIALS], root=tree)


def test_machine_code_is_made_anew_when_a_function_in_a_folder_changes(tree):
    half = tree / "data/crystals/half.py"
    append(half, "from data.machine.compiled import compiled\n@compiled\ndef half(x):\n    return x / 2\n")
    append(
        tree / "models/crystals/quarter.py",
        "from data.machine.compiled import compiled\nfrom data.crystals.half import half\n"
        "@compiled\ndef quarter(x):\n    return half(half(x))\n",
    )
    program = "from models.crystals.quarter import quarter; print(quarter(8.0))"
    folders = (tree / "data/machine/__pycache__").glob
    assert output(tree, program) == "2.0\n"
    append(tree / "models/training/train.py", "# compiles nothing\n")
    assert output(tree, program) == "2.0\n"
    assert len(list(folders("compiled-*"))) == 1
    half.write_text(half.read_text().replace("x / 2", "x / 4"))
    assert output(tree, program) == "0.5\n"
    assert len(list(folders("compiled-*"))) == 2
