"""Records the code, the libraries and the machine of a run."""

from __future__ import annotations

import hashlib
import itertools
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import families
from data.machine.import_path import ROOT
from data.machine.module_files import module_files
from models.registry import FAMILIES, MODELS, PACKAGES

LIBRARIES = ("torch", "ray", "optuna", "pandas", "pyarrow", "numpy", "numba")  # and those that families name

# What trials are made and run by: all that it imports, directly or not, can change a number of theirs.
TRIALS = "tune.trials.search"
# But for these, which only tell people what happens, or record it.
TELLING = (
    "data.machine.console",
    "tune.records.code_record",
    "tune.records.going_on",
    "tune.trials.progress",
    "tune.trials.terminal",
    "tune.trials.tracking",
)


def run_record(model: str = "") -> dict[str, Any]:
    """Code version, library versions and machine, for the record of a run of a model."""
    libraries = (*LIBRARIES, *itertools.chain(*PACKAGES.values()))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "code_sha256": code_sha256(model),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in libraries},
    }


def code_sha256(model: str = "") -> str:
    """Hash of the code that decides what a trial computes: two trainings with the same one can be compared.

    It counts source files whole, comments included: the same bytes give the same hash on any machine and Python. A file
    that is no Python counts if it lies beside a module that names it, as `anchors.json` does. The rows of a task do
    not: their hash stands beside this one in a sweep's record.

    Args:
        model: of the registry; or the file of one's own, which counts too.
    """
    files = []
    # Models and families are imported when they are asked for, by names that no import statement tells.
    by_name = {*(module for module, _ in MODELS.values()), *FAMILIES.values(), *families.FAMILIES.values()}
    for module in module_files([TRIALS, *by_name], leave_out=TELLING):
        source = module.read_bytes()
        beside = (file for file in module.parent.iterdir() if file.suffix != ".py" and file.is_file())
        files += [module, *(file for file in beside if file.name.encode() in source)]
    content = [f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes() for file in sorted(set(files))]
    if model.endswith(".py"):
        content.append(Path(model).read_bytes())
    return hashlib.sha256(b"\n".join(content)).hexdigest()


def git_commit() -> str:
    """Commit of the code, marked when there are changes on top; says so where git cannot tell."""
    own_folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=own_folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return run.stdout.strip()
