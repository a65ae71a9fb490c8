"""What `--plan` asks of crystals: which graphs the cache lacks, how one is made, and how much work each is."""

from __future__ import annotations

import time

import numpy as np

from data.crystals.batches import graph_batch
from data.crystals.graphs import element_fractions
from data.crystals.rows import Rows
from data.crystals.shards import DamagedShardError, StaleCacheError, read_cache, shards_present
from data.stores.storage import open_folder
from models.crystals.chgnet.network import cutoffs
from models.crystals.needs import CrystalNeeds
from models.crystals.rows import CrystalRows
from models.family import Reading, n_bytes

FRACTION_BYTES = 3 * 94 * 8  # of a row, while a trial fits its reference: element fractions in double precision


def reading(rows: Rows, need: CrystalNeeds, cache_folder: str) -> Reading:
    """See `Family`: formulas are read, structures made graphs of, and read."""
    if rows.format == "composition":
        return Reading("formulas", "none", np.ones(len(rows)), own_bytes=FRACTION_BYTES)
    from data.crystals.graph_cache import Converter, cache_spec  # brings Ray, which models are trained without

    spec = cache_spec(rows, cutoffs(need.weights))
    folder = f"{cache_folder.rstrip('/')}/{spec.key}"
    filesystem, path = open_folder(folder)
    sizes, held_bytes, missing = np.diff(rows.spans).ravel(), None, []
    start = time.perf_counter()
    try:
        graphs = read_cache(filesystem, path, spec).graphs
        sizes = np.diff(graphs.bond_start) + graphs.atoms_per_graph
        n_atoms = graphs.atoms_per_graph.astype(np.int32)
        held_bytes = n_bytes(CrystalRows(element_fractions(graphs), n_atoms, graphs if need.structures else None))
    except (StaleCacheError, DamagedShardError) as problem:
        damaged = getattr(problem, "names", [])
        present = {number for number, name in shards_present(filesystem, path).items() if name not in damaged}
        missing = [len(shard) for number, shard in enumerate(spec.shard_rows) if number not in present]
    return Reading(
        what="graphs",
        cache_key=spec.key,
        sizes=sizes,
        pieces=tuple(len(shard) for shard in spec.shard_rows),
        missing=tuple(missing),
        worker=Converter,
        arguments=(folder, spec.atom_graph_cutoff),
        held_bytes=held_bytes,
        seconds=time.perf_counter() - start,
        own_bytes=FRACTION_BYTES,
    )


def counted_work(rows: CrystalRows, need: CrystalNeeds) -> np.ndarray:
    """See `Family`: edges and angles of each crystal that are computed; the same of all formulas."""
    if rows.graphs is None:
        return np.ones(len(rows.n_atoms))
    cutoff, positions = cutoffs(need.weights)[1], np.arange(len(rows.graphs))
    batches = (graph_batch(rows.graphs, positions[k : k + 1], cutoff, collapse=rows.collapse) for k in positions)
    return np.array([len(batch.center) + len(batch.angle) for batch in batches], dtype=np.float64)
