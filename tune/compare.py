"""Compare two finished sweeps on the rows that both predicted: is B better than A, and how sure is that?

    python tune/compare.py RUN_A RUN_B
    python tune/compare.py RUN_A RUN_B --on validation --noise RUN

A run is a name in `ray_results/` or a path; `NAME/seed_1`, `NAME/ensemble` and `NAME/reference` are one member of it. A
run with several seeds is judged by the mean error of its seeds, not by their ensemble, so that like is compared with
like. The statistics are `tune/analysis/paired.py` and `tune/analysis/verdict.py`. Writes `compare.md`,
`differences.csv` and `curves.png`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.machine.import_path import own_first

    own_first()

from typing import Annotated

import typer

from data.machine.command_line import command
from tune.arguments import STORAGE, On


def main(
    run_a: Annotated[str, typer.Argument(help="A finished sweep: NAME or a path; NAME/seed_1 for one member.")],
    run_b: Annotated[str, typer.Argument(help="The one that is judged against it.")],
    noise: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run with several seeds: measures what the seed alone does.")
    ] = None,
    on: Annotated[On, typer.Option(help="Parts to compare: `test` (to report) or `validation` (to choose).")] = "test",
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where to write. Default: compare-A-B in --storage.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Where names are looked up: a folder, s3://..., gs://...")] = STORAGE,
) -> None:
    """Compare two finished sweeps on the rows that both predicted, and say which is better, if any is."""
    from tune.analysis.comparison import compare
    from tune.pages.comparison_page import write_comparison
    from tune.runs import load_sweep

    a, b = load_sweep(run_a, storage), load_sweep(run_b, storage)
    comparison = compare(a, b, None if noise is None else load_sweep(noise, storage), on)
    folder = out or f"{storage}/compare-{a.name.replace('/', '-')}-{b.name.replace('/', '-')}"
    typer.echo(write_comparison(comparison, folder))
    typer.echo(f"Written to {folder}: compare.md, differences.csv, curves.png")


app = command(main)

if __name__ == "__main__":
    app()
