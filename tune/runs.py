"""A finished sweep, read back from its folder: predictions, histories, configurations and what they are of.

In a notebook:

    sweep = load_sweep("NAME")
    sweep.trials, sweep.histories, sweep.predictions  # pandas DataFrames

Everything that reads results goes through `load_sweep`; it imports neither torch nor Ray. ray_results/README.md says
what each file of the folder is.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from pyarrow import fs

from data.storage import file_names, open_folder, read_whole
from models.metrics import TRUSTED, Metric, metric_of
from tune.going_on import STORAGE, how_to_go_on

On = Literal["test", "validation"]
_PREFIX = {"test": "preds", "validation": "val"}
# What else readers take from results.json.
_NEEDED = {"record", "notes", "flags", "protocol", "options", "trials", "cost", "inert", "by_chance"}
_MEMBER = re.compile(r"reference|ensemble|seed_\d+")
_LISTED = 20  # runs named in an error


class RunError(ValueError):
    """A run that cannot be read, or runs that do not go together; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a run on every fold: a seed, the ensemble of the seeds, or the untrained reference.

    Attributes:
        name: its folder: `seed_0`, `ensemble` or `reference`.
        test: fold, id, composition, y_true, y_pred, abs_error (and std of an ensemble), trust and trusted (of a sweep
            of an earlier version neither), one row a test crystal.
        validation: the same of the folds' validation parts, or None where a file is missing.
        history: fold, epoch, train_loss, val_loss, val_mae or val_rocauc, lr, seconds; no row where there is none.
        missing: files of the validation parts that are not there, as of an average of runs that split otherwise.
    """

    name: str
    test: pd.DataFrame
    validation: pd.DataFrame | None
    history: pd.DataFrame
    missing: list[str]


@dataclass(frozen=True, eq=False)
class SweepRun:
    """A finished sweep, or one member of it.

    Attributes:
        name: of the sweep, `NAME`; or of the member, `NAME/seed_1`.
        address: the sweep's folder, a path or URI.
        results: all of its results.json.
        members: by name; one alone where one was asked for.
        folds: that were trained and tested.
        configs: the chosen configuration by fold; empty where nothing was trained.
        metric: that it is judged by.
        task: facts of the task: name, target, unit, kind and more.
        data_sha256: of the rows.
    """

    name: str
    address: str
    results: dict[str, Any]
    members: dict[str, Member]
    folds: list[int]
    configs: dict[int, dict[str, Any]]
    metric: Metric
    task: dict[str, Any]
    data_sha256: str

    @property
    def trials(self) -> pd.DataFrame:
        """The searched trials, best first within a search.

        Columns: search_fold, rank, trial, kept_val_mae (or kept_val_rocauc), kept_epoch, epochs (that it was to have),
        epochs_done, seconds, failed (the reason, of one that did), and every field of the configs as `config.FIELD`.
        """
        return pd.json_normalize(self.results["trials"])

    @cached_property
    def histories(self) -> pd.DataFrame:
        """Every epoch of every training, those of the search included.

        Columns: member (`seed_0`, `reference`) or trial (of the search on that fold), fold, epoch, train_loss,
        val_loss, val_mae (or val_rocauc), lr, seconds, fingerprint.
        """
        tables = [member.history.assign(member=name) for name, member in self.members.items() if len(member.history)]
        filesystem, path = open_folder(self.address)
        for trial in self.results["trials"]:
            if f"kept_val_{self.metric.name}" in trial:
                fold, name = trial["search_fold"], trial["trial"]
                file = f"{path}/search_fold_{fold}/trial_{name}/history_fold_{fold}.csv"
                tables.append(_load_history(filesystem, file).assign(trial=name, fold=fold))
        if not tables:
            return pd.DataFrame(columns=["member", "trial", "fold", "epoch"])
        together = pd.concat(tables, ignore_index=True)
        first = [name for name in ("member", "trial", "fold", "epoch") if name in together]
        return together[[*first, *together.columns.difference(first, sort=False)]]

    @property
    def predictions(self) -> pd.DataFrame:
        """Predictions of every member.

        Columns: member, part (`test` or `validation`), fold, id, composition, y_true, y_pred, abs_error, and std where
        something is known of it.
        """
        tables = []
        for name, member in self.members.items():
            for part, table in (("test", member.test), ("validation", member.validation)):
                if table is not None:
                    labelled = table.copy()
                    labelled.insert(0, "member", name)
                    labelled.insert(1, "part", part)
                    tables.append(labelled)
        return pd.concat(tables, ignore_index=True)


def load_sweep(address: str, storage: str = STORAGE) -> SweepRun:
    """Read a finished sweep, or one member of it.

    Args:
        address: `NAME` of a folder in `storage`, or a path or URI of one; with `/seed_1`, `/ensemble` or
            `/reference` behind it, that member alone.
        storage: folder or URI where names are looked up.

    Raises:
        RunError: no such run (the message lists those there are), one that is not finished, one without such a
            member, or one with missing or damaged files (the message names them).
    """
    folder, wanted = _find(address.rstrip("/"), storage)
    filesystem, path = open_folder(folder)
    try:
        results = json.loads(read_whole(filesystem, f"{path}/results.json"))
        folds = [entry["fold"] for entry in results["reference"]["folds"]]
        names = ["reference", *(f"seed_{entry['seed']}" for entry in results["seeds"])]
        configs = {entry["fold"]: entry["config"] for entry in results["chosen"]}
        name, task, sha256 = results["sweep"], results["task"], results["data"]["sha256"]
        metric = metric_of(task["kind"])
        needed = _NEEDED | ({"weights", "chose_by_validation"} if "members" in results else {"model"})
        if lacking := sorted(needed - results.keys()):
            raise KeyError(", ".join(lacking))
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(
            f"{folder}/results.json is not that of a sweep, or of another version of matsweep "
            f"({type(problem).__name__}: {problem})"
        ) from None
    names += ["ensemble"] if "ensemble" in results else []
    if wanted is not None and wanted not in names:
        raise RunError(f"{folder} has no member {wanted!r}: it has {', '.join(names)}")
    members = {one: _load_member(filesystem, path, one, folds) for one in names if wanted in (None, one)}
    trained = bool(results["seeds"] or "ensemble" in results) and wanted != "reference"
    return SweepRun(
        name=name if wanted is None else f"{name}/{wanted}",
        address=folder,
        results=results,
        members=members,
        folds=folds,
        configs=configs if trained else {},
        metric=metric,
        task=task,
        data_sha256=sha256,
    )


def finished_runs(storage: str = STORAGE) -> list[str]:
    """Names of the finished sweeps in a folder, `QUEUE/EXPERIMENT` of a queue's, sorted; none if there is no folder."""
    filesystem, path = open_folder(storage)
    names = []
    for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.type == fs.FileType.Directory:
            files = file_names(filesystem, info.path)
            if "results.json" in files:
                names.append(info.base_name)
            elif "queue.json" in files:
                names += [f"{info.base_name}/{one}" for one in finished_runs(f"{storage}/{info.base_name}")]
    return sorted(names)


def judged(run: SweepRun) -> list[Member]:
    """The members a run is judged by: all its seeds, else its ensemble, else the untrained reference."""
    seeds = [member for name, member in run.members.items() if name.startswith("seed_")]
    return seeds or [run.members.get("ensemble") or run.members["reference"]]


def by_chance(run: SweepRun) -> bool:
    """Whether a seed has a part in what a run is judged by: not in a reference, nor in what draws nothing."""
    return judged(run)[0].name != "reference" and bool(run.results["by_chance"])


def contribution(run: SweepRun) -> Member:
    """The one member that stands for a run: its ensemble, else its only seed, else the untrained reference."""
    return run.members.get("ensemble") or judged(run)[0]


def weights_of(run: SweepRun) -> str:
    """Weights that a run's networks start from: pretrained ones, `random`, or "" where its model has none.

    Of an average those of all its members.
    """
    if "members" in run.results:
        return str(run.results["weights"])
    return ", ".join(sorted({str(config["weights"]) for config in run.configs.values() if "weights" in config}))


def chose_by_validation(run: SweepRun) -> bool:
    """Whether the epoch, the config or the use of copies was chosen on a run's validation parts, which flatter it then.

    Of an average: that of any of its members. The reference is beside a choice, and not what was chosen.
    """
    if "members" in run.results:
        return bool(run.results["chose_by_validation"])
    if run.results["seeds"] and set(run.members) == {"reference"}:
        return False
    options = run.results["options"]
    chosen = bool(options.get("searched")) or options.get("tta") == "auto"
    return chosen or any(config.get("keep") == "best" for config in run.configs.values())


def predictions(run: SweepRun, member: Member, on: On) -> pd.DataFrame:
    """Predictions of a member on all test parts, or on all validation parts.

    Raises:
        RunError: it has no predictions of the validation parts.
    """
    if on == "test":
        return member.test
    if member.validation is None:
        raise RunError(
            f"{run.name} has no predictions of its validation parts ({', '.join(member.missing)} missing), as an "
            "average of runs that split the folds otherwise has none: sweep with the same --seed to have them"
        )
    return member.validation


def split_of(run: SweepRun) -> str:
    """The `--split` of a run."""
    return str(run.results["options"].get("split", "task"))


def refuse_different(a: SweepRun, b: SweepRun) -> None:
    """Raise RunError unless two runs are of the same task, target, rows and kind of folds."""
    for what in ("name", "target", "unit", "kind"):
        if a.task.get(what) != b.task.get(what):
            kind = "task" if what == "name" else what
            raise RunError(
                f"{a.name} and {b.name} do not go together: {kind} {a.task.get(what)!r} and {b.task.get(what)!r}"
            )
    if a.data_sha256 != b.data_sha256:
        raise RunError(
            f"{a.name} and {b.name} do not go together: the rows differ (SHA-256 {a.data_sha256[:12]} and "
            f"{b.data_sha256[:12]}), by --ids or by another version of the file. Sweep both on the same rows"
        )
    if split_of(a) != split_of(b):
        how = f"--split {split_of(a)} and {split_of(b)}"
        raise RunError(f"{a.name} and {b.name} do not go together: the folds differ, {how}")


def _find(address: str, storage: str) -> tuple[str, str | None]:
    """Folder of a sweep, and the member that was asked for."""
    elsewhere = "://" in address or address.startswith(("/", ".", "~"))
    for folder in [address] if elsewhere else [f"{storage}/{address}", address]:
        above, _, last = folder.rpartition("/")
        for candidate, member in ((folder, None), (above, last)):
            if not candidate or (member is not None and not _MEMBER.fullmatch(member)):
                continue
            files = file_names(*open_folder(candidate))
            if "results.json" in files:
                return candidate, member
            if "sweep.json" in files:
                raise RunError(f"{candidate} is not finished (no results.json): {how_to_go_on(candidate)}")
    there = finished_runs(storage)
    listed = ", ".join(there[:_LISTED]) + (f" and {len(there) - _LISTED} more" if len(there) > _LISTED else "")
    raise RunError(f"no run {address!r}. Finished runs in {storage}: {listed or 'none'}")


def _load_member(filesystem: fs.FileSystem, path: str, name: str, folds: list[int]) -> Member:
    have = set(file_names(filesystem, f"{path}/{name}"))
    lacking = {on: [f"{name}/{prefix}_fold_{fold}.csv" for fold in folds if f"{prefix}_fold_{fold}.csv" not in have]
               for on, prefix in _PREFIX.items()}  # fmt: skip
    if lacking["test"]:
        raise RunError(f"{path} is not whole: {', '.join(lacking['test'])} missing")
    tables = {
        on: pd.concat(
            [_load_predictions(filesystem, f"{path}/{name}/{prefix}_fold_{fold}.csv", fold) for fold in folds],
            ignore_index=True,
        )
        for on, prefix in _PREFIX.items()
        if not lacking[on]
    }
    files = {fold: f"history_fold_{fold}.csv" for fold in folds if f"history_fold_{fold}.csv" in have}
    histories = [_load_history(filesystem, f"{path}/{name}/{file}").assign(fold=fold) for fold, file in files.items()]
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame(columns=["fold", "epoch"])
    return Member(name, tables["test"], tables.get("validation"), history, lacking["validation"])


def _load_history(filesystem: fs.FileSystem, file: str) -> pd.DataFrame:
    try:  # a fingerprint is text, even one of digits alone
        return pd.read_csv(io.BytesIO(read_whole(filesystem, file)), dtype={"fingerprint": str})
    except ValueError as problem:
        raise RunError(f"{file} is damaged: {problem}") from None


def _load_predictions(filesystem: fs.FileSystem, file: str, fold: int) -> pd.DataFrame:
    # Ids and formulas stay as they are written: "007" is no number, and NaN is a compound of sodium.
    text, numeric = {"id": str, "composition": str}, ["y_true", "y_pred", "abs_error", "std", "trust"]
    try:
        table = pd.read_csv(
            io.BytesIO(read_whole(filesystem, file)),
            dtype={**text, **dict.fromkeys(numeric, float)},
            keep_default_na=False,
            na_values=dict.fromkeys(numeric, ""),
            float_precision="round_trip",
        )
        numeric = [name for name in numeric if name not in ("std", "trust") or name in table]
        numbers = table[numeric].to_numpy()
        table = table[[*text, *numeric]]
    except (ValueError, KeyError) as problem:
        raise RunError(f"{file} is damaged: {problem}") from None
    if not np.isfinite(numbers).all():
        raise RunError(f"{file} is damaged: {(~np.isfinite(numbers)).sum()} of its numbers are missing or not finite")
    if table["id"].duplicated().any():
        twice = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise RunError(f"{file} is damaged: id {twice!r} is there more than once")
    table.insert(0, "fold", fold)
    return marked(table) if "trust" in table else table


def marked(table: pd.DataFrame) -> pd.DataFrame:
    """The same with `trusted`, whether each trust is high enough, as its last column."""
    return table.assign(trusted=table["trust"] >= TRUSTED)
