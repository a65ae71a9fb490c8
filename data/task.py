"""A task: what is predicted of which examples, by what it is judged, and what a reader of its results must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from data.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from data.row_numbers import RowNumbers

Kind = Literal["regression", "classification"]
USUAL_METRIC: dict[Kind, str] = {"regression": "mae", "classification": "rocauc"}  # as Matbench judges
Quantity = Literal["energy_per_atom", "energy_per_cell", "other"]


class TaskError(UserError, ValueError):
    """A task that cannot be opened as the user asked for it; the message says what to do instead."""


def refuse_unknown(ids: list[str], known_ids: set[str], source: str, complaint: str) -> None:
    """Raises TaskError where ids are not among the known ones."""
    if unknown := [name for name in ids if name not in known_ids]:
        first = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise TaskError(f"{source} {len(unknown)} ids {complaint}: {first}")


@dataclass(frozen=True)
class Task:
    """A task: what is predicted, and what a reader of the result must know about it.

    Attributes:
        name: of an embedded or official task, or the stem of the user's file or folder.
        target: column of the targets, or what they are called.
        unit: unit of the targets, "" where there is none.
        kind: "regression", or "classification" of a boolean or, with `n_classes`, of one of several classes.
        labels: one sentence on where the labels come from, shown wherever a result appears.
        family: what an example is, and so what reads the rows.
        example: the word for one example in messages and on pages.
        metric: name of what predictions are judged by, of `data.metrics.METRICS`.
        groups: what examples have in common that the splits and the bootstrap keep together, in a word that is also
            the column of its names in files of predictions.
        target_shape: of the target of one example; () for a number or a class.
        n_classes: of a classification with more than two, whose targets are 0 to n_classes - 1; else None.
        quantity: what the target is to a model of energies, "other" where it is none.
        inputs: what a row is, where a family has several kinds: of crystals "structures", which become graphs, or
            "compositions", which are formulas and never do.
        pretraining_overlap: the examples are known to come from what pretrained weights have seen.
        official: the published task whose folds apply, or None.
        n_official: number of rows of that whole task; fewer rows at hand are a subset.
        flags: words that are shown wherever a result appears.
        notes: anything else to know, or "".
    """

    name: str
    target: str
    unit: str
    kind: Kind
    labels: str
    family: str
    example: str
    metric: str
    groups: str
    target_shape: tuple[int, ...] = ()
    n_classes: int | None = None
    quantity: Quantity = "other"
    inputs: str = ""
    pretraining_overlap: bool = False
    official: str | None = None
    n_official: int | None = None
    flags: tuple[str, ...] = ()
    notes: str = ""

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """The shape of one example's prediction: that of its target, and for several classes a probability of each."""
        return (*self.target_shape, self.n_classes) if self.n_classes else self.target_shape


class TaskRows(Protocol):
    """All rows of a task in order, their inputs as a family keeps them.

    A row is an example with its target. The first three are for everybody, the others for the family alone.
    """

    @property
    def ids(self) -> list[str]:
        """One a row; not necessarily unique."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """Float64, shape (n_rows, *target_shape), in the task's unit; NaN where missing. Classes are 0, 1, ...."""
        ...

    @property
    def groups(self) -> list[str] | None:
        """The user's own groups, one a row: rows of a group share a fold. None where the user names none."""
        ...

    @property
    def sha256(self) -> str:
        """Identity of the content: what was read, the target, a restriction to some ids."""
        ...

    @property
    def row_numbers(self) -> RowNumbers:
        """Where the rows stand in the user's file."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def select(self, positions: list[int], sha256: str) -> Self:
        """The rows at `positions`, in that order, under a new content identity."""
        ...

    def held(self) -> Self:
        """The rows with their inputs in memory, where these are read from a file each time."""
        ...

    def chunk(self, start: int, stop: int) -> Any:
        """Rows `start` up to, not including, `stop`, as a process takes them that makes something of them."""
        ...
