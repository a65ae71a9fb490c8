"""Records the code, the libraries and the machine of a run."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "ray",
    "chgnet",
    "pymatgen",
    "matbench",
    "optuna",
    "pandas",
    "pyarrow",
    "numpy",
    "numba",
)


# Modules here that make what a trial is given, or are the trial.
TRAINING = ("corrections", "dataset", "features", "merged", "parts", "scheduler", "search", "searcher", "trial")


def run_record(model: str = "") -> dict[str, Any]:
    """Code version, library versions and machine, for the record of a run of a model."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "code_sha256": code_sha256(model),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in LIBRARIES},
    }


def code_sha256(model: str = "") -> str:
    """Hash of the code that decides what a trial computes: two trainings with the same one can be compared.

    Args:
        model: of the registry; or the file of one's own, which counts too.
    """
    root = Path(__file__).resolve().parent.parent
    files = [*root.glob("data/*.py"), *root.glob("models/*.py"), *(root / f"tune/{name}.py" for name in TRAINING)]
    content = [f"{file.relative_to(root)}\n".encode() + file.read_bytes() for file in sorted(files)]
    if model.endswith(".py"):
        content.append(Path(model).read_bytes())
    return hashlib.sha256(b"\n".join(content)).hexdigest()


def git_commit() -> str:
    """Commit of the code, marked when there are changes on top; says so where git cannot tell."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return run.stdout.strip()
