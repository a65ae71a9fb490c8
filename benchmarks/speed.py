"""Time this code and stock chgnet side by side on the same structures, on one core, and check that they agree.

    make bench
    python -m benchmarks.speed --only inference --repeats 9
    python -m benchmarks.speed --table
    python -m benchmarks.speed --device cuda    # what a network does, on a GPU; to benchmarks/results-cuda.json

What is compared is in `benchmarks/work.py`, on what and how in `benchmarks/cases.py`. With the shared file of
995 Materials Project structures it uses these, else the embedded demo's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pyarrow import fs
from rich.console import Console

from benchmarks.cases import SHARED_FILE, BenchmarkError, described, measure, structure_sets
from benchmarks.work import WORK
from data.machine.allocator import keep_freed_memory
from data.stores.storage import write_whole
from models.device import device_name
from tune.records.code_record import run_record

RESULTS = Path(__file__).parent / "results.json"
console = Console(stderr=True, highlight=False, soft_wrap=True)


def run(
    only: str, repeats: int, structures: int | None, folder: Path, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure every row whose work contains `only`; files go to `folder`.

    Returns:
        The rows, and what they were measured with and on.

    Raises:
        BenchmarkError: no such work, or the two sides did not compute the same.
    """
    keep_freed_memory()  # both sides profit
    torch.set_num_threads(1)
    if not SHARED_FILE.exists():
        console.print(f"no {SHARED_FILE.name} in ../shared/data: using the structures of the embedded demo")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"this machine is busy (load average {load:.1f}): times come out long, ratios less certain")
    sets, algorithms = structure_sets(structures, folder, device)
    rows = []
    for work in WORK:
        if only not in work.name or (device.type != "cpu" and not work.of_network):
            continue
        if work.whole_run and cores < 2:
            console.print(f"left out, for it needs two cores: {work.name}")
            continue
        for letter in work.sets:
            rows.append(measure(work, sets[letter], repeats))
            console.print(_line(rows[-1]))
    if not rows:
        raise BenchmarkError(f"--only {only!r} fits none of: " + "; ".join(work.name for work in WORK))
    used = [one for letter, one in sets.items() if any(row["structures"] == letter for row in rows)]
    about = {
        **run_record(),
        "processor": _processor(),
        "device": device_name(device),
        "cores": cores,
        "threads": 1,
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "repeats": repeats,
        "structures": {one.name: described(one) for one in used},
        "stock_converter_us": algorithms,
    }
    return rows, about


def _processor() -> str:
    """Model of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _line(row: dict[str, Any]) -> str:
    """A row as it is shown while others run."""
    apart = f", differing by up to {row['max_abs_difference']:.1g}" if row.get("max_abs_difference") else ""
    return (
        f"{row['work']} on {row['structures']} (n={row['n']}): {_quantity(row['stock'], row['unit'])} -> "
        f"{_quantity(row['ours'], row['unit'])}, {_figures(row['ratio'])}x{apart}"
    )


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The rows as a markdown table: numbers of the first set of each work, and the ratios of the others."""
    by_work: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_work.setdefault(row["work"], {})[row["structures"]] = row
    others = sorted({letter for of_sets in by_work.values() for letter in list(of_sets)[1:]})
    header = ["work", "stock", "ours", "ratio", *(f"ratio on {letter}" for letter in others)]
    lines = [header, ["---"] * len(header)]
    for work, of_sets in by_work.items():
        first = next(iter(of_sets.values()))
        cells = [_quantity(first["stock"], first["unit"]), _quantity(first["ours"], first["unit"])]
        ratios = [_figures(of_sets[letter]["ratio"]) if letter in of_sets else "-" for letter in others]
        lines.append([work, *cells, _figures(first["ratio"]), *ratios])
    sets = [f"{letter}: {what}." for letter, what in about["structures"].items()]
    return "\n".join([f"| {' | '.join(line)} |" for line in lines] + ["", *sets])


def _quantity(value: float, unit: str) -> str:
    return f"{_figures(value)} {unit}"


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def main(
    only: Annotated[str, typer.Option(help="Measure only work whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of measurements of each row.")] = 5,
    structures: Annotated[
        int | None, typer.Option(min=2, help="At most so many structures in each set. Default: all.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="For the networks of both sides; with `cuda` nothing else is measured."),
    ] = "cpu",
    results: Annotated[
        Path | None,
        typer.Option(
            help="Where the rows are written; machine, versions and structures to NAME.about.json. "
            "Default: benchmarks/results.json, or results-cuda.json."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--table", help="Measure nothing; print the table of the results.")] = False,
) -> None:
    """Time this code and stock chgnet in turns on the same structures, on one core, and check that they agree."""
    results = results or RESULTS.with_stem("results" if device == "cpu" else f"results-{device}")
    about = results.with_suffix(".about.json")
    try:
        if device == "cuda" and not torch.cuda.is_available():
            raise BenchmarkError(f"torch {torch.__version__} finds no GPU")
        if not show:
            with tempfile.TemporaryDirectory() as folder:
                found = run(only, repeats, structures, Path(folder), torch.device(device))
            for file, content in zip((results, about), found, strict=True):
                write_whole(fs.LocalFileSystem(), str(file.resolve()), json.dumps(content, indent=1).encode())
        elif not results.exists() or not about.exists():
            raise BenchmarkError(f"no {results} with its {about.name}: measure first, without --table")
        print(table(json.loads(results.read_text()), json.loads(about.read_text())))
    except BenchmarkError as problem:
        console.print(f"{type(problem).__name__}: {problem}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
