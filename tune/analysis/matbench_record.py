"""A finished sweep as the record of Matbench's own package, which scores, checks and writes it.

matbench 0.6 is older than the libraries here. What it needs help with, each said where it is done: labels without a
download, an uncertainty of zero, files that are not compressed, and warnings of Python 3.12.
"""

from __future__ import annotations

import gzip
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.families import data_family
from data.fold import DEFAULT_SPLIT
from data.folds import make_folds
from data.task_words import task_family
from tune.errors import RunError
from tune.runs import Member, SweepRun, split_of

_TOLERANCE = 1e-4  # relative, of the spread of all labels that Matbench publishes


class IncompleteError(RunError):
    """A sweep that is no whole official task; `missing` has the rows, fold and id, that it lacks."""

    def __init__(self, message: str, missing: pd.DataFrame) -> None:
        """Say why, and keep the rows."""
        super().__init__(message)
        self.missing = missing


def refuse_incomplete(run: SweepRun, member: Member) -> None:
    """Raise unless a member predicts every row of an official task in its official fold.

    Raises:
        RunError: not an official task, or rows of other folds.
        IncompleteError: a subset of the task, missing folds or missing ids.
    """
    if (split := split_of(run)) != DEFAULT_SPLIT:
        raise RunError(f"{run.name} was swept with --split {split}: Matbench takes its own folds only")
    name, description = run.task.get("official"), run.results["data"]["description"]
    if not name:
        raise RunError(
            f"{run.name} is of {run.task['name']!r}, which is no task of Matbench: it has no official ids and folds"
        )
    task, ids = data_family(task_family(run.task)).official(name)
    if run.task["target"] != task.target:
        raise RunError(f"{run.name} predicts {run.task['target']!r}; {name} asks for {task.target!r}")
    official = pd.concat(
        [pd.DataFrame({"fold": fold.index, "id": fold.test_ids}) for fold in make_folds(task, ids, None)],
        ignore_index=True,
    )
    joined_ids = official.merge(member.test[["fold", "id"]], on=["fold", "id"], how="outer", indicator=True)
    missing = joined_ids.loc[joined_ids["_merge"] == "left_only", ["fold", "id"]].reset_index(drop=True)
    strange = joined_ids[joined_ids["_merge"] == "right_only"]
    if len(missing):
        lines = []
        for fold, fold_ids in missing.groupby("fold"):
            n, examples = int((official["fold"] == fold).sum()), ", ".join(fold_ids["id"].iloc[:3])
            lines.append(
                f"fold {fold}: all {n:,} ids"
                if len(fold_ids) == n
                else f"fold {fold}: {len(fold_ids):,} of {n:,} ids, {examples}{', ...' if len(fold_ids) > 3 else ''}"
            )
        why = f"{run.name} is not a complete {name} ({description})."
        if "subset" in description:
            why += " Matbench takes whole tasks only: a result on some of the rows is no submission."
        raise IncompleteError("\n  ".join([f"{why} Missing:", *lines]), missing)
    if len(strange):
        first = strange.iloc[0]
        raise RunError(
            f"{run.name}: {len(strange)} ids are not in their official fold, {first['id']} in {first['fold']}"
        )


def refuse_other_labels(run: SweepRun, member: Member) -> None:
    """Raise RunError unless the labels are spread as Matbench publishes it.

    A sweep of a file of one's own could have other labels under Matbench's ids, and its scores would be of those. One
    of the official file needs no such check: its checksum was compared with the published one when it was opened.
    """
    if run.results["options"].get("task") == run.task["official"]:
        return
    labels = member.test["y_true"].to_numpy()
    published = _metadata(run.task["official"])
    measure, spread = "mean absolute deviation", float(np.abs(labels - labels.mean()).mean())
    expected = published.get("mad")
    if run.task["kind"] == "classification":
        measure, spread, expected = "share of true ones", float((labels > 0.5).mean()), published.get("frac_true")
    if expected is not None and abs(spread - expected) > _TOLERANCE * abs(expected):
        raise RunError(
            f"{run.name}: the labels are not Matbench's, their {measure} is {spread:.8g} where {run.task['official']} "
            f"has {expected:.8g}. Sweep the official file, --task {run.task['official']}"
        )


def make_record(run: SweepRun, member: Member, params: dict[int, dict[str, Any]], metadata: dict[str, Any]) -> Any:
    """The record of all folds, scored by Matbench.

    Args:
        run: a complete official task.
        member: of it, whose predictions and, for a regression, `std` are recorded.
        params: by fold, anything JSON has words for.
        metadata: of the user, the same.

    Returns:
        A `matbench.bench.MatbenchBenchmark` of one task.
    """
    name, classification = run.task["official"], run.task["kind"] == "classification"
    rows = member.test.set_index("id")
    with quiet_matbench():
        from matbench.bench import MatbenchBenchmark

        benchmark = MatbenchBenchmark(autoload=False, subset=[name])
        task = benchmark.tasks_map[name]
        # `load()` would download what the sweep has read already; only labels are used, to score.
        labels = rows["y_true"] > 0.5 if classification else rows["y_true"]
        task.df = pd.DataFrame({task.metadata.input_type: rows["group"], task.metadata.target: labels})
        for fold, key in task.folds_map.items():
            fold_rows = rows.loc[list(task.validation[key].test)]
            std = None
            if "std" in fold_rows and not classification:  # which matbench refuses to classifications
                # Of a std of zero, as members that agree have, matbench would make an interval of NaN.
                std = np.maximum(fold_rows["std"].to_numpy(), np.finfo(float).tiny)
            task.record(fold, fold_rows["y_pred"].to_numpy(), std=std, params=params.get(fold, {}))
        benchmark.add_metadata(metadata)
    return benchmark


def file_content(benchmark: Any) -> bytes:
    """The record as it belongs into `results.json.gz`, once `MatbenchBenchmark.from_file` finds it valid.

    matbench 0.6 writes and reads plain text, whatever a file's name; its repository, where submissions go, has
    compressed ones since 2023 (its issue 249). So its own `to_file` and `from_file` see the text, which is then packed.

    Raises:
        RunError: it is not valid.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_matbench():
        plain = Path(folder) / "results.json"
        # Not `validate()` before this: it leaves empty entries among the uncertainties.
        benchmark.to_file(str(plain))
        content = plain.read_bytes()
        try:
            file_benchmark = type(benchmark).from_file(str(plain))
            valid = file_benchmark.is_valid and file_benchmark.is_recorded
        except (ValueError, KeyError, TypeError) as problem:
            raise RunError(f"matbench finds its record not valid: {problem}") from None
    if not valid:
        raise RunError("matbench finds its record not valid")
    return gzip.compress(content, mtime=0)


@contextmanager
def quiet_matbench() -> Iterator[None]:
    """No log lines of matbench on the terminal, and no warnings of what its age uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matbench.bench  # noqa: F401 - it sets up its own logging, which is put off below

        logger = logging.getLogger("matbench")
        before = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(before)


def _metadata(name: str) -> dict[str, Any]:
    with quiet_matbench():
        from matbench.metadata import mbv01_metadata

        return dict(mbv01_metadata[name])
