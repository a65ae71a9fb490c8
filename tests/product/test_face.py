"""`matsweep`, the face for other people's code: it gives what it says, and says which folder hides its packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from marks import whole_only
from sweeps import REPOSITORY


def python(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder of a user's, where matsweep is installed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_gives_what_the_docs_import(tmp_path):
    program = "from matsweep import EnergyCalculator, load_model, load_sweep\n"
    program += "print(EnergyCalculator.__name__, load_model.__name__, load_sweep.__name__)"
    done = python(tmp_path, program)
    assert done.stdout == "EnergyCalculator load_model load_sweep\n", done.stderr


def test_it_imports_nothing_heavy_by_itself(tmp_path):
    done = python(tmp_path, "import sys, matsweep; print({'torch', 'ray', 'pandas', 'numpy'} & sys.modules.keys())")
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("package", "data"), ("module", "tune"), ("folder", "models")),
        *whole_only(("package", "models"), ("package", "tune"), ("module", "data"), ("module", "models")),
        *whole_only(("folder", "data"), ("folder", "tune")),
    ],
)
def test_a_namesake_of_the_users_is_named(tmp_path, name, kind):
    if kind == "module":
        (tmp_path / f"{name}.py").write_text("")
    else:
        (tmp_path / name).mkdir()
        if kind == "package":
            (tmp_path / name / "__init__.py").write_text("")
    done = python(tmp_path, "import matsweep; matsweep.load_model")
    if kind == "folder":  # Python prefers a real package anywhere to a folder without __init__.py
        assert done.returncode == 0, done.stderr
        return
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f"ImportError: {tmp_path.resolve() / name}")
    assert f"matsweep's own package '{name}'" in sentence
    assert "rename yours" in sentence


def test_an_attribute_that_it_lacks_is_named(tmp_path):
    done = python(tmp_path, "import matsweep; matsweep.load_modle")
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("AttributeError: module 'matsweep' has no attribute 'load_modle'; it has")
    assert "load_model" in sentence
