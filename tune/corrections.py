"""Energy corrections of every crystal: computed once in parallel, kept beside the graphs like the features."""

from __future__ import annotations

import hashlib
import io
from importlib.metadata import version

import numpy as np
import ray
from pyarrow import fs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.build_cache import console, say
from data.corrections import CORRECTIONS_VERSION, mp2020_minus_legacy
from data.graphs import Graphs
from data.storage import StorageError, open_folder, read_whole, write_whole
from tune.features import ROWS_PER_PART, n_parts, parts_present

_REPAIRS = 3  # computations of damaged parts before giving up: a disk that damages what it stores


def corrections_of(graphs_ref: ray.ObjectRef, n_rows: int, cache_folder: str) -> np.ndarray:
    """`mp2020_minus_legacy` of all rows, from the cache where it is there and whole.

    Args:
        graphs_ref: `Graphs` of all rows, in the object store.
        n_rows: how many.
        cache_folder: path or URI of the graphs' own cache.

    Returns:
        eV/atom, float64, shape (n_rows,); NaN for rows without a graph.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """
    filesystem, path = open_folder(cache_folder)
    for _ in range(_REPAIRS):
        present = parts_present(filesystem, path, corrections_prefix())
        missing = [number for number in range(n_parts(n_rows)) if number not in present]
        _compute(missing, graphs_ref, n_rows, cache_folder)
        corrections = _read(filesystem, path, n_rows)
        if corrections is not None:
            return corrections
    raise StorageError(f"{cache_folder}: what is written there comes back damaged; use another disk for the cache")


def corrections_prefix() -> str:
    """How the names of the parts begin: all that their content depends on, beside the graphs."""
    return f"corrections-pymatgen{version('pymatgen-core')}-v{CORRECTIONS_VERSION}-{ROWS_PER_PART}"


def _compute(missing: list[int], graphs_ref: ray.ObjectRef, n_rows: int, cache_folder: str) -> None:
    """Write the missing parts."""
    if not missing:
        return
    running = {_compute_part.remote(graphs_ref, n_rows, number, cache_folder): number for number in missing}
    progress = Progress(
        TextColumn("energy corrections"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with progress:
        to_do = sum(len(_part(n_rows, number)) for number in missing)
        bar = progress.add_task("corrections", total=n_rows, completed=n_rows - to_do)
        while running:
            (finished,), _ = ray.wait(list(running))
            ray.get(finished)
            progress.advance(bar, len(_part(n_rows, running.pop(finished))))


@ray.remote(max_retries=3, num_cpus=1)
def _compute_part(graphs: Graphs, n_rows: int, number: int, cache_folder: str) -> None:
    """Compute one run of rows and write it to the cache, under a name that carries its checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, corrections=mp2020_minus_legacy(graphs, _part(n_rows, number)))
    checksum = hashlib.sha256(buffer.getvalue()).hexdigest()
    filesystem, path = open_folder(cache_folder)
    write_whole(filesystem, f"{path}/{corrections_prefix()}-{number:05d}-{checksum}.npz", buffer.getvalue())


def _part(n_rows: int, number: int) -> np.ndarray:
    """Rows of a part."""
    return np.arange(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, n_rows))


def _read(filesystem: fs.FileSystem, folder: str, n_rows: int) -> np.ndarray | None:
    """All parts as one; None if any is damaged: it is deleted then."""
    corrections = np.empty(n_rows)
    damaged = False
    for number, name in sorted(parts_present(filesystem, folder, corrections_prefix()).items()):
        content = read_whole(filesystem, f"{folder}/{name}")
        if name.endswith(f"-{hashlib.sha256(content).hexdigest()}.npz"):
            corrections[_part(n_rows, number)] = np.load(io.BytesIO(content))["corrections"]
        else:
            say(f"damaged, will be computed again: {name}", style="yellow")
            filesystem.delete_file(f"{folder}/{name}")
            damaged = True
    return None if damaged else corrections
