"""Sweeps of a part of the demo as a user starts them, and what must be equal however one came to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from typer.testing import CliRunner

from tune.run_sweep import app

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "data/demo/demo.parquet"


def prepare(folder: Path, every: int, **spaces: str) -> Path:
    """Write spaces, by name, and `ids.txt`: those of every so many crystals of the demo."""
    for name, content in spaces.items():
        (folder / f"{name}.yaml").write_text(content)
    (folder / "ids.txt").write_text("\n".join(pd.read_parquet(DEMO, columns=["id"])["id"].iloc[::every]))
    return folder


def new(folder: Path, name: str, space: str = "small") -> list[str]:
    """Arguments of a new sweep with one trial at a time, so that their order is the same every time."""
    return [f"--space={folder}/{space}.yaml", f"--ids={folder}/ids.txt", f"--name={name}", "--max-concurrent=1"]


def command(folder: Path, *arguments: str) -> list[str]:
    """The command line of a sweep whose results are under `folder`, unless the arguments say otherwise."""
    return [sys.executable, str(REPOSITORY / "tune/run_sweep.py"), f"--storage={folder}/results", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Caches of its own, so that no test meets what another run has left."""
    return {**os.environ, "MATSWEEP_CACHE": str(folder / "cache")}


def start(folder: Path, log: Path, *arguments: str, **more: str) -> subprocess.Popen:
    """Begin a sweep that can be stopped; it runs in `folder` and what it prints goes to a file."""
    with log.open("w") as stream:
        return subprocess.Popen(
            command(folder, *arguments),
            cwd=folder,
            env=environment(folder) | more,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A test run in the background ignores Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        )


def run(folder: Path, *arguments: str, expect: int = 0, **more: str) -> str:
    """Run a sweep in `folder` to its end and return what it printed."""
    done = subprocess.run(
        command(folder, *arguments),
        cwd=folder,
        env=environment(folder) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def run_here(folder: Path, *arguments: str, expect: int = 0) -> str:
    """The same in this process, which spares the start of Python, its libraries and Ray."""
    done = CliRunner().invoke(app, command(folder, *arguments)[2:], env=environment(folder))
    assert done.exit_code == expect, done.output
    assert "Traceback" not in done.output
    return done.output


def outcome(results: str | bytes) -> dict[str, Any]:
    """Trials, choice and scores of a results.json; a trial that was begun anew has another id and took another time."""
    found = json.loads(results)
    other_each_time = {"trial": "", "seconds": 0}
    return {
        "trials": [trial | other_each_time for trial in found["trials"]],
        "chosen": found["chosen"],
        "seeds": found["seeds"],
    }
