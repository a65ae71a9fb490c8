"""One page that shows a finished sweep: figures, tables and what one sees in them, in a file that needs no network.

    python tune/report.py SWEEP
    python tune/report.py SWEEP SWEEP

A sweep is a name in `ray_results/` or a path; `NAME/seed_1` shows that member. Writes `report.html` into the sweep's
folder. The predictions shown are the ensemble's if there is one, else the seed's, else the untrained reference's.
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
from tune.arguments import STORAGE
from tune.errors import RunError


def main(
    sweeps: Annotated[list[str], typer.Argument(help="Finished sweeps: NAME or a path; NAME/seed_1 for one member.")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to write. Default: report.html in the sweep's folder.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Where names are looked up: a folder, s3://..., gs://...")] = STORAGE,
) -> None:
    """Write a page that shows a finished sweep: one file, to be opened anywhere, that needs no network."""
    if out is not None and len(sweeps) > 1:
        raise RunError(f"--out names one file, and there are {len(sweeps)} sweeps: leave it out, or give one sweep")
    from tune.pages.report_page import write_report
    from tune.runs import load_sweep

    for sweep in sweeps:
        typer.echo(f"Written to {write_report(load_sweep(sweep, storage), out)}")


app = command(main)

if __name__ == "__main__":
    app()
