"""Time, disk and memory of a sweep at the full size of matbench_mp_e_form, on made-up crystals of that size.

    make bench-scale
    python -m benchmarks.scale --rows 2000 --results /tmp/scale.json

Writes a file in Matbench's layout, 132,752 crystals of 29 atoms on average, converts it, loads it and trains two
trials at once, first of the readout and then of the whole network, all with the code of a real sweep. The
backbone's output alone is made up: to compute it would take hours. `benchmarks/memory.py` reads the memory.
With the shared file of 995 Materials Project structures the crystals are supercells of these, else of the demo's.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import ray
import typer
from pyarrow import fs
from pymatgen.core import Element

from benchmarks.memory import StageError, watch
from data.crystals.crystal import Crystal
from data.crystals.graph_cache import graphs_of
from data.crystals.graphs import Graphs
from data.crystals.rows import Rows
from data.crystals.task_table import DEMO
from data.machine.console import say
from data.machine.ray_session import connect
from data.stores.storage import open_folder, write_whole
from data.task import Task
from data.tasks import open_task
from models.crystals.cached_arrays import backbone_output
from models.crystals.chgnet.network import cutoffs
from models.crystals.rows import AtomFeatures
from tune.dataset.dataset import Dataset, load_dataset
from tune.dataset.parts import ROWS_PER_PART, prefix_of, write_part
from tune.dataset.trial_fold import TrialFold
from tune.records.code_record import run_record
from tune.records.options import Batch
from tune.spaces.space import load_space
from tune.trials.resources import Resources
from tune.trials.search import search_fold

SHARED_FILE = Path(__file__).parents[2] / "shared" / "data" / "mp_e_form_subset.json.gz"
RESULTS = Path(__file__).parent / "scale.json"
ROWS = 132_752  # of matbench_mp_e_form
MEAN_ATOMS, MOST_ATOMS = 29, 444  # of its crystals, too
SIZE_SPREAD = 0.8  # of the logarithm of the number of atoms; gives its median, 20, and its 99th percentile, 144
DISPLACEMENT_ANGSTROM = 0.02  # so that no atom is equivalent to another
SPACE = load_space("head_finetune")
TRIALS = 2
# Crystals of the trials that train the whole network: so many at random, and those with the most angles of all.
RANDOM_CRYSTALS, LARGEST_CRYSTALS = 12, 4
GB = 1e9


def write_file(path: Path, n_rows: int) -> dict[str, Any]:
    """Write a json.gz file of supercells of real crystals, displaced at random; returns what is in it."""
    real = SHARED_FILE.exists()
    _, rows = open_task(str(SHARED_FILE) if real else DEMO.name, download_dir=path.parent)
    cells = [crystal for crystal in rows.chunk(0, len(rows)).crystals() if isinstance(crystal, Crystal)]
    rng = np.random.default_rng(0)
    with gzip.open(path, "wb", compresslevel=1) as file:
        index = orjson.dumps([f"synthetic-{k:06d}" for k in range(n_rows)])
        file.write(b'{"index": ' + index + b', "columns": ["structure", "e_form"], "data": [')
        for k in range(n_rows):
            which = int(rng.integers(len(cells)))
            wanted = min(MOST_ATOMS, MEAN_ATOMS * math.exp(SIZE_SPREAD * rng.normal() - SIZE_SPREAD**2 / 2))
            structure = _structure(cells[which], wanted, rng)
            file.write((b", " if k else b"") + orjson.dumps([structure, float(rows.targets[which])]))
        file.write(b"]}")
        json_bytes = file.tell()
    cells_of = SHARED_FILE.name if real else "the embedded demo"
    return {"n_rows": n_rows, "cells_of": cells_of, "json_bytes": json_bytes, "file_bytes": path.stat().st_size}


def _structure(cell: Crystal, n_atoms: float, rng: np.random.Generator) -> dict[str, Any]:
    """A cell repeated along its shortest vector to about `n_atoms`, as a Matbench file has it."""
    repeats = max(1, int(n_atoms / len(cell.numbers) + rng.random()))
    axis = int(np.argmin(np.linalg.norm(cell.lattice, axis=1)))
    lattice = cell.lattice.copy()
    lattice[axis] *= repeats
    frac_coords = np.tile(cell.frac_coords, (repeats, 1))
    frac_coords[:, axis] = (frac_coords[:, axis] + np.repeat(np.arange(repeats), len(cell.numbers))) / repeats
    coords = frac_coords @ lattice + rng.normal(scale=DISPLACEMENT_ANGSTROM, size=frac_coords.shape)
    symbols = [Element.from_Z(z).symbol for z in cell.numbers.tolist()] * repeats
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0.0,
        "lattice": {"matrix": lattice.tolist()},
        "sites": [
            {"species": [{"element": symbol, "occu": 1}], "abc": abc, "xyz": xyz, "label": symbol, "properties": {}}
            for symbol, abc, xyz in zip(
                symbols, (coords @ np.linalg.inv(lattice)).tolist(), coords.tolist(), strict=True
            )
        ],
    }


def build(folder: Path) -> Iterator[str | dict[str, Any]]:
    """Convert every crystal, read the cache, and put a made-up output of the backbone beside it."""
    yield "open the file"
    _, rows = _open(folder)
    yield "build the cache"
    connect()
    graphs_of(rows, cutoffs(SPACE.needs.weights), str(folder / "graphs"))
    yield "read the cache"
    stored, key = graphs_of(rows, cutoffs(SPACE.needs.weights), str(folder / "graphs"))
    yield ""
    shards = [path.stat().st_size for path in (folder / "graphs" / key).iterdir()]
    yield {
        "n_graphs": int((stored.graphs.atoms_per_graph > 0).sum()),
        "n_atoms": len(stored.graphs.numbers),
        "n_bonds": len(stored.graphs.bond_atoms),
        "cache_bytes": sum(shards),
    }
    _write_features(stored.graphs, str(folder / "graphs" / key))


def sweep(folder: Path) -> Iterator[str | dict[str, Any]]:
    """Load the dataset and search with two trials at once, as tune/run_sweep.py does."""
    yield "open the file again"
    task, rows = _open(folder)
    yield ""
    connect()
    yield "load the dataset"
    dataset = load_dataset(task, rows, SPACE, str(folder / "graphs"), used_folds={0}, seed=0, gpus_per_task=0)
    yield _shared(dataset)
    yield "two head-only trials on a whole fold"
    _search(dataset, "head_finetune", "readout", folder)
    yield ""
    part = _few_crystals(dataset)
    yield f"two trials of the whole network on {len(part.train)} crystals"
    _search(replace(dataset, trial_folds={0: ray.put(part)}), "full_finetune", "full", folder)
    yield ""
    assert len(rows) == len(dataset.ids)  # the rows live as long as the sweep, as they do in tune/run_sweep.py


def _open(folder: Path) -> tuple[Task, Rows]:
    return open_task(str(folder / "synthetic.json.gz"), quantity="energy_per_atom", download_dir=folder)


def _write_features(graphs: Graphs, cache_folder: str) -> None:
    """Backbone output that depends on the element alone: energies are a sum then, which no target contradicts."""
    filesystem, path = open_folder(cache_folder)
    by_element = np.random.default_rng(0).normal(size=(95, 64)).astype(np.float32)
    for number, first in enumerate(range(0, len(graphs), ROWS_PER_PART)):
        last = min(first + ROWS_PER_PART, len(graphs))
        numbers = graphs.numbers[graphs.atom_start[first] : graphs.atom_start[last]]
        n_atoms = graphs.atoms_per_graph[first:last].astype(np.int32)
        features = AtomFeatures(by_element[numbers], np.ones(len(numbers), np.float32), n_atoms)
        write_part(
            filesystem, path, prefix_of(backbone_output(SPACE.needs.weights, collapse=True)), number, vars(features)
        )


def _shared(dataset: Dataset) -> dict[str, Any]:
    rows = ray.get(dataset.rows_ref)
    split = dataset.splits[0]
    return {
        "shared_bytes": {
            "graphs": sum(getattr(rows.graphs, one.name).nbytes for one in fields(rows.graphs)),
            "features": sum(getattr(rows.features, one.name).nbytes for one in fields(rows.features)),
            "fractions and outputs": rows.fractions.nbytes + rows.outputs.nbytes,
        },
        "object_store_bytes": int(ray.cluster_resources()["object_store_memory"]),
        "fold_rows": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
    }


def _few_crystals(dataset: Dataset) -> TrialFold:
    """A few crystals of fold 0 to train on, those with the most angles among them, and a few to validate on."""
    whole: TrialFold = ray.get(dataset.trial_folds[0])
    graphs = ray.get(dataset.rows_ref).graphs
    n_bonds = np.diff(graphs.bond_start)[whole.train]
    n_angles = n_bonds**2 / graphs.atoms_per_graph[whole.train]  # nearly proportional to them
    largest = whole.train[np.argsort(n_angles)[-LARGEST_CRYSTALS:]]
    some = np.random.default_rng(0).permutation(whole.train)[:RANDOM_CRYSTALS]
    return TrialFold(whole.targets, np.union1d(largest, some), whole.val[:LARGEST_CRYSTALS], whole.test)


def _search(dataset: Dataset, name: str, freeze_depth: str, folder: Path) -> None:
    """`TRIALS` trials of one epoch at once, from a space of search_spaces/."""
    space = load_space(name)
    parameters = {**space.parameters, "freeze_depth": freeze_depth, "epochs": 1}
    outcomes = search_fold(
        dataset,
        [Batch(num_samples=TRIALS, space=space.model_copy(update={"parameters": parameters, "grace_epochs": 1}))],
        0,
        seed=0,
        resources=Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=TRIALS),
        folder=str(folder / name),
    )
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise StageError(f"{len(failed)} of {TRIALS} trials failed: {failed[0]}")


def run(n_rows: int, folder: Path) -> dict[str, Any]:
    """Measure everything; files go to `folder`.

    Raises:
        StageError: a stage failed, or this is not Linux.
    """
    say("write the file")
    data = write_file(folder / "synthetic.json.gz", n_rows)
    load = os.getloadavg()[0]
    steps = []
    for stage in (build, sweep):
        its_steps, facts = watch(stage, folder)
        steps += its_steps
        data |= facts
    about = {
        **run_record(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
    }
    return {"about": about, "data": data, "steps": [asdict(step) for step in steps]}


def table(results: dict[str, Any]) -> str:
    """Two markdown tables: sizes; and time and memory, one line for each step and process."""
    data, shared = results["data"], results["data"]["shared_bytes"]
    sizes = [
        ("supercells of the cells of", data["cells_of"]),
        ("rows, graphs", f"{data['n_rows']:,}, {data['n_graphs']:,}"),
        ("atoms of a graph, on average", f"{data['n_atoms'] / data['n_graphs']:.1f}"),
        ("bonds of a graph, on average", f"{data['n_bonds'] / data['n_graphs']:.0f}"),
        ("the file, the JSON in it", f"{_gb(data['file_bytes'])}, {_gb(data['json_bytes'])}"),
        ("graphs on disk", f"{_gb(data['cache_bytes'])}, {data['cache_bytes'] / data['n_graphs']:.0f} bytes each"),
        *((f"shared: {name}", _gb(size)) for name, size in shared.items()),
        ("shared, in all", _gb(sum(shared.values()))),
        ("Ray's object store, by default", _gb(data["object_store_bytes"])),
    ]
    lines = ["| what | size |", "|---|---|", *(f"| {what} | {size} |" for what, size in sizes), ""]
    lines += [
        "| step | time | process | peak beyond the store | in the store | RSS | PSS | private |",
        f"|{'---|' * 8}",
    ]
    for step in results["steps"]:
        for held in step["processes"]:
            memory = [held["beyond_store"], held["in_store"], held["beyond_store"] + held["in_store"]]
            memory += [held["pss"], held["private"]]
            cells = [step["name"], f"{step['seconds']:.1f} s", held["process"], *map(_gb, memory)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gb(size: int) -> str:
    return f"{size / GB:.3g} GB"


def main(
    rows: Annotated[int, typer.Option(min=100, help="Crystals to make.")] = ROWS,
    folder: Annotated[
        Path | None, typer.Option(help="Where files are written meanwhile, 2 GB at full size. Default: the system's.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where the results of this run are written.")] = RESULTS,
) -> None:
    """Show time, disk and memory of a sweep at the full size of matbench_mp_e_form."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=folder, ignore_cleanup_errors=True) as place:
            found = run(rows, Path(place))
    except StageError as problem:
        say(f"{type(problem).__name__}: {problem}", style="red")
        sys.exit(1)
    write_whole(fs.LocalFileSystem(), str(results.resolve()), json.dumps(found, indent=1).encode())
    print(table(found))


if __name__ == "__main__":
    typer.run(main)
