"""The layout that the code keeps to: who may import whom, and what a file or folder may be called."""

import ast
import importlib.util
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["data", "models", "tune"]  # each may import those before it
OUTSIDE = ["tests", "benchmarks"]  # these may import anything
RAY_OUTSIDE_TUNE = {"data/crystals/graph_cache.py", "data/machine/ray_internals.py", "data/machine/ray_session.py"}
BANNED_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers"}

FILES = sorted(
    path.relative_to(ROOT).as_posix() for folder in ORDER + OUTSIDE for path in (ROOT / folder).rglob("*.py")
)


def imported(tree: ast.AST, path: str) -> set[str]:
    """Every module that a file imports: `a.b` for `from a import b`, and relative ones made absolute."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def faults(path: str, text: str) -> list[str]:
    """What a file at this path, with this text, does against the layout."""
    found = []
    folder = path.split("/")[0]
    tree = ast.parse(text, path)
    names = imported(tree, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ray" and not node.level:
            found += ["from ray import tune" for alias in node.names if alias.name == "tune"]
    if BANNED_NAMES & set(Path(path).with_suffix("").parts):
        found.append("a name that says nothing")
    if folder in OUTSIDE:
        return found
    roots = {name.split(".")[0] for name in names}
    found += [f"imports {later}" for later in ORDER[ORDER.index(folder) + 1 :] if later in roots]
    found += [f"imports {outside}" for outside in OUTSIDE if outside in roots]
    if "ray" in roots and folder != "tune" and path not in RAY_OUTSIDE_TUNE:
        found.append("imports ray")
    return found


def test_there_is_something_to_check():
    assert {path.split("/")[0] for path in FILES} >= {*ORDER, "tests"}


@pytest.mark.parametrize("path", FILES)
def test_file_keeps_to_the_layout(path):
    assert faults(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("data/crystals/rows.py", "import models", "imports models"),
        ("data/crystals/rows.py", "from models.crystals.chgnet.network import CHGNet", "imports models"),
        ("data/demo/make.py", "def f():\n    import tune.spaces.space", "imports tune"),
        ("data/demo/make.py", "from ...tune import space", "imports tune"),
        ("models/crystals/chgnet/network.py", "from tune import space", "imports tune"),
        ("models/crystals/chgnet/network.py", "import tests.test_layout", "imports tests"),
        ("models/crystals/chgnet/network.py", "import ray", "imports ray"),
        ("data/crystals/rows.py", "from ray.util import queue", "imports ray"),
        ("tune/trials/trial.py", "from ray import tune", "from ray import tune"),
        ("tune/trials/trial.py", "from ray import train, tune as t", "from ray import tune"),
        ("tests/test_trial.py", "from ray import tune", "from ray import tune"),
        ("tune/utils.py", "", "a name that says nothing"),
        ("data/helpers/rows.py", "", "a name that says nothing"),
    ],
)
def test_a_fault_is_found(path, text, fault):
    assert fault in faults(path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tune/trials/trial.py", "import ray.tune\nfrom data.crystals.rows import Rows\nfrom models import chgnet"),
        (
            "models/crystals/chgnet/network.py",
            "import data\nimport raytracer\nfrom . import a\nfrom .a import tune",
        ),
        ("data/crystals/graph_cache.py", "import ray"),
        ("data/crystals/rows.py", "from .graphs import Graph\nfrom data import graphs"),
        ("tests/test_trial.py", "import ray\nimport tune.trials.trial"),
    ],
)
def test_what_is_allowed_is_not_a_fault(path, text):
    assert faults(path, text) == []


# A script puts its own folder first on `sys.path`, and pytest does so with that of a test file and of conftest.py.
ON_THE_PATH = sorted(
    {
        *(ROOT / folder for folder in (*ORDER, "benchmarks", "docs", "tests")),
        *(file.parent for file in (ROOT / "tests").rglob("*.py")),
    }
)
NOBODY_IMPORTS = {"demo"}  # examples that a dependency of Matbench has installed by mistake


@pytest.mark.parametrize("folder", ON_THE_PATH, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_nothing_hides_a_module_of_python_or_of_an_installed_package(folder):
    taken = sys.stdlib_module_names | packages_distributions().keys() - NOBODY_IMPORTS
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & taken == set()


NAMES_OF_A_FAMILY = re.compile(r"(data|models)\.crystals\.|^(chgnet|freeze_depth|undo_mp2020|unfreeze_every)$")


def test_a_sweep_names_no_model_and_no_family():
    knowing = set()
    for path in FILES:
        if not path.startswith("tune/"):
            continue
        tree = ast.parse((ROOT / path).read_text())
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if any(NAMES_OF_A_FAMILY.search(word) for word in modules | texts | {name.lower() for name in names}):
            knowing.add(path)
    assert knowing == set()


@pytest.fixture(scope="module")
def drawn():
    """`docs/imports.py`, which draws who imports whom."""
    spec = importlib.util.spec_from_file_location("drawn_imports", ROOT / "docs/imports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_room_imports_itself_through_others(drawn):
    graph = drawn.imports()
    assert {"data/crystals", "models/training", "tune/trials", "models/model.py"} <= graph.keys()
    assert [room for room in graph if room in drawn.reachable(graph, room)] == []


def test_the_picture_of_imports_is_that_of_the_code(drawn):
    assert drawn.BEGIN + drawn.picture(drawn.imports()) + drawn.END in drawn.PAGE.read_text()
