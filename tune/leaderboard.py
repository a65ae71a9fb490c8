"""All finished sweeps in one table, and other people's models on exactly the same rows.

    python tune/leaderboard.py
    python tune/leaderboard.py RUN RUN --peers PREDICTIONS.parquet --peers matbench_v0.1_X/results.json.gz
    python tune/leaderboard.py --contamination IDS_OR_STRUCTURES

Runs are ranked with those of the same task, target and rows alone (`tune/analysis/ranking.py`). Each is judged by its
ensemble if it has one, else by its seed, else by its untrained reference; `NAME/seed_1` judges that member. Writes
`leaderboard.md`, `leaderboard.csv` and `leaderboard.json`.
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


def main(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Finished sweeps: NAME, a path, or NAME/seed_1. Default: all of --storage."),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Predictions of other models: a Parquet file with a column mbid and one a model, or a "
            "results.json.gz of Matbench. May be given several times.",
        ),
    ] = None,
    contamination: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What pretraining has seen: a text file of ids or, of crystals, a JSON file of structures in "
            "Matbench's layout or a folder of CIF and POSCAR files. Splits the errors into seen and unseen.",
        ),
    ] = None,
    storage: Annotated[str, typer.Option(help="Where names are looked up: a folder, s3://..., gs://...")] = STORAGE,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where to write. Default: --storage.")] = None,
) -> None:
    """Rank finished sweeps, and other people's models on exactly the same rows."""
    from tune.pages.leaderboard_page import write_leaderboard

    write_leaderboard(runs or [], peers or [], contamination, storage, out or storage)


app = command(main)

if __name__ == "__main__":
    app()
