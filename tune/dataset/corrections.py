"""Energy corrections of every crystal: computed once in parallel, kept beside the graphs like the features."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import ray

from data.crystals.corrections import CORRECTIONS_VERSION, mp2020_minus_legacy
from data.crystals.graphs import Graphs
from data.stores.storage import open_folder
from tune.dataset.parts import ROWS_PER_PART, Parts, joined_parts, rows_of_part, write_part


def corrections_of(graphs_ref: ray.ObjectRef, n_rows: int, cache_folder: str, at_once: int | None = None) -> np.ndarray:
    """`mp2020_minus_legacy` of all rows, from the cache where it is there and whole.

    Args:
        graphs_ref: `Graphs` of all rows, in the object store.
        n_rows: how many.
        cache_folder: path or URI of the graphs' own cache.
        at_once: tasks at once; None: as many as fit.

    Returns:
        eV/atom, float64, shape (n_rows,); NaN for rows without a graph.

    Raises:
        StorageError: parts of the cache are damaged again and again.
    """

    def join(parts: Parts) -> np.ndarray:
        corrections = np.empty(n_rows)
        for rows, arrays in parts:
            corrections[rows] = arrays["corrections"]
        return corrections

    def compute(number: int) -> ray.ObjectRef:
        return _compute_part.remote(graphs_ref, n_rows, number, cache_folder)

    return joined_parts("energy corrections", corrections_prefix(), n_rows, cache_folder, compute, join, at_once)


def corrections_prefix() -> str:
    """How the names of the parts begin: all that their content depends on, beside the graphs."""
    return f"corrections-pymatgen{version('pymatgen-core')}-v{CORRECTIONS_VERSION}-{ROWS_PER_PART}"


@ray.remote(max_retries=3, num_cpus=1)
def _compute_part(graphs: Graphs, n_rows: int, number: int, cache_folder: str) -> None:
    """Compute one run of rows and write it to the cache."""
    corrections = mp2020_minus_legacy(graphs, rows_of_part(n_rows, number))
    write_part(*open_folder(cache_folder), corrections_prefix(), number, {"corrections": corrections})
