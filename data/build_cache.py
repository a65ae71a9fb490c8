"""Convert every crystal of a task to a graph, once, into Parquet shards.

    python data/build_cache.py --task matbench_mp_e_form

Ray actors convert shards in parallel, on this machine or on a cluster (`--address`). Killed at any
instant, a second call finishes what is missing. A sweep calls the same code when it needs the graphs.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.import_path import own_first

    own_first()

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import ray
import typer
from ray.exceptions import RayError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.console import console, say, say_problem
from data.convert import convert_chunk
from data.download import DownloadError
from data.interruption import interruptible
from data.notes import commonest_notes, rows_were
from data.places import default_cache, downloads_folder, expanded
from data.ray_session import connect
from data.rows import RawChunk, Rows
from data.shards import (
    MANIFEST,
    ROWS_PER_SHARD,
    CacheSpec,
    DamagedShardError,
    StaleCacheError,
    StoredGraphs,
    encode_shard,
    read_cache,
    shards_present,
    write_manifest,
    write_shard,
)
from data.storage import StorageError, file_names, open_folder
from data.tasks import TaskError, open_task

_REPAIRS = 3  # rebuilds of damaged shards before giving up: a disk that damages what it stores


class Converter:
    """An actor that turns rows into shards."""

    def __init__(self, folder: str, cutoff_angstrom: float) -> None:
        """Open the cache folder (a path or URI)."""
        self.filesystem, self.path = open_folder(folder)
        self.cutoff_angstrom = cutoff_angstrom

    def write(self, number: int, chunk: RawChunk) -> int:
        """Convert a chunk, write it as shard `number`, and return how many rows that were."""
        content = encode_shard(chunk.ids, *convert_chunk(chunk, self.cutoff_angstrom))
        write_shard(self.filesystem, self.path, number, content)
        return len(chunk.ids)


def graphs_of(
    rows: Rows,
    cutoffs: tuple[float, float],
    cache_folder: str,
    rows_per_shard: int = ROWS_PER_SHARD,
    at_once: int | None = None,
) -> tuple[StoredGraphs, str]:
    """The graphs of some rows: read from the cache, after building what is missing or damaged.

    Args:
        rows: of a task.
        cutoffs: atom-graph and bond-graph cutoff of the model's weights, Angstrom.
        cache_folder: path or URI that holds all caches, one folder each.
        rows_per_shard: rows in each shard but the last.
        at_once: actors that convert; None: as many as there are CPUs.

    Returns:
        The graphs, and the key of their cache.

    Raises:
        TaskError: the rows hold no structures.
    """
    if rows.format == "composition":
        raise TaskError("rows of formulas alone have no structures to make graphs of; models that read them need none")
    spec = cache_spec(rows, cutoffs, rows_per_shard)
    if "://" not in cache_folder:  # the actors need not have this process's working directory
        cache_folder = str(expanded(cache_folder).absolute())
    folder = f"{cache_folder.rstrip('/')}/{spec.key}"
    filesystem, path = open_folder(folder)
    for _ in range(_REPAIRS):
        try:
            try:
                return read_cache(filesystem, path, spec), spec.key
            except StaleCacheError:
                _build_missing(rows, spec, folder, at_once)
                return read_cache(filesystem, path, spec), spec.key
        except DamagedShardError as problem:
            say(f"damaged, will be rebuilt: {', '.join(problem.names)}", style="yellow")
            for name in {*problem.names, MANIFEST} & set(file_names(filesystem, path)):
                with suppress(FileNotFoundError):  # another process has found the same damage
                    filesystem.delete_file(f"{path}/{name}")
    return read_cache(filesystem, path, spec), spec.key


def cache_spec(rows: Rows, cutoffs: tuple[float, float], rows_per_shard: int = ROWS_PER_SHARD) -> CacheSpec:
    """What the graphs of some rows depend on; see `graphs_of`."""
    return CacheSpec(
        data_sha256=rows.sha256,
        atom_graph_cutoff=float(cutoffs[0]),  # 6 and 6.0 would give two keys
        bond_graph_cutoff=float(cutoffs[1]),
        n_rows=len(rows),
        rows_per_shard=rows_per_shard,
    )


def _build_missing(rows: Rows, spec: CacheSpec, folder: str, at_once: int | None) -> None:
    """Write every shard that is not there yet, then the manifest."""
    filesystem, path = open_folder(folder)
    try:
        filesystem.create_dir(path, recursive=True)
    except StorageError:
        raise
    except OSError as problem:
        raise StorageError(
            f"no graphs can be kept in {folder} ({problem}). Give a folder that is yours to write to, by --cache or in "
            "MATSWEEP_CACHE"
        ) from problem
    present = shards_present(filesystem, path)
    missing = [number for number in range(len(spec.shard_rows)) if number not in present]
    done = len(rows) - sum(len(spec.shard_rows[number]) for number in missing)
    if present and missing:
        say(f"{len(present)} of {len(spec.shard_rows)} shards are there; building the other {len(missing)}")
    progress = Progress(
        TextColumn("graphs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        bar = progress.add_task("graphs", total=len(rows), completed=done, rate="")
        for n_rows in _converted(rows, spec, folder, missing, at_once):
            progress.advance(bar, n_rows)
            speed = progress.tasks[0].speed
            progress.update(bar, rate=f"{speed:,.0f}/s" if speed else "")
    for name in file_names(filesystem, path):
        if name.startswith(".part-"):  # left behind by a killed actor
            with suppress(FileNotFoundError):  # or another build's, which has just made a shard of it
                filesystem.delete_file(f"{path}/{name}")
    write_manifest(filesystem, path, spec)


def _converted(rows: Rows, spec: CacheSpec, folder: str, missing: list[int], at_once: int | None) -> Iterator[int]:
    """Have actors write the missing shards, two chunks ahead of each so that none waits for the driver."""
    if not missing:
        return
    connect()
    n_actors = max(1, min(len(missing), at_once or len(missing), int(ray.cluster_resources().get("CPU", 1))))
    # Restarted by Ray, and its chunk converted again, when its process dies.
    remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Converter)
    actors = [remote.remote(folder, spec.atom_graph_cutoff) for _ in range(n_actors)]
    waiting = iter(missing)
    running: dict[ray.ObjectRef, int] = {}

    def start(actor: int) -> None:
        number = next(waiting, None)
        if number is not None:
            chunk = rows.chunk(spec.shard_rows[number].start, spec.shard_rows[number].stop)
            running[actors[actor].write.remote(number, chunk)] = actor

    for actor in list(range(n_actors)) * 2:
        start(actor)
    while running:
        (finished,), _ = ray.wait(list(running))
        yield ray.get(finished)
        start(running.pop(finished))
    for actor in actors:
        ray.kill(actor)


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[
        str,
        typer.Option(
            help="`demo`, an official Matbench name, or the path of your own file or folder (see the README)."
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
    try:
        with interruptible("the same command goes on from here"):
            opened, rows = open_task(task, target=target, ids_file=ids, download_dir=downloads_folder(downloads))
            if opened.notes:
                say(opened.notes)
            if address:  # else Ray starts if, and only if, there is something to build
                connect(address)
            folder = cache or str(default_cache() / "graphs")
            stored, key = graphs_of(rows, (atom_cutoff, bond_cutoff), folder)
    except (TaskError, DownloadError, StorageError, DamagedShardError, OSError, RayError) as problem:
        say_problem(problem)
        sys.exit(1)
    n_rejected = sum(reason is not None for reason in stored.reasons)
    say(
        f"{opened.name}: {len(rows) - n_rejected} graphs, {n_rejected} rows rejected, "
        f"{stored.n_raised_cutoff} with a raised cutoff, in {folder}/{key}"
    )
    for row_id, reason in zip(stored.ids, stored.reasons, strict=True):
        if reason is not None:
            say(f"  {row_id}: {reason}")
    if n_noted := sum(map(bool, stored.notes)):
        say(f"{rows_were(n_noted)} read with notes, which a sweep lists in notes.csv:")
        for line in commonest_notes(stored.notes, most=10):
            say(f"  {line}")


if __name__ == "__main__":
    # Ray would ship what is defined in __main__ by value, without the functions it calls; so the actor is
    # taken from the module under its own name.
    from data.build_cache import app as command

    command()
