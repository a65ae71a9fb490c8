"""Commands do the same from any folder and in any environment, and what ends them does so in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from marks import whole_only
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from data import build_cache
from data.stores.places import expanded
from data.stores.storage import StorageError, open_folder
from models.registry import open_model
from tune import run_queue, run_sweep
from tune.dataset.parts import ROWS_PER_PART, joined_parts, rows_of_part, write_part
from tune.records.going_on import command_to_go_on

REPOSITORY = Path(__file__).resolve().parents[2]
# Modules of the user's with names like ours, like Python's, and of packages that are imported where they are installed.
NAMES = (
    *("data/__init__", "models/__init__", "tune/__init__", "data/download", "models/model", "tune/runs", "train"),
    *("statistics", "queue", "random", "html", "secrets", "csv", "json", "logging", "uuid"),
    *("ray", "yaml", "torch/__init__", "numpy", "google", "rich", "typer", "tensorflow", "wandb", "usercustomize"),
)
COMMANDS = (
    *("tune/run_sweep.py", "tune/run_queue.py", "tune/compare.py", "tune/ensemble.py", "tune/leaderboard.py"),
    *("tune/report.py", "tune/submit.py", "tune/cluster/spot_watch.py", "models/predict.py", "data/build_cache.py"),
)
NOWHERE = "/proc/nowhere"  # nobody, not even root, can make a folder there


@pytest.fixture
def project(tmp_path) -> Path:
    """Somebody's project, each module of which leaves a mark when it is imported."""
    folder = tmp_path / "project"
    for name in NAMES:
        module = folder / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write(__file__ + chr(10))\n")
    return folder


def run(script: str, *arguments: str, cwd: Path, expect: int = 0, **environment: str) -> str:
    """Run a command and return what it printed."""
    printed = _run(str(REPOSITORY / script), *arguments, cwd=cwd, expect=expect, environment=environment)
    assert "Traceback" not in printed
    return printed


def run_program(program: str, expect: int = 0, **environment: str) -> str:
    """Run lines of Python, which find the project, and return what they printed."""
    return _run("-c", program, cwd=REPOSITORY, expect=expect, environment=environment)


def _run(*arguments: str, cwd: Path, expect: int, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def test_driver_and_workers_import_nothing_of_a_project(project, tmp_path):
    ids = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet", columns=["id"])["id"].iloc[::200]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    places = (f"--ids={tmp_path}/ids.txt", f"--cache={tmp_path}/graphs")
    output = run("data/build_cache.py", *places, cwd=project, PYTHONPATH=f":{project}")
    assert f"demo: {len(ids)} graphs, 0 rows rejected" in output
    assert not (tmp_path / "mark").exists(), (tmp_path / "mark").read_text()


@pytest.mark.parametrize(
    "script",
    [
        "tune/run_queue.py",
        "models/predict.py",
        *whole_only("tune/compare.py", "tune/cluster/spot_watch.py"),
    ],
)
def test_a_command_imports_nothing_of_a_project(project, tmp_path, script):
    assert "Usage" in run(script, "--help", cwd=project, PYTHONPATH=f"{project}:{project}/models")
    assert not (tmp_path / "mark").exists(), (tmp_path / "mark").read_text()


def test_a_model_of_ones_own_finds_what_PYTHONPATH_names(project, tmp_path, monkeypatch):  # noqa: N802
    (project / "layers_of_mine.py").write_text("SIZE = 3\n")
    (project / "my_model.py").write_text(
        "import json\nfrom layers_of_mine import SIZE\nfrom models.crystals.linear import RIDGE as MODEL\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(project))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert open_model(str(project / "my_model.py")).name == str(project / "my_model.py")
    assert not (tmp_path / "mark").exists(), (tmp_path / "mark").read_text()


@pytest.fixture(scope="module")
def finished(ridge_sweep, tmp_path_factory) -> Path:
    """A folder with two finished sweeps, which predict the same, and a crystal."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("a", "b"):
        shutil.copytree(ridge_sweep, folder / "results" / name)
        file = folder / "results" / name / "results.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sweep": name}))
    Structure(Lattice.cubic(4.2), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(folder / "CsCl.cif"))
    return folder


STORAGE = "--storage=results"
WITHOUT_RAY = {
    "compare": ["tune/compare.py", "a", "b", STORAGE],
    "leaderboard": ["tune/leaderboard.py", STORAGE],
    "report": ["tune/report.py", "a", STORAGE],
    "submit": ["tune/submit.py", "a", STORAGE, "--authors=A. Author", "--algorithm=A"],
    "ensemble": ["tune/ensemble.py", "a", "b", STORAGE, "--name=both"],
    "predict": ["models/predict.py", "results/a", "CsCl.cif", "-o", "out.csv"],
}
HELP = {command: [command, "--help"] for command in COMMANDS}


@pytest.mark.whole
@pytest.mark.parametrize("command", [*WITHOUT_RAY, *whole_only(*HELP)])
def test_a_command_that_starts_no_ray_leaves_nothing_in_the_home_but_the_cache(finished, tmp_path, command):
    own = {"HOME": str(tmp_path), "MATSWEEP_CACHE": "", "MPLCONFIGDIR": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    run(
        *(WITHOUT_RAY | HELP)[command], cwd=finished, expect=command == "submit", **own
    )  # the demo is no task of Matbench
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".cache/matsweep" not in str(path)] == []
    assert {path.name for path in tmp_path.iterdir()} <= {".cache"}


@pytest.mark.parametrize("cache", [NOWHERE, "a folder"])
def test_kernels_are_compiled_where_nothing_can_be_written(tmp_path, cache):
    cache = str(tmp_path) if cache == "a folder" else cache
    program = "import numpy as np; from data.machine.compiled import longer; print(longer(np.ones((1, 2)), 3).shape)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "NUMBA_CACHE_DIR": NOWHERE, "MATSWEEP_CACHE": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "(3, 2)\n"
    if cache == NOWHERE:
        assert done.stderr.count("\n") == 1
        assert "Set MATSWEEP_CACHE to a folder" in done.stderr
    else:
        assert done.stderr == ""
        assert list(tmp_path.glob("kernels/**/*.nbi"))


def test_a_read_only_installation_without_a_home_has_its_networks_all_the_same(tmp_path):
    """Nowhere can machine code be kept: beside the source a disk lies that is read-only."""
    if os.geteuid():
        pytest.skip("mounting a disk is not permitted here")
    beside = REPOSITORY / "data/machine/__pycache__"
    mount = f"mkdir -p {beside} && mount -t tmpfs -o ro tmpfs {beside} && "
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} exec {sys.executable} -c 'import models.crystals.chgnet.model'"],
        cwd=REPOSITORY,
        env={**os.environ, "HOME": NOWHERE, "MATSWEEP_CACHE": "", "NUMBA_CACHE_DIR": "", "MPLCONFIGDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if "unshare" in done.stdout or "mount" in done.stdout:
        pytest.skip(f"mounting a disk is not permitted here: {done.stdout}")
    assert done.returncode == 0, done.stdout
    assert "every process compiles the kernels for itself" in done.stdout


@pytest.mark.parametrize("command", [build_cache, run_sweep, run_queue], ids=lambda module: module.__name__)
def test_a_home_that_is_not_known_is_said_to_be(command):
    done = CliRunner().invoke(command.app, ["--task=~nobody-of-this-name/x"])
    assert done.exit_code == 1, done.output
    assert "StorageError: ~nobody-of-this-name/x: this system knows no home of ~nobody-of-this-name." in done.output
    with pytest.raises(StorageError, match="knows no home"):
        open_folder("~nobody-of-this-name/x")
    assert expanded("./~x") == Path("~x")


def test_a_folder_that_cannot_be_written_to_is_named_with_the_remedy(tmp_path):
    output = run("data/build_cache.py", cwd=tmp_path, expect=1, MATSWEEP_CACHE=NOWHERE)
    assert f"StorageError: no graphs can be kept in {NOWHERE}/graphs" in output
    assert "by --cache or in MATSWEEP_CACHE" in output


@pytest.fixture
def silent_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("by", ["--address", "RAY_ADDRESS"])
def test_a_cluster_that_does_not_answer_is_named_with_the_remedy(tmp_path, silent_port, monkeypatch, by):
    monkeypatch.setenv("RAY_py_gcs_connect_timeout_s", "2")  # of the 30 that Ray waits by itself
    place = f"127.0.0.1:{silent_port}"
    given = {"RAY_ADDRESS": place} if by == "RAY_ADDRESS" else {}
    output = run("data/build_cache.py", f"--address={'auto' if given else place}", cwd=tmp_path, expect=1, **given)
    *_, about_the_task, sentence = output.splitlines()
    assert "prototypes" in about_the_task
    assert sentence.startswith("ConnectionError: ")
    assert f":{silent_port}" in sentence
    assert ("correct or unset RAY_ADDRESS" if given else "correct the address") in sentence


def test_without_an_address_RAY_ADDRESS_and_a_proxy_are_no_matter(project, tmp_path, silent_port):  # noqa: N802
    (tmp_path / "ids.txt").write_text(str(pd.read_parquet(REPOSITORY / "data/demo/demo.parquet")["id"].iloc[0]))
    proxy = {f"{name}_proxy": f"http://127.0.0.1:{silent_port}" for name in ("http", "https", "all")}
    places = (f"--ids={tmp_path}/ids.txt", f"--cache={tmp_path}/graphs")
    output = run("data/build_cache.py", *places, cwd=project, RAY_ADDRESS=f"127.0.0.1:{silent_port}", **proxy)
    assert "demo: 1 graphs, 0 rows rejected" in output


def test_a_limit_under_which_ray_cannot_start_is_named():
    program = (
        "import os, resource\nfrom data.machine.console import say_problem\n"
        "from data.machine.ray_session import connect\n"
        "if not os.geteuid(): os.setuid(65534)\nresource.setrlimit(resource.RLIMIT_NPROC, (30, 30))\n"
        "try: connect()\nexcept Exception as problem: say_problem(problem)"
    )
    output = run_program(program)
    assert "have 30 processes and threads. Raise the limit, as" in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("mask", ["777", "277"])
def test_who_makes_files_that_he_cannot_use_ends_before_anything_is_imported(mask):
    """For where there is no home, Matplotlib makes a folder for its fonts, cannot use it and ends with a traceback."""
    program = (
        "import os\nfrom data.machine.import_path import own_first\n"
        f"if not os.geteuid(): os.setuid(65534)\nos.umask(0o{mask})\nown_first()"
    )
    output = run_program(program, expect=1)
    assert output == f"umask {mask} has you make files that you cannot use. Give `umask 022` before\n"


def test_a_temporary_folder_that_cannot_be_written_to_is_named_with_the_remedy(tmp_path):
    output = run("data/build_cache.py", f"--cache={tmp_path}", cwd=tmp_path, expect=1, RAY_TMPDIR=NOWHERE)
    assert f"\nStorageError: Ray can keep no logs and sockets in the temporary folder {NOWHERE}/ray: " in output
    assert "Set RAY_TMPDIR or TMPDIR to a folder" in output


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_without_room_is_named_with_the_remedy(tmp_path, disk_of, variable):
    """Ray would start there, lose its workers within seconds, and say that something had no space."""
    disk = disk_of("100k")
    output = run("data/build_cache.py", f"--cache={tmp_path}/graphs", cwd=tmp_path, expect=1, **{variable: str(disk)})
    sentence = output.splitlines()[-1]
    assert sentence.startswith(f"StorageError: the temporary folder {disk}/ray has 0.1 MiB left")
    assert "set RAY_TMPDIR or TMPDIR to a folder on another disk" in sentence


def test_a_cache_that_cannot_be_written_to_is_refused_before_a_sweep_begins(ray_session, tmp_path):
    """Of a model that reads compositions as well: those of structures are read from their graphs."""
    done = CliRunner().invoke(
        run_sweep.app, ["--space=ridge", f"--cache={NOWHERE}", "--name=x", f"--storage={tmp_path}/results"]
    )
    assert done.exit_code == 1
    assert f"StorageError: --cache {NOWHERE}: nothing can be written there" in done.output
    assert not (tmp_path / "results/x").exists()


ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_are_read_as_utf_8_in_any_locale(tmp_path):
    output = run("tune/compare.py", "é", "ü", f"--storage={tmp_path}/ö", cwd=tmp_path, expect=1, **ASCII)
    assert f"{tmp_path}/ö" in output
    with pytest.raises(StorageError, match="not in UTF-8"):
        open_folder(os.fsdecode(b"a\xff"))


def test_letters_that_the_output_lacks_are_written_as_codes():
    program = "from data.machine.import_path import own_first; own_first(); print('é and Ω')"
    assert run_program(program, PYTHONIOENCODING="ascii") == "\\xe9 and \\u03a9\n"


def test_a_python_without_docstrings_is_refused_in_a_sentence(tmp_path):
    output = run("tune/run_sweep.py", "--help", cwd=tmp_path, expect=1, PYTHONOPTIMIZE="2")
    assert output == "Ray does not run without docstrings: unset PYTHONOPTIMIZE, or leave out -OO\n"


def test_the_command_to_go_on_has_all_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_to_go_on("ray_results", "x") == "python tune/run_sweep.py --resume x"
    assert command_to_go_on(f"{tmp_path}/ray_results", "x") == "python tune/run_sweep.py --resume x"
    assert command_to_go_on("s3://b/r", "a b", "auto").endswith("--resume 'a b' --storage s3://b/r --address auto")


def test_no_more_parts_are_computed_at_once_than_trials_run(ray_session, tmp_path):
    n_rows = 4 * ROWS_PER_PART

    @ray.remote(num_cpus=0)
    def part(number):
        began = time.monotonic()
        time.sleep(0.1)
        write_part(*open_folder(tmp_path), "times", number, {"times": np.array([began, time.monotonic()])})

    def times_of(parts):
        return np.concatenate([arrays["times"] for _, arrays in parts])

    times = joined_parts("times", "times", n_rows, str(tmp_path), part.remote, times_of, at_once=1)
    assert len(times) == 2 * len({tuple(rows_of_part(n_rows, k)) for k in range(4)})
    np.testing.assert_array_equal(times, np.sort(times))
