"""Average finished sweeps, of any models, into a run of its own that can be compared like any other.

    python tune/ensemble.py RUN RUN ... --name NAME
    python tune/ensemble.py RUN RUN ... --name NAME --weights validation

Each sweep contributes its ensemble if it has one, else its only seed; `NAME/seed_1` contributes that member. Writes
`ray_results/NAME` as a sweep does (ray_results/README.md), with predictions in `ensemble/`; nothing is trained.
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
from tune.arguments import STORAGE, AverageWeights


def main(
    runs: Annotated[list[str], typer.Argument(help="Finished sweeps: NAME or a path; NAME/seed_1 for one member.")],
    name: Annotated[str, typer.Option(help="Of the new run, in --storage.")],
    weights: Annotated[
        AverageWeights, typer.Option(help="`equal`, or `validation`: by fold, as 1 / MAE^2 on its validation part.")
    ] = "equal",
    storage: Annotated[
        str, typer.Option(help="Where names are looked up and the new run is written: a folder, s3://..., gs://...")
    ] = STORAGE,
) -> None:
    """Average the predictions of finished sweeps into a run of its own."""
    from tune.analysis.average import average, average_markdown, average_results, write_average
    from tune.records.folder import Folder, refuse_taken
    from tune.runs import load_sweep

    refuse_taken("--name", name, storage)
    sweep_runs = [load_sweep(run, storage) for run in runs]
    mean = average(sweep_runs, weights)
    results = average_results(name, sweep_runs, mean, weights)
    write_average(Folder(f"{storage}/{name}"), sweep_runs, mean, results)
    typer.echo(average_markdown(results))
    typer.echo(f"Written to {storage}/{name}")


app = command(main)

if __name__ == "__main__":
    app()
