"""The lines of a leaderboard: what each run is judged by, and the pretrained networks that it started from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from tune.errors import RunError
from tune.runs import SweepRun, by_chance, contribution, finished_runs, load_sweep, weights_of

Origin = Literal["run", "zero-shot", "peer"]
OVERLAP_FLAG = "pretraining overlap"


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a leaderboard.

    Attributes:
        name: of the run, of the untrained reference, or of the peer.
        origin: a run of ours; what nothing was trained for; or somebody else's model.
        table: fold, id, group, y_true, y_pred of its test examples.
        member: what of the run is judged: `ensemble`, `seed_0` or `reference`; "" of a peer.
        n_seeds: that it is the mean of; 0 where nothing was trained; 1 of a peer, whose seeds nobody knows.
        flags: what a reader must know.
        run: that it belongs to; None of a peer.
        by_chance: whether another seed would have given other predictions.
    """

    name: str
    origin: Origin
    table: pd.DataFrame
    member: str
    n_seeds: int
    flags: list[str]
    run: SweepRun | None
    by_chance: bool = True

    @property
    def n_draws(self) -> int:
        """Trainings whose chance is in it."""
        return self.n_seeds if self.by_chance else 0


def load_runs(names: Sequence[str], storage: str) -> tuple[list[SweepRun], dict[str, str]]:
    """The runs of these names, or all there are, of which those that cannot be read are left out with the reason.

    Raises:
        RunError: a run that was named cannot be read, or there is none.
    """
    if names:
        return [load_sweep(name, storage) for name in names], {}
    runs, skipped = [], {}
    for name in finished_runs(storage):
        try:
            runs.append(load_sweep(name, storage))
        except (RunError, OSError) as problem:
            skipped[name] = str(problem)
    if not runs:
        why = [" that can be read:", *(f"{name}: {reason}" for name, reason in skipped.items())] if skipped else []
        raise RunError(f"there is no finished sweep in {storage}" + "\n  ".join(why))
    return runs, skipped


def is_zero_shot(run: SweepRun) -> bool:
    """Whether its untrained reference is a pretrained network."""
    return str(run.results["reference"]["title"]).startswith("pretrained")


def run_entries(runs: Sequence[SweepRun]) -> list[Entry]:
    """What each run is judged by, and the untrained references that are pretrained networks, each once."""
    entries = []
    references: dict[frozenset[tuple[int, str]], list[SweepRun]] = {}
    for run in runs:
        member = contribution(run)
        if member.name == "reference":
            origin: Origin = "zero-shot" if is_zero_shot(run) else "run"
            entries.append(Entry(run.name, origin, member.test, member.name, 0, run.results["flags"], run, False))
            references.setdefault(_fingerprint(member.test), []).append(run)
            continue
        n_seeds = max(1, len(run.results["seeds"])) if member.name == "ensemble" else 1
        flags = run.results["flags"]
        entries.append(Entry(run.name, "run", member.test, member.name, n_seeds, flags, run, by_chance(run)))
        if is_zero_shot(run) and "reference" in run.members:
            references.setdefault(_fingerprint(run.members["reference"].test), []).append(run)
    runs_with_reference = {entry.run for entry in entries if entry.member == "reference"}
    largest: list[frozenset[tuple[int, str]]] = []
    names: set[str] = set()
    for folds in sorted(references, key=len, reverse=True):
        if any(folds <= larger for larger in largest):  # the same network on fewer folds
            continue
        largest.append(folds)
        same = references[folds]
        if any(run in runs_with_reference for run in same):
            continue
        # An average has the reference of one of its members, and does not say of which.
        run = next((run for run in same if "members" not in run.results), same[0])
        table = run.members["reference"].test
        name = str(run.results["reference"]["title"])
        name += f" ({weights_of(run)})" if weights_of(run) and "members" not in run.results else ""
        name = f"{name} of {run.name}" if name in names else name
        names.add(name)
        flags = [flag for flag in run.results["flags"] if flag in ("subset", "labels of a model", OVERLAP_FLAG)]
        entries.append(Entry(name, "zero-shot", table, "reference", 0, flags, run, False))
    return entries


def short_protocol(run: SweepRun) -> str:
    """The beginning of a protocol: `no search`, `nested`, `searched on fold(s) [0]`, `mean of 4 runs`."""
    return re.split(r"[,;:]", run.results["protocol"], maxsplit=1)[0].strip().rstrip(".")


def _said(table: pd.DataFrame) -> np.ndarray:
    """The predictions of a table; where they are no numbers, what it holds of each example."""
    key_columns = ["fold", "id", "group", "trust", "trusted"]
    return (
        table["y_pred"].to_numpy() if "y_pred" in table else table.drop(columns=key_columns, errors="ignore").to_numpy()
    )


def _fingerprint(table: pd.DataFrame) -> frozenset[tuple[int, str]]:
    """Tells predictions apart to the last bit, fold by fold."""
    hashes = []
    for fold, fold_rows in table.groupby("fold"):
        sorted_rows = fold_rows.sort_values("id")
        content = "\n".join(sorted_rows["id"]).encode() + _said(sorted_rows).tobytes()
        hashes.append((int(str(fold)), hashlib.sha256(content).hexdigest()))
    return frozenset(hashes)
