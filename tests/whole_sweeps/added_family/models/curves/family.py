"""The family of curves. What each function is for: `Family`; what curves have not is in `models/plain_family.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.curves.family import CurveRows
from data.errors import UserError
from data.task import Task
from models.family import FamilyRows, Reading
from models.model import Model
from models.plain_family import about as about
from models.plain_family import arrays as arrays
from models.plain_family import caches as caches
from models.plain_family import fit_trust as fit_trust
from models.plain_family import pretraining_note as pretraining_note
from models.plain_family import refusal as refusal
from models.plain_family import small_task as small_task
from models.plain_family import target_note as target_note

ROWS_PER_PASS = 64


@dataclass(frozen=True)
class Curves:
    """Curves as models read them, float32, shape (n_rows, 16)."""

    values: np.ndarray

    def select(self, which: np.ndarray) -> Curves:
        return Curves(self.values[which])


def needs(_model: Model, _parameters: Mapping[str, Any]) -> None:
    """All that models read of curves is the curves."""


def read(
    _task: Task, rows: CurveRows, _need: None, _cache: str, _split: str, *, collapse: bool, at_once: int | None
) -> FamilyRows:
    nothing: list[str | None] = [None] * len(rows)
    return FamilyRows(Curves(rows.curves), list(rows.sources), nothing, [()] * len(rows), [], {}, "none")


def baseline(_model: Model, _parameters: Mapping[str, Any], _kind: str) -> dict[str, Any]:
    return {"model": "curve_mean"}


def baseline_title(_model: str, _config: Mapping[str, Any], _quantity: str) -> str:
    return "mean of the training targets"


def sizes(rows: Curves) -> np.ndarray:
    return np.full(len(rows.values), rows.values.shape[1])


work = sizes


def counted_work(rows: Curves, _need: None) -> np.ndarray:
    return sizes(rows)


def reading(rows: CurveRows, _need: None, _cache: str) -> Reading:
    return Reading("curves", "none", np.full(len(rows), rows.curves.shape[1]))


def new_rows(_model: Model, _about: Mapping[str, str], _trust: Any, examples: Sequence[Any], _device: str) -> Curves:
    for k, example in enumerate(examples):
        if np.shape(example) != (16,):
            raise UserError(f"example {k} has shape {np.shape(example)}: a curve has 16 points")
    return Curves(np.array(examples, dtype=np.float32))
