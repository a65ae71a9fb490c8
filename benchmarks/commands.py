"""How long a user waits for a command: for its help, for twenty predictions, and for the first trial of a sweep.

    make bench-commands

Seconds are those of the clock, and of the command's own process on a core: where the machine is busy with other things,
the second say more. The sweep is that of `make sweep`, ended when its first epoch is there; before it one runs whose
caches are empty, of graphs and of compiled kernels.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pyarrow import fs
from pymatgen.core import Structure

from data.stores.storage import write_whole
from data.tasks import open_task
from tune.records.code_record import run_record

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "commands.json"
COMMANDS = (
    *("tune/run_sweep.py", "tune/run_queue.py", "tune/compare.py", "tune/ensemble.py", "tune/leaderboard.py"),
    *("tune/report.py", "tune/submit.py", "models/predict.py", "data/build_cache.py"),
)
CRYSTALS = 20
LONGEST_S = 600.0  # that a sweep may take to its first epoch


@dataclass(frozen=True)
class Wait:
    """How long a user waits for something.

    Attributes:
        what: the command and how far it came.
        seconds: by the clock.
        core_seconds: of the command's own process; None where it started others that are part of the wait.
    """

    what: str
    seconds: float
    core_seconds: float | None


def timed(what: str, *arguments: str, environment: dict[str, str], repeats: int) -> Wait:
    """Run a command to its end several times; the fastest of them."""
    costs = []
    for _ in range(repeats):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, *arguments]
        process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed: {process.stderr}")
        costs.append((seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    seconds, on_a_core = min(costs)
    return Wait(what, seconds, on_a_core)


def first_trial(how: str, folder: Path, environment: dict[str, str]) -> list[Wait]:
    """Begin `make sweep`, and end it when a trial has trained for an epoch."""
    results, began = folder / f"results {how}", time.monotonic()
    command = [sys.executable, "tune/run_sweep.py", f"--storage={results}", "--name=first", "--quiet"]
    sweep = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    waits = []
    for what, pattern in (("the first trial begins", "trial_*"), ("its first epoch is there", "trial_*/checkpoint_*")):
        while not any((results / "first/search_fold_0").glob(pattern)):
            if sweep.poll() is not None or time.monotonic() - began > LONGEST_S:
                sweep.terminate()
                raise SystemExit(f"the sweep ended before {what}")
            time.sleep(0.05)
        waits.append(Wait(f"sweep, {how}: {what}", time.monotonic() - began, None))
    sweep.terminate()
    sweep.wait()
    return waits


def crystal_files(folder: Path) -> list[str]:
    """CIF files of crystals of the demo."""
    _, rows = open_task("demo", download_dir=folder)
    files = []
    for number, crystal in enumerate(list(rows.chunk(0, len(rows)).crystals())[:: len(rows) // CRYSTALS][:CRYSTALS]):
        files.append(f"{folder}/{number}.cif")
        Structure(crystal.lattice, crystal.numbers, crystal.frac_coords).to(files[-1])
    return files


def a_model(folder: Path, environment: dict[str, str]) -> str:
    """The folder of a sweep that trains nothing, whose model CHGNet itself is, with a reference."""
    command = [sys.executable, "tune/run_sweep.py", "--space=pretrained", "--folds=0", "--name=model"]
    command += [f"--storage={folder}/results", "--quiet"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return f"{folder}/results/model/reference/model_fold_0.pth"


def table(results: dict[str, Any]) -> str:
    """A markdown table."""
    lines = ["| wait | seconds | of a core |", "|---|---|---|"]
    for row in results["waits"]:
        on_a_core = "" if row["core_seconds"] is None else f"{row['core_seconds']:.2f}"
        lines.append(f"| {row['what']} | {row['seconds']:.2f} | {on_a_core} |")
    return "\n".join(lines)


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of a command, of which the fastest counts.")] = 3,
    results: Annotated[Path, typer.Option(help="Where the results of this run are written.")] = RESULTS,
) -> None:
    """Show how long a user waits for commands."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="commands-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        own = {**os.environ, "MATSWEEP_CACHE": f"{place}/cache", "NUMBA_CACHE_DIR": f"{place}/kernels"}
        waits = [timed(f"{name} --help", name, "--help", environment=own, repeats=repeats) for name in COMMANDS]
        waits += first_trial("without caches", folder, own)
        waits += first_trial("with caches", folder, own)
        model, files = a_model(folder, own), crystal_files(folder)
        what = f"models/predict.py of {CRYSTALS} CIFs"
        waits.append(timed(what, "models/predict.py", model, *files, environment=own, repeats=repeats))
    about = {
        **run_record(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }
    content = {"about": about, "waits": [asdict(wait) for wait in waits]}
    write_whole(fs.LocalFileSystem(), str(results.resolve()), json.dumps(content, indent=1).encode())
    print(table(content))


if __name__ == "__main__":
    typer.run(main)
