"""A finished sweep, read back from its folder: predictions, histories, configurations and what they are of.

In a notebook:

    sweep = load_sweep("NAME")
    sweep.trials, sweep.histories, sweep.predictions  # pandas DataFrames

Everything that reads results goes through `load_sweep`; it imports neither torch nor Ray. ray_results/README.md says
what each file of the folder is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import fs

from data.metrics import METRICS, Metric
from data.stores.storage import file_names, open_folder, read_whole
from data.task_words import TaskWords, task_family, task_words
from tune.arguments import STORAGE, On
from tune.errors import RunError
from tune.records.folder import Folder
from tune.records.going_on import how_to_go_on
from tune.records.members import PREFIX, Member, as_written, load_history, load_member, read_arrays

# What else readers take from results.json.
_NEEDED = {"record", "notes", "flags", "protocol", "options", "trials", "cost", "inert", "by_chance"}
_MEMBER = re.compile(r"reference|ensemble|seed_\d+")
_LISTED = 20  # runs named in an error


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
    def family(self) -> str:
        """The family of the task."""
        return task_family(self.task)

    @property
    def words(self) -> TaskWords:
        """The words in which the task calls its examples and their groups."""
        return task_words(self.task)

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
                tables.append(load_history(filesystem, file).assign(trial=name, fold=fold))
        if not tables:
            return pd.DataFrame(columns=["member", "trial", "fold", "epoch"])
        together = pd.concat(tables, ignore_index=True)
        first = [name for name in ("member", "trial", "fold", "epoch") if name in together]
        return together[[*first, *together.columns.difference(first, sort=False)]]

    @property
    def predictions(self) -> pd.DataFrame:
        """Predictions of every member.

        Columns: member, part (`test` or `validation`), fold, id, that of the groups as the files call it (of crystals
        composition), y_true, y_pred, abs_error, and std where something is known of it.
        """
        tables = []
        for name, member in self.members.items():
            for part, table in (("test", member.test), ("validation", member.validation)):
                if table is not None:
                    rows = as_written(table, self.words.group)
                    rows.insert(0, "member", name)
                    rows.insert(1, "part", part)
                    tables.append(rows)
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
    folder, member_name = _find(address.rstrip("/"), storage)
    filesystem, path = open_folder(folder)
    try:
        results = json.loads(read_whole(filesystem, f"{path}/results.json"))
        n_test = {entry["fold"]: entry["n_test"] for entry in results["reference"]["folds"]}
        folds = list(n_test)
        names = ["reference", *(f"seed_{entry['seed']}" for entry in results["seeds"])]
        configs = {entry["fold"]: entry["config"] for entry in results["chosen"]}
        name, task, sha256 = results["sweep"], results["task"], results["data"]["sha256"]
        metric, group = METRICS[results["metric"]], task_words(task).group
        required_keys = _NEEDED | ({"weights", "chose_by_validation"} if "members" in results else {"model"})
        if missing_keys := sorted(required_keys - results.keys()):
            raise KeyError(", ".join(missing_keys))
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(
            f"{folder}/results.json is not that of a sweep, or of another version of matsweep "
            f"({type(problem).__name__}: {problem})"
        ) from None
    names += ["ensemble"] if "ensemble" in results else []
    if member_name is not None and member_name not in names:
        raise RunError(f"{folder} has no member {member_name!r}: it has {', '.join(names)}")
    members = {
        member: load_member(filesystem, path, member, folds, group) for member in names if member_name in (None, member)
    }
    for member, content in members.items():
        for fold, n_rows in content.test["fold"].value_counts().items():
            if n_rows != n_test[fold]:
                file = f"{folder}/{member}/preds_fold_{fold}.csv"
                raise RunError(f"{file} is damaged: it has {n_rows} predictions, and results.json says {n_test[fold]}")
    has_training = bool(results["seeds"] or "ensemble" in results) and member_name != "reference"
    return SweepRun(
        name=name if member_name is None else f"{name}/{member_name}",
        address=folder,
        results=results,
        members=members,
        folds=folds,
        configs=configs if has_training else {},
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
                names += [f"{info.base_name}/{name}" for name in finished_runs(f"{storage}/{info.base_name}")]
    return sorted(names)


def compared_members(run: SweepRun) -> list[Member]:
    """The members a run is judged by: all its seeds, else its ensemble, else the untrained reference."""
    seeds = [member for name, member in run.members.items() if name.startswith("seed_")]
    return seeds or [run.members.get("ensemble") or run.members["reference"]]


def by_chance(run: SweepRun) -> bool:
    """Whether a seed has a part in what a run is judged by: not in a reference, nor in what draws nothing."""
    return compared_members(run)[0].name != "reference" and bool(run.results["by_chance"])


def contribution(run: SweepRun) -> Member:
    """The one member that stands for a run: its ensemble, else its only seed, else the untrained reference."""
    return run.members.get("ensemble") or compared_members(run)[0]


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
    has_choice = bool(options.get("searched")) or options.get("tta") == "auto"
    return has_choice or any(config.get("keep") == "best" for config in run.configs.values())


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


def metric_of_fold(run: SweepRun, fold: int) -> Metric:
    """The metric of a run on a fold, whose training targets may scale it."""
    scales = run.results.get("scales", {})
    return replace(run.metric, scale=scales[str(fold)]) if scales else run.metric


def arrays_of_fold(run: SweepRun, member: Member, on: On, fold: int) -> dict[str, np.ndarray]:
    """Labels y_true and predictions y_pred (and std) that are arrays, in the order of a member's table of a fold.

    Raises:
        RunError: the file is missing or damaged.
    """
    filesystem, path = open_folder(run.address)
    return read_arrays(filesystem, path, member.name, on, fold)


def copy_predictions(run: SweepRun, member: Member, on: On, fold: int, folder: Folder) -> None:
    """Write the files of a member's predictions of a fold into another folder, as they are."""
    filesystem, path = open_folder(run.address)
    for name in (f"{PREFIX[on]}_fold_{fold}.csv", f"{PREFIX[on]}_fold_{fold}.npz"):
        if name in file_names(filesystem, f"{path}/{member.name}"):
            folder.write(f"{member.name}/{name}", read_whole(filesystem, f"{path}/{member.name}/{name}"))


def refuse_different(a: SweepRun, b: SweepRun) -> None:
    """Raise RunError unless two runs are of the same task, target, rows and kind of folds."""
    for field in ("name", "target", "unit", "kind"):
        if a.task.get(field) != b.task.get(field):
            kind = "task" if field == "name" else field
            raise RunError(
                f"{a.name} and {b.name} do not go together: {kind} {a.task.get(field)!r} and {b.task.get(field)!r}"
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
    runs = finished_runs(storage)
    names = ", ".join(runs[:_LISTED]) + (f" and {len(runs) - _LISTED} more" if len(runs) > _LISTED else "")
    raise RunError(f"no run {address!r}. Finished runs in {storage}: {names or 'none'}")
