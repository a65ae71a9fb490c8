"""What one more trial costs the driver of a sweep: time, memory and files at 10, 100 and 1,000 trials.

    make bench-trials

Trials are ridge regressions of a few milliseconds on the demo's compositions, so that what is left is the cost of
Ray Tune, of the sampler, and of what a sweep writes and reads of each trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import psutil
import typer
from pyarrow import fs

from data.stores.storage import write_whole
from tune.records.code_record import run_record

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "trials.json"
TRIALS = (10, 100, 1000)
SPACE = "model: ridge\nparameters:\n  alpha: {loguniform: [0.000001, 1000]}\n"


@dataclass(frozen=True)
class Measured:
    """A whole sweep of so many trials.

    Attributes:
        trials: of the search.
        seconds: from the command to its end.
        search_seconds: of the search alone.
        most_bytes: the largest resident memory of the driver.
        files, file_bytes: in the sweep's folder at the end.
    """

    trials: int
    seconds: float
    search_seconds: float
    most_bytes: int
    files: int
    file_bytes: int


def measure(n_trials: int, folder: Path) -> Measured:
    """Run the sweep as a user does."""
    began = time.monotonic()
    driver = subprocess.Popen(
        [
            sys.executable, "tune/run_sweep.py", f"--space={folder}/ridge.yaml", f"--task={folder}/compositions.csv",
            f"--num-samples={n_trials}", f"--storage={folder}/results", f"--name=trials_{n_trials}", "--folds=0",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "MATSWEEP_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    process, most = psutil.Process(driver.pid), 0
    first = last = None
    assert driver.stdout is not None
    for line in driver.stdout:  # a line a trial
        now = time.monotonic()
        if line.startswith("  search fold 0: "):
            first, last = first or now, now
            most = max(most, process.memory_info().rss)
    if driver.wait() or first is None or last is None:
        raise SystemExit(f"the sweep of {n_trials} trials failed")
    took = time.monotonic() - began
    files = [path for path in (folder / f"results/trials_{n_trials}").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Measured(n_trials, took, last - first, most, len(files), size)


def table(results: dict[str, Any]) -> str:
    """A markdown table."""
    lines = ["| trials | whole command | search, a trial | driver's memory | files a trial | bytes a trial |"]
    lines.append(f"|{'---|' * 6}")
    for row in results["measured"]:
        n = row["trials"]
        cells = [
            f"{n:,}", f"{row['seconds']:.0f} s", f"{1000 * row['search_seconds'] / (n - 1):.0f} ms",
            f"{row['most_bytes'] / 1e6:.0f} MB", f"{row['files'] / n:.1f}", f"{row['file_bytes'] / n / 1000:.1f} kB",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    most: Annotated[int, typer.Option(min=10, help="Trials of the largest sweep.")] = TRIALS[-1],
    results: Annotated[Path, typer.Option(help="Where the results of this run are written.")] = RESULTS,
) -> None:
    """Show what a trial costs the driver, in sweeps of more and more trials."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="trials-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        (folder / "ridge.yaml").write_text(SPACE)
        demo = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet")
        demo[["formula", "e_form"]].to_csv(folder / "compositions.csv", index=False)
        measured = [asdict(measure(n_trials, folder)) for n_trials in TRIALS if n_trials <= most]
    about = {
        **run_record(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }
    found = {"about": about, "measured": measured}
    write_whole(fs.LocalFileSystem(), str(results.resolve()), json.dumps(found, indent=1).encode())
    print(table(found))


if __name__ == "__main__":
    typer.run(main)
