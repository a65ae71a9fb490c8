"""The family of curves: an example is 16 numbers along a line. What each function is for: `DataFamily`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.fold import Fold
from data.row_numbers import RowNumbers
from data.task import Task, TaskError

SPLIT_RULES: tuple[str, ...] = ()
N_CURVES, N_POINTS, N_NEXT = 120, 16, 8
WAVES = Task(
    name="waves",
    target="the next points",
    unit="V",
    kind="regression",
    labels="Labels are made, with noise.",
    family="curves",
    metric="relative_l2",
    example="curve",
    groups="source",
    target_shape=(N_NEXT,),
)
SHAPES = Task(
    name="shapes",
    target="shape",
    unit="",
    kind="classification",
    labels="Labels are made.",
    family="curves",
    metric="accuracy",
    example="curve",
    groups="source",
    n_classes=3,
)

PHASES = Task(
    name="phases",
    target="phase",
    unit="s",
    kind="regression",
    labels="Labels are made.",
    family="curves",
    example="curve",
    metric="rmse_over_std",
    groups="source",
)
TASKS = {task.name: task for task in (WAVES, SHAPES, PHASES)}


@dataclass(frozen=True, eq=False)
class CurveRows:
    """Curves, float32, shape (n_rows, 16), with their targets; two of each source."""

    ids: list[str]
    curves: np.ndarray
    targets: np.ndarray
    sources: list[str]
    sha256: str
    groups: list[str] | None = None

    @property
    def row_numbers(self) -> RowNumbers:
        return RowNumbers("row", range(1, len(self) + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def held(self) -> CurveRows:
        return self

    def chunk(self, start: int, stop: int) -> CurveRows:
        return self.select(range(start, stop), self.sha256)

    def select(self, positions: Sequence[int], sha256: str) -> CurveRows:
        which = list(positions)
        ids, sources = ([names[k] for k in which] for names in (self.ids, self.sources))
        return CurveRows(ids, self.curves[which], self.targets[which], sources, sha256)


def task_names() -> list[str]:
    return list(TASKS)


def open_named(name: str, _download_dir: Path) -> tuple[Task, CurveRows]:
    random = np.random.default_rng(0)
    shape, source = np.arange(N_CURVES) % 3, np.arange(N_CURVES) // 6 * 3 + np.arange(N_CURVES) % 3
    phase = random.random(N_CURVES)[source]
    place = np.arange(N_POINTS + N_NEXT) / N_POINTS + phase[:, None]
    ways = [np.sin(2 * np.pi * place), 2 * (place % 1) - 1, np.sign(np.sin(2 * np.pi * place))]
    whole = np.choose(shape[:, None], ways) + 0.1 * random.normal(size=place.shape)
    targets = {WAVES.name: whole[:, N_POINTS:], SHAPES.name: shape.astype(np.float64), PHASES.name: phase}[name]
    ids, sources = [f"curve-{k:03d}" for k in range(N_CURVES)], [f"source {k}" for k in source]
    return TASKS[name], CurveRows(
        ids, whole[:, :N_POINTS].astype(np.float32), targets, sources, hashlib.sha256(whole).hexdigest()
    )


def open_path(path: Path, _target: str | None) -> tuple[Task, CurveRows]:
    raise TaskError(f"{path} is no file of curves. {layouts()}")


def with_quantity(task: Task, quantity: str) -> Task:
    raise TaskError(f"quantity {quantity!r}: a target of curves is no energy; leave the option out")


def official_folds(_task: Task, _ids: list[str]) -> list[Fold]:
    raise NotImplementedError("no task of curves is official")


def official(name: str) -> tuple[Task, list[str]]:
    raise TaskError(f"no task of curves is official, and so is not {name!r}")


def layouts() -> str:
    return "Curves are made, and read from no file."
