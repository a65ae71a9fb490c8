"""The graphs of a task's rows: read from the cache, after Ray actors have built what is missing or damaged there.

`data/crystals/shards.py` says what the files are; `data/build_cache.py` is the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.crystals.convert import convert_chunk
from data.crystals.rows import RawChunk, Rows
from data.crystals.shards import (
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
from data.machine.console import console, say
from data.machine.ray_session import connect
from data.stores.places import expanded
from data.stores.storage import StorageError, file_names, open_folder
from data.task import TaskError

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
    n_done = len(rows) - sum(len(spec.shard_rows[number]) for number in missing)
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
        bar = progress.add_task("graphs", total=len(rows), completed=n_done, rate="")
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
    queue = iter(missing)
    tasks: dict[ray.ObjectRef, int] = {}

    def start(actor: int) -> None:
        number = next(queue, None)
        if number is not None:
            chunk = rows.chunk(spec.shard_rows[number].start, spec.shard_rows[number].stop)
            tasks[actors[actor].write.remote(number, chunk)] = actor

    for actor in list(range(n_actors)) * 2:
        start(actor)
    while tasks:
        (task,), _ = ray.wait(list(tasks))
        yield ray.get(task)
        start(tasks.pop(task))
    for actor in actors:
        ray.kill(actor)
