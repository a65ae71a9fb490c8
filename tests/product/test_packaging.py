"""What is installed: a wheel holds all that the code reads, and pyproject.toml declares all that it imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "models", "tune")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOAD_ALL = """
import tune.spaces.queue_file, tune.spaces.space, tune.pages.report_page, sys
from data.tasks import open_task
from data.stores.places import downloads_folder
from models.crystals.chgnet.anchors import load_anchors
from pathlib import Path
assert Path(tune.spaces.space.__file__).is_relative_to(sys.argv[1]), tune.spaces.space.__file__
names = sorted(file.stem for file in tune.spaces.space.SPACES_FOLDER.glob("*.yaml"))
for name in names:
    queue = "\\nexperiments:" in (tune.spaces.space.SPACES_FOLDER / f"{name}.yaml").read_text()
    (tune.spaces.queue_file.load_queue if queue else tune.spaces.space.load_space)(name)
assert load_anchors("0.3.0").shape == (94,)
assert len(open_task("demo", download_dir=downloads_folder(None))[1]) > 900
assert (Path(tune.pages.report_page.__file__).parent / "report.html").is_file()
from matsweep import load_model, load_sweep
print(*names)
"""


def distribution(requirement: str) -> str:
    """The name of what is required, written as package indexes do."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported_packages() -> dict[str, set[str]]:
    """Other people's packages that the code imports, at a module's top or later, each with the files that do."""
    files: dict[str, set[str]] = {}
    for file in (file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {*PACKAGES}:
                files.setdefault(name, set()).add(str(file.relative_to(REPOSITORY)))
    return files


def test_every_package_that_the_code_imports_is_declared():
    apart = re.search(r"^MATBENCH := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    declared = {distribution(requirement) for requirement in (*PROJECT["dependencies"], apart)}
    known = packages_distributions()
    undeclared = {
        name: files
        for name, files in imported_packages().items()
        if not declared & {distribution(holder) for holder in known.get(name, [name])}
    }
    assert undeclared == {}


def test_the_constraints_have_a_version_of_all_that_is_declared():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {distribution(line) for line in lines if "==" in line}
    extras = PROJECT["optional-dependencies"].values()
    declared = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]
    assert {distribution(requirement) for requirement in declared} - pinned == set()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A folder with what a wheel of the code would put beside the installed packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in (*PACKAGES, "search_spaces", "matsweep"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*build, f"--wheel-dir={folder}", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("matsweep-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def elsewhere(unpacked: Path, folder: Path, *arguments: str) -> str:
    """What Python prints that finds the unpacked wheel and runs in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_every_space_and_queue_and_all_else_that_is_read(unpacked, tmp_path):
    shipped = sorted(file.stem for file in (REPOSITORY / "search_spaces").glob("*.yaml"))
    assert elsewhere(unpacked, tmp_path, "-c", LOAD_ALL, str(unpacked)).split() == shipped


def test_a_wheel_has_every_module_and_no_other(unpacked):
    packages = (*PACKAGES, "matsweep")
    ours = {str(file.relative_to(REPOSITORY)) for name in packages for file in (REPOSITORY / name).rglob("*.py")}
    assert {str(file.relative_to(unpacked)) for file in unpacked.rglob("*.py")} == ours


def test_the_command_of_a_wheel_finds_its_spaces(unpacked, tmp_path):
    said = elsewhere(unpacked, tmp_path, "-m", "tune.run_sweep", "--space", "head_finetune", "--help")
    assert "Usage" in said
