"""Convert every crystal of a task to a graph, once, into Parquet shards.

    python data/build_cache.py --task matbench_mp_e_form

Ray actors convert shards in parallel, on this machine or on a cluster (`--address`). Killed at any
instant, a second call finishes what is missing. A sweep does the same by itself (`data/crystals/graph_cache.py`).
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
from data.machine.console import say
from data.machine.interruption import interruptible
from data.stores.places import default_cache, downloads_folder


def main(
    task: Annotated[
        str,
        typer.Option(
            help="`demo`, an official Matbench name, or the path of your own file or folder (see docs/tasks.md)."
        ),
    ] = "demo",
    ids: Annotated[Path | None, typer.Option(help="Text file of ids, one a line: convert these rows only.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the targets, where your own file has several.")] = None,
    atom_cutoff: Annotated[
        float,
        typer.Option(min=0.1, help="Atom-graph cutoff in Angstrom: 6 for CHGNet 0.3.0 and r2scan, 5 for 0.2.0."),
    ] = 6,
    bond_cutoff: Annotated[
        float,
        typer.Option(min=0.1, help="Bond-graph cutoff in Angstrom: bonds shorter than this form angles."),
    ] = 3,
    cache: Annotated[
        str | None,
        typer.Option(help="Where graphs are kept: a folder or URI. [default: ~/.cache/matsweep/graphs]"),
    ] = None,
    downloads: Annotated[
        str | None, typer.Option(help="Local folder of datasets. [default: ~/.cache/matsweep/downloads]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; `auto` on one of its nodes.")] = None,
) -> None:
    """Convert every crystal of a task to a graph, once, into Parquet shards.

    Killed at any instant, a second call finishes what is missing. A sweep does the same by itself.
    """
    with interruptible("the same command goes on from here"):
        own_downloads, folder = downloads_folder(downloads), cache or str(default_cache() / "graphs")
        from data.crystals.graph_cache import graphs_of
        from data.crystals.rows import Rows
        from data.notes import commonest_notes, rows_were
        from data.task import TaskError
        from data.tasks import open_task

        opened_task, rows = open_task(task, family="crystals", target=target, ids_file=ids, download_dir=own_downloads)
        if not isinstance(rows, Rows):
            raise TaskError(f"{task} is a task of {opened_task.family}: only crystals become graphs")
        if opened_task.notes:
            say(opened_task.notes)
        if address:  # else Ray starts if, and only if, there is something to build
            from data.machine.ray_session import connect

            connect(address)
        stored_graphs, key = graphs_of(rows, (atom_cutoff, bond_cutoff), folder)
    n_rejected = sum(reason is not None for reason in stored_graphs.reasons)
    say(
        f"{opened_task.name}: {len(rows) - n_rejected} graphs, {n_rejected} rows rejected, "
        f"{stored_graphs.n_raised_cutoff} with a raised cutoff, in {folder}/{key}"
    )
    for row_id, reason in zip(stored_graphs.ids, stored_graphs.reasons, strict=True):
        if reason is not None:
            say(f"  {row_id}: {reason}")
    if n_noted := sum(map(bool, stored_graphs.notes)):
        say(f"{rows_were(n_noted)} read with notes, which a sweep lists in notes.csv:")
        for line in commonest_notes(stored_graphs.notes, most=10):
            say(f"  {line}")


app = command(main)

if __name__ == "__main__":
    app()
