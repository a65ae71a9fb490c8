"""A finished sweep of a whole Matbench task as the folder that Matbench's leaderboard asks for.

    python tune/submit.py RUN --authors "A. Author, B. Author" --algorithm "CHGNet, fine-tuned"

Writes `results.json.gz`, recorded, scored and validated by the `matbench` package itself, `info.json`, and `run.py`
with what repeats the run; how to hand it in: https://matbench.materialsproject.org/How%20To%20Use/3submit/. What is
submitted is the run's ensemble with the `std` of its members if it has one, else its seed, else its untrained
reference; `NAME/seed_1` submits that member. What is not complete is refused with what is missing.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.machine.import_path import own_first

    own_first()

from pathlib import Path
from typing import Annotated

import typer

from data.machine.command_line import command
from tune.arguments import NOBODY, STORAGE


def main(
    sweep: Annotated[str, typer.Argument(help="A finished sweep of a whole Matbench task: NAME, a path, NAME/seed_1.")],
    authors: Annotated[str, typer.Option(help="Names, as the leaderboard shows them.")] = NOBODY,
    algorithm: Annotated[
        str | None, typer.Option(help="Short name, as the leaderboard shows it. Default: that of the sweep.")
    ] = None,
    algorithm_long: Annotated[
        str | None, typer.Option(help="A longer description. Default: model and protocol.")
    ] = None,
    bibtex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="References in BibTeX, besides those of the model.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Default: matbench_v0.1_ALGORITHM in --storage.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Where names are looked up: a folder, s3://..., gs://...")] = STORAGE,
) -> None:
    """Write a finished sweep as a submission to Matbench's leaderboard."""
    from tune.analysis.submission import write_submission

    write_submission(sweep, authors, algorithm, algorithm_long, bibtex, out, storage)


app = command(main)

if __name__ == "__main__":
    app()
