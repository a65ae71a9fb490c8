"""Arrays with something for every row of a task, computed once in parallel and kept in parts beside the graphs.

A part is a file whose name holds all that its content depends on, its number and its checksum; a damaged one is
computed again, alone. What is computed is a family's: `models/family.py`.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from pyarrow import fs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.machine.allocator import keep_freed_memory
from data.machine.console import console, say
from data.stores.storage import StorageError, file_names, open_folder, read_whole, write_whole
from models.device import device_of_share
from models.family import CachedArrays, Parts

ROWS_PER_PART = 256  # small enough that two cores share a data set of a thousand crystals
_REPAIRS = 3  # computations of damaged parts before giving up: a disk that damages what it stores

T = TypeVar("T")


def cached_fields(
    arrays: CachedArrays,
    rows_ref: ray.ObjectRef,
    n_rows: int,
    cache_folder: str,
    gpus: float,
    at_once: int | None = None,
) -> dict[str, Any]:
    """The fields of the rows that some arrays make, from the cache where they are there and whole.

    Args:
        arrays: of a family.
        rows_ref: rows, in the object store.
        n_rows: how many.
        cache_folder: path or URI of the rows' own cache.
        gpus: share of a GPU that a task may use; 0 computes on the CPU.
        at_once: tasks at once; None: as many as fit.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """
    share = gpus if arrays.on_gpu else 0.0
    task = _compute_part.options(num_gpus=share)
    return joined_parts(
        arrays.what,
        prefix_of(arrays),
        n_rows,
        cache_folder,
        compute=lambda number: task.remote(rows_ref, arrays, n_rows, number, cache_folder, share),
        join=lambda parts: arrays.join(ray.get(rows_ref), parts),
        at_once=at_once,
    )


def prefix_of(arrays: CachedArrays) -> str:
    """How the names of the parts of some arrays begin."""
    return f"{arrays.prefix}-{ROWS_PER_PART}"


@ray.remote(max_retries=3, num_cpus=1)
def _compute_part(rows: Any, arrays: CachedArrays, n_rows: int, number: int, cache_folder: str, gpus: float) -> None:
    """Compute the arrays of one run of rows and write them to the cache."""
    keep_freed_memory()
    torch.set_num_threads(1)
    values = arrays.compute(rows, rows_of_part(n_rows, number), str(device_of_share(gpus)))
    write_part(*open_folder(cache_folder), prefix_of(arrays), number, values)


def joined_parts(
    title: str,
    prefix: str,
    n_rows: int,
    cache_folder: str,
    compute: Callable[[int], ray.ObjectRef],
    join: Callable[[Parts], T],
    at_once: int | None = None,
) -> T:
    """All parts as one, those that are missing or damaged computed first.

    Args:
        title: says what is computed, for the progress bar.
        prefix: how the names of the parts begin.
        n_rows: of the task.
        cache_folder: path or URI of the graphs' own cache.
        compute: starts the Ray task that computes a part, given its number, and writes it with `write_part`.
        join: makes one of all parts, each its rows and arrays, in order.
        at_once: parts that are computed at once; None: as many as fit.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """
    filesystem, path = open_folder(cache_folder)
    for _ in range(_REPAIRS):
        _compute(title, missing_parts(filesystem, path, prefix, n_rows), n_rows, compute, at_once)
        fields = join(_read(filesystem, path, prefix, n_rows))
        if not missing_parts(filesystem, path, prefix, n_rows):  # a damaged one was deleted as it was read
            return fields
    raise StorageError(f"{cache_folder}: what is written there comes back damaged; use another disk for the cache")


def n_parts(n_rows: int) -> int:
    """Parts that hold so many rows of a task."""
    return math.ceil(n_rows / ROWS_PER_PART)


def rows_of_part(n_rows: int, number: int) -> np.ndarray:
    """Rows of a part."""
    return np.arange(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, n_rows))


def missing_parts(filesystem: fs.FileSystem, folder: str, prefix: str, n_rows: int) -> list[int]:
    """Numbers of the parts that are not in the cache."""
    present = _present(filesystem, folder, prefix)
    return [number for number in range(n_parts(n_rows)) if number not in present]


def write_part(filesystem: fs.FileSystem, folder: str, prefix: str, number: int, arrays: dict[str, np.ndarray]) -> None:
    """Write a part to the cache, under a name that carries its checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    checksum = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_whole(filesystem, f"{folder}/{prefix}-{number:05d}-{checksum}.npz", buffer.getvalue())


def _present(filesystem: fs.FileSystem, folder: str, prefix: str) -> dict[int, str]:
    """Names of the parts in the cache, by number."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{5})-[0-9a-f]{64}\.npz")
    return {int(match[1]): match[0] for match in filter(None, map(pattern.fullmatch, file_names(filesystem, folder)))}


def _compute(
    title: str, numbers: list[int], n_rows: int, compute: Callable[[int], ray.ObjectRef], at_once: int | None
) -> None:
    """Write the missing parts."""
    if not numbers:
        return
    queue = iter(numbers)
    tasks: dict[Any, int] = {compute(number): number for number in islice(queue, at_once)}
    progress = Progress(TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    with progress:
        to_do = sum(len(rows_of_part(n_rows, number)) for number in numbers)
        bar = progress.add_task(title, total=n_rows, completed=n_rows - to_do)
        while tasks:
            (task,), _ = ray.wait(list(tasks))
            ray.get(task)
            progress.advance(bar, len(rows_of_part(n_rows, tasks.pop(task))))
            tasks |= {compute(number): number for number in islice(queue, 1)}


def _read(filesystem: fs.FileSystem, folder: str, prefix: str, n_rows: int) -> Parts:
    """Rows and arrays of every part that is whole, in order; one that is damaged is deleted."""
    for number, name in sorted(_present(filesystem, folder, prefix).items()):
        if (content := _whole(filesystem, folder, name)) is not None:
            with np.load(io.BytesIO(content)) as arrays:
                yield rows_of_part(n_rows, number), dict(arrays)


def _whole(filesystem: fs.FileSystem, folder: str, name: str) -> bytes | None:
    """The content of a part; None for one that is damaged, which is then gone."""
    with suppress(FileNotFoundError):  # another process has found the same damage
        content = read_whole(filesystem, f"{folder}/{name}")
        if name.endswith(f"-{hashlib.sha256(content).hexdigest()}.npz"):
            return content
        say(f"damaged, will be computed again: {name}", style="yellow")
        filesystem.delete_file(f"{folder}/{name}")
    return None
