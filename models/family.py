"""What a sweep asks of a family: what an example is, and so how its rows are read, split, moved and trusted.

A family is a folder in `data/` and one in `models/`; its `Family` entry is the one thing that `tune/` knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import UserError
from data.folds import Fold
from data.task_table import Quantity
from models.config import ModelConfig
from models.metrics import Kind
from models.model import Fitted, Model, Prediction, TrainingPart, TrainingRows

# Arrays of runs of rows, each with the positions of its rows, in order.
Parts = Any


class UnsuitedError(UserError, ValueError):
    """A model, an option and a task that do not go together; the message says why and what to do."""


@dataclass(frozen=True)
class CachedArrays:
    """Arrays with something for every row, computed once in parallel processes and kept in the cache.

    Attributes:
        what: is computed, for the progress bar.
        prefix: how the names of their files begin: all that their content depends on, beside the rows.
        compute: the arrays by name of the rows at some positions, on a device.
        join: of all rows and the computed parts, the fields of the rows to set.
        on_gpu: whether a GPU is of use.
    """

    what: str
    prefix: str
    compute: Callable[[Any, np.ndarray, str], dict[str, np.ndarray]]
    join: Callable[[Any, Parts], dict[str, Any]]
    on_gpu: bool = False


@dataclass(frozen=True, eq=False)
class FamilyRows:
    """The rows of a task, read.

    Attributes:
        rows: as the family's models read them, without the cached arrays.
        groups: what the splits and the bootstrap keep together, by row; None for a rejected row.
        reasons: why a row was rejected, or None.
        notes: what the reader noted of each row.
        remarks: sentences on the whole, for the terminal.
        facts: on the whole, by name, for the results.
        cache_key: name of the rows' folder in the cache.
        folds: that a split rule makes; None: those of the task.
        split_note: what a reader must know of other folds than the task's.
    """

    rows: Any
    groups: list[str | None]
    reasons: list[str | None]
    notes: list[tuple[str, ...]]
    remarks: list[str]
    facts: dict[str, int]
    cache_key: str
    folds: list[Fold] | None = None
    split_note: str = ""


@dataclass(frozen=True)
class Family:
    """An entry of the registry of families.

    Parameters are those of a search space: values or ranges of the fields of a model's config.

    Attributes:
        name: as a task calls it.
        refusal: why a model, a task, a split rule and test-time augmentation do not go together, or None.
        needs: what a model's trials read of a task, from the parameters; spaces of equal needs share their rows.
        read: the rows of a task for some needs: (task, rows, needs, cache folder, split rule, collapse, at once).
        arrays: what is to be cached of rows for some needs; (needs, collapse).
        baseline: what training has to beat, as `model` and its config; (model, parameters, kind).
        baseline_title: its name in tables; (model name, its config, quantity of the task).
        seen: the sentence on what pretraining may have seen of test rows from a source of its data; "" if none has.
        target_note: how a model takes a target of the user's own; "" where that is no question.
        sizes: of each row, by which small ones are chosen, shape (n_rows,).
        work: that a network has with each row, in any unit, shape (n_rows,).
        rows_per_pass: most rows that a network judges at once.
        small: rows of an embedded task for some needs, to try a lever on where a task has few: (needs, kind, quantity).
        fit_trust: what marks predictions, with `judge` and `content` as `models/crystals/trust.py` has them: (config,
            rows, part, what gives the predictions of rows at some positions).
        load_trust: that of what its `content` was.
        new_rows: new examples as a trained model reads them: (model, its facts, its trust, examples, device).
        averaged: the mean prediction of moved copies: (fitted, rows, positions, copies); of what cannot be moved, the
            prediction.
        judge_copies: what averaging gains on validation rows.
        about: facts of a config to keep in a model's file.
    """

    name: str
    refusal: Callable[..., str | None]
    needs: Callable[[Model, Mapping[str, Any]], Any]
    read: Callable[..., FamilyRows]
    arrays: Callable[[Any, bool], list[CachedArrays]]
    baseline: Callable[[Model, Mapping[str, Any], Kind], dict[str, Any]]
    baseline_title: Callable[[str, Mapping[str, Any], Quantity], str]
    seen: Callable[[Model, Mapping[str, Any]], str]
    target_note: Callable[[Model, Quantity], str]
    sizes: Callable[[Any], np.ndarray]
    work: Callable[[Any], np.ndarray]
    rows_per_pass: int
    small: Callable[[Any, Kind, Quantity], tuple[TrainingRows, TrainingPart]]
    fit_trust: Callable[[ModelConfig, Any, TrainingPart, Callable[[np.ndarray], np.ndarray]], Any]
    load_trust: Callable[[dict[str, Any]], Any]
    new_rows: Callable[[Model, Mapping[str, str], Any, Sequence[Any], str], Any]
    averaged: Callable[[Fitted, Any, np.ndarray, int], Prediction]
    judge_copies: Callable[..., Any]
    about: Callable[[ModelConfig], dict[str, str]]
