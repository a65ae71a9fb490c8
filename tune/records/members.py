"""Reads a member of a finished sweep back from the CSV files of its folder. Called by `tune/runs.py`.

In memory the column of groups is called `group`; in files it has the name that the task gives it, which `as_written`
puts back.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyarrow import fs

from data.metrics import TRUSTED
from data.stores.storage import file_names, read_whole
from tune.errors import RunError

PREFIX = {"test": "preds", "validation": "val"}


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a run on every fold: a seed, the ensemble of the seeds, or the untrained reference.

    Attributes:
        name: its folder: `seed_0`, `ensemble` or `reference`.
        test: fold, id, group, y_true, y_pred, abs_error (and std of an ensemble), trust and trusted (of a sweep
            of an earlier version neither), one row a test example. Where predictions are arrays, the values that the
            metrics are made of in place of the three; `arrays` has the arrays.
        validation: the same of the folds' validation parts, or None where a file is missing.
        history: fold, epoch, train_loss, val_loss, val_mae or val_rocauc, lr, seconds; no row where there is none.
        missing: files of the validation parts that are not there, as of an average of runs that split otherwise.
    """

    name: str
    test: pd.DataFrame
    validation: pd.DataFrame | None
    history: pd.DataFrame
    missing: list[str]


def load_member(filesystem: fs.FileSystem, path: str, name: str, folds: list[int], group_name: str) -> Member:
    """Reads a member of the sweep in a folder, whose files have the groups in a column of this name.

    Raises:
        RunError: files are missing or damaged; the message names them.
    """
    files_there = set(file_names(filesystem, f"{path}/{name}"))
    missing_files = {
        on: [f"{name}/{prefix}_fold_{k}.csv" for k in folds if f"{prefix}_fold_{k}.csv" not in files_there]
        for on, prefix in PREFIX.items()
    }
    if missing_files["test"]:
        raise RunError(f"{path} is not whole: {', '.join(missing_files['test'])} missing")
    tables = {
        on: pd.concat(
            [
                _load_predictions(filesystem, f"{path}/{name}/{prefix}_fold_{fold}.csv", fold, group_name)
                for fold in folds
            ],
            ignore_index=True,
        )
        for on, prefix in PREFIX.items()
        if not missing_files[on]
    }
    files = {fold: f"history_fold_{fold}.csv" for fold in folds if f"history_fold_{fold}.csv" in files_there}
    histories = [load_history(filesystem, f"{path}/{name}/{file}").assign(fold=fold) for fold, file in files.items()]
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame(columns=["fold", "epoch"])
    return Member(name, tables["test"], tables.get("validation"), history, missing_files["validation"])


def load_history(filesystem: fs.FileSystem, file: str) -> pd.DataFrame:
    """Reads the epochs of one training; RunError where the file is damaged."""
    try:  # a fingerprint is text, even one of digits alone
        return pd.read_csv(io.BytesIO(read_whole(filesystem, file)), dtype={"fingerprint": str})
    except ValueError as problem:
        raise RunError(f"{file} is damaged: {problem}") from None


def _load_predictions(filesystem: fs.FileSystem, file: str, fold: int, group_name: str) -> pd.DataFrame:
    # Ids and formulas stay as they are written: "007" is no number, and NaN is a compound of sodium.
    text, content = {"id": str, group_name: str}, read_whole(filesystem, file)
    try:
        columns = pd.read_csv(io.BytesIO(content), nrows=0).columns
        numeric = [name for name in columns if name not in (*text, "trusted")]
        if {"y_true", "y_pred", "abs_error"} & set(columns):  # all three, then
            numeric = [*dict.fromkeys(["y_true", "y_pred", "abs_error", *numeric])]
        table = pd.read_csv(
            io.BytesIO(content),
            dtype={**text, **dict.fromkeys(numeric, float)},
            keep_default_na=False,
            na_values=dict.fromkeys(numeric, ""),
            float_precision="round_trip",
        )
        numbers = table[numeric].to_numpy()
        table = table[[*text, *numeric]].rename(columns={group_name: "group"})
    except (ValueError, KeyError) as problem:
        raise RunError(f"{file} is damaged: {problem}") from None
    if not np.isfinite(numbers).all():
        raise RunError(f"{file} is damaged: {(~np.isfinite(numbers)).sum()} of its numbers are missing or not finite")
    if "y_pred" in table and (off := _off(table)).any():
        row_id = table.loc[off, "id"].iloc[0]
        raise RunError(f"{file} is damaged: abs_error of id {row_id!r} is not the distance of y_pred from y_true")
    if table["id"].duplicated().any():
        twice = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise RunError(f"{file} is damaged: id {twice!r} is there more than once")
    table.insert(0, "fold", fold)
    return marked(table) if "trust" in table else table


def _off(table: pd.DataFrame) -> pd.Series:
    """Whether the error of a row is another one than its label and prediction say."""
    return ~np.isclose(np.abs(table["y_true"] - table["y_pred"]), table["abs_error"], rtol=1e-6, atol=1e-9)


def read_arrays(filesystem: fs.FileSystem, path: str, member: str, on: str, fold: int) -> dict[str, np.ndarray]:
    """The arrays y_true and y_pred (and std) of a fold, in the order of its table's rows; shapes (n, ...).

    Args:
        filesystem, path: of the sweep's folder.
        member: such as `seed_0`.
        on: `test` or `validation`.
        fold: its index.

    Raises:
        RunError: the file is missing or damaged.
    """
    file = f"{path}/{member}/{PREFIX[on]}_fold_{fold}.npz"
    try:
        with np.load(io.BytesIO(read_whole(filesystem, file)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise RunError(f"{path} is not whole: {file} missing") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise RunError(f"{file} is damaged: {problem}") from None


def as_written(table: pd.DataFrame, group_name: str) -> pd.DataFrame:
    """A table of predictions as it is written, the column of groups under the name that the task gives it."""
    return table.rename(columns={"group": group_name})


def marked(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `trusted` to a table as its last column: whether each trust is high enough."""
    return table.assign(trusted=table["trust"] >= TRUSTED)
