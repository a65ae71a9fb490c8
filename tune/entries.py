"""The lines of a leaderboard: what each run is judged by, and the pretrained networks that it started from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pyarrow import fs

from data.storage import file_names, open_folder
from tune.ensemble import contribution
from tune.runs import RunError, SweepRun, finished_runs, load_sweep

Kind = Literal["run", "zero-shot", "peer"]
OVERLAP_FLAG = "pretraining overlap"
_OVERLAP_NOTE = "was pretrained on Materials Project data"  # of results older than their flags


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a leaderboard.

    Attributes:
        name: of the run, of the untrained reference, or of the peer.
        kind: a run of ours; what nothing was trained for; or somebody else's model.
        table: fold, id, composition, y_true, y_pred of its test crystals.
        member: what of the run is judged: `ensemble`, `seed_0` or `reference`; "" of a peer.
        n_seeds: that it is the mean of; 0 where nothing was trained; 1 of a peer, whose seeds nobody knows.
        flags: what a reader must know.
        run: that it belongs to; None of a peer.
    """

    name: str
    kind: Kind
    table: pd.DataFrame
    member: str
    n_seeds: int
    flags: list[str]
    run: SweepRun | None


def all_runs(storage: str) -> list[str]:
    """Names of the finished sweeps in a folder, those of its queues included, sorted."""
    filesystem, path = open_folder(storage)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = finished_runs(storage)
    for info in found:
        if info.type == fs.FileType.Directory and "queue.json" in file_names(filesystem, info.path):
            queue = info.base_name
            names += [f"{queue}/{name}" for name in finished_runs(f"{storage}/{queue}")]
    return sorted(names)


def load_runs(names: Sequence[str], storage: str) -> tuple[list[SweepRun], dict[str, str]]:
    """The runs of these names, or all there are, of which those that cannot be read are left out with the reason.

    Raises:
        RunError: a run that was named cannot be read, or there is none.
    """
    if names:
        return [load_sweep(name, storage) for name in names], {}
    runs, skipped = [], {}
    for name in all_runs(storage):
        try:
            runs.append(load_sweep(name, storage))
        except (RunError, OSError, ValueError, KeyError, TypeError) as problem:
            skipped[name] = str(problem)
    if not runs:
        raise RunError(f"there is no finished sweep in {storage}")
    return runs, skipped


def flags_of(run: SweepRun) -> list[str]:
    """The flags of a run; of results that are older than flags, those that their text tells."""
    results = run.results
    if "flags" in results:
        return [str(flag) for flag in results["flags"]]
    told = {
        "subset": results["data"]["description"].startswith("subset"),
        OVERLAP_FLAG: any(_OVERLAP_NOTE in note for note in results["notes"]),
        "labels of a model": run.task["name"] == "demo",
        "inert": bool(results.get("inert")),
    }
    return [flag for flag, raised in told.items() if raised]


def is_zero_shot(run: SweepRun) -> bool:
    """Whether its untrained reference is a pretrained network."""
    return str(run.results["reference"]["title"]).startswith("pretrained")


def weights_of(run: SweepRun) -> str:
    """Pretrained weights that a run starts from, `random`, or "" where its model has none or none are told."""
    found = {str(config["weights"]) for config in run.configs.values() if "weights" in config}
    return found.pop() if len(found) == 1 else ""


def run_entries(runs: Sequence[SweepRun]) -> list[Entry]:
    """What each run is judged by, and the untrained references that are pretrained networks, each once."""
    entries = []
    references: dict[frozenset[tuple[int, str]], list[SweepRun]] = {}
    for run in runs:
        member = contribution(run)
        if member.name == "reference":
            kind: Kind = "zero-shot" if is_zero_shot(run) else "run"
            entries.append(Entry(run.name, kind, member.test, member.name, 0, flags_of(run), run))
            references.setdefault(_fingerprint(member.test), []).append(run)
            continue
        n_seeds = max(1, len(run.results["seeds"])) if member.name == "ensemble" else 1
        entries.append(Entry(run.name, "run", member.test, member.name, n_seeds, flags_of(run), run))
        if is_zero_shot(run) and "reference" in run.members:
            references.setdefault(_fingerprint(run.members["reference"].test), []).append(run)
    listed = {entry.run for entry in entries if entry.member == "reference"}
    shown: list[frozenset[tuple[int, str]]] = []
    taken: set[str] = set()
    for folds in sorted(references, key=len, reverse=True):
        if any(folds <= more for more in shown):  # the same network on fewer folds
            continue
        shown.append(folds)
        those = references[folds]
        if any(run in listed for run in those):
            continue
        run = next((run for run in those if weights_of(run)), those[0])  # an average does not know its weights
        table = run.members["reference"].test
        name = str(run.results["reference"]["title"])
        name += f" ({weights_of(run)})" if weights_of(run) else ""
        name = f"{name} of {run.name}" if name in taken else name
        taken.add(name)
        flags = [flag for flag in flags_of(run) if flag in ("subset", "labels of a model", OVERLAP_FLAG)]
        entries.append(Entry(name, "zero-shot", table, "reference", 0, flags, run))
    return entries


def short_protocol(run: SweepRun) -> str:
    """The beginning of a protocol: `no search`, `nested`, `searched on fold(s) [0]`, `mean of 4 runs`."""
    return re.split(r"[,;:]", run.results["protocol"], maxsplit=1)[0].strip().rstrip(".")


def _fingerprint(table: pd.DataFrame) -> frozenset[tuple[int, str]]:
    """Tells predictions apart to the last bit, fold by fold."""
    found = []
    for fold, part in table.groupby("fold"):
        ordered = part.sort_values("id")
        content = "\n".join(ordered["id"]).encode() + ordered["y_pred"].to_numpy().tobytes()
        found.append((int(str(fold)), hashlib.sha256(content).hexdigest()))
    return frozenset(found)
