"""What a sweep asks of a family: what an example is, and so how its rows are read, split, moved and trusted.

A family is a folder in `data/` and one in `models/`. The latter has a module `family.py` with the functions that
`Family` lists, and may have a second one with those that `FamilyFacts` lists; a line in `models/registry.py` names
each. `tune/` knows no more of a family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from data.errors import UserError

if TYPE_CHECKING:  # pages that read a finished sweep import this module, and not torch
    import pandas as pd

    from data.fold import Fold
    from data.metrics import Metric
    from data.task import Kind, Quantity, Task
    from models.config import ModelConfig
    from models.model import Fitted, Model, Prediction, TrainingPart

# Runs of rows, in order: the positions of each run's rows, and its arrays by name.
Parts = Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]


class UnsuitedError(UserError, ValueError):
    """A model, an option and a task that do not go together; the message says why and what to do."""


@dataclass(frozen=True)
class CachedArrays:
    """Arrays with something for every row, computed once in parallel processes and kept in the cache.

    Attributes:
        what: words for the progress bar.
        prefix: how the names of their files begin; it holds all that their content depends on, beside the rows.
        compute: makes the arrays, by name, of the rows at some positions (int64) on a device.
        join: makes fields of the rows, by name, of all rows and the computed parts. Parts that are damaged are left
            out, and what is made of the others is thrown away.
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
        rows: a frozen dataclass, the rows as the family's models read them, without the cached arrays.
        group_names: name of what a row has in common with others, such as its composition: the splits and the bootstrap
            keep rows of one name together. None for a rejected row.
        reasons: why a row was rejected, or None.
        notes: what the reader noted of each row.
        remarks: sentences for the terminal on all rows together.
        facts: numbers for the results on all rows together, by name.
        cache_key: name of the rows' folder in the cache.
        folds: those that a split rule makes; None: those of the task.
        split_note: what a reader must know of other folds than the task's, or "".
    """

    rows: Any
    group_names: list[str | None]
    reasons: list[str | None]
    notes: list[tuple[str, ...]]
    remarks: list[str]
    facts: dict[str, int]
    cache_key: str
    folds: list[Fold] | None = None
    split_note: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """The work of `Family.read` for some rows, and what the cache spares it; `--plan` measures the rest of it.

    Attributes:
        what: is made of the rows, in a word for tables.
        cache_key: name of the rows' folder in the cache.
        sizes: what the work of each row goes with, as far as that is known before it is done, shape (n_rows,).
        pieces: rows of each piece of the work; processes take the next one when they are free. None where there is
            nothing to do but to read.
        missing: rows of those pieces that the cache lacks.
        worker: class of what does the work, in a process of its own: its `write` puts the piece of a number into the
            cache, given its rows as a `RawChunk`. None where there is none to do.
        arguments: that make one.
        held_bytes: of the rows that `read` would return, where the cache holds all of them.
        seconds: that reading those took.
        own_bytes: that each row of the task takes in the memory of every trial, beside what trials share.
    """

    what: str
    cache_key: str
    sizes: np.ndarray
    pieces: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    worker: type | None = None
    arguments: tuple[Any, ...] = ()
    held_bytes: int | None = None
    seconds: float = 0.0
    own_bytes: int = 0


def n_bytes(value: Any) -> int:
    """Bytes of the arrays in a dataclass, such as rows, or of an array."""
    if is_dataclass(value):
        return sum(n_bytes(getattr(value, field.name)) for field in fields(value))
    return getattr(value, "nbytes", 0)


class Family(Protocol):
    """The functions of a family's module.

    `parameters` are those of a search space: values, or ranges as dictionaries, of the fields of a model's config.
    `rows` are the family's own, and `need` is whatever `needs` returns.
    """

    @property
    def ROWS_PER_PASS(self) -> int:  # noqa: N802 - a constant of a module
        """The most rows that a network judges at once."""
        ...

    def refusal(self, model: Model, task: Task, split_rule: str, tta: str) -> str | None:
        """Why a model, a task, the value of `--split` and that of `--tta` do not go together; None: they do."""
        ...

    def needs(self, model: Model, parameters: Mapping[str, Any]) -> Any:
        """The needs of a model's trials of a task; spaces whose needs are equal share their rows."""
        ...

    def read(
        self,
        task: Task,
        rows: Any,
        need: Any,
        cache_folder: str,
        split_rule: str,
        *,
        collapse: bool,
        at_once: int | None,
    ) -> FamilyRows:
        """Reads the rows of a task.

        Args:
            task: of the rows.
            rows: all rows of the task, as `data.tasks.open_task` returns them.
            need: what trials read.
            cache_folder: path or URI that holds the caches.
            split_rule: the value of `--split`.
            collapse: whether what is equivalent by symmetry is computed once.
            at_once: processes that compute; None: as many as fit.
        """
        ...

    def caches(self, task: Task) -> bool:
        """Whether what is made of the rows of a task is kept in the cache."""
        ...

    def arrays(self, need: Any, *, collapse: bool) -> list[CachedArrays]:
        """The arrays that trials read beside the rows."""
        ...

    def baseline(self, model: Model, parameters: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
        """The baseline that training has to beat: the name of a model as `model`, and the fields of its config."""
        ...

    def baseline_title(self, model: str, config: Mapping[str, Any], quantity: Quantity) -> str:
        """The title of a baseline in tables, given its model's name and config."""
        ...

    def pretraining_note(self, model: Model, parameters: Mapping[str, Any]) -> str:
        """A sentence for tasks whose source pretraining may have seen; "" where nothing was pretrained."""
        ...

    def target_note(self, model: Model, task: Task) -> str:
        """How a model takes the target of a task of the user's own; "" where there is only one way."""
        ...

    def sizes(self, rows: Any) -> np.ndarray:
        """The size of each row, by which small rows are chosen, shape (n_rows,)."""
        ...

    def work(self, rows: Any) -> np.ndarray:
        """How much a network computes for each row, in any unit, shape (n_rows,)."""
        ...

    def reading(self, rows: Any, need: Any, cache_folder: str) -> Reading:
        """The work that `read` would have for all rows of a task; nothing is done."""
        ...

    def counted_work(self, rows: Any, need: Any) -> np.ndarray:
        """Counts `work` row by row as a network meets it: slower and more exact, for a few rows."""
        ...

    def small_task(self, need: Any, kind: Kind, quantity: Quantity) -> tuple[Any, TrainingPart] | None:
        """Rows of an embedded task, on which a lever is tried that a task of few rows cannot show; or None."""
        ...

    def fit_trust(
        self, config: ModelConfig, rows: Any, part: TrainingPart, predicted: Callable[[np.ndarray], np.ndarray]
    ) -> Any:
        """Fits what marks predictions: an object with `mark` and `content`, as in `models/crystals/trust.py`; or None.

        Args:
            config: of the trained model.
            rows: all rows of the task.
            part: what training has seen of the fold.
            predicted: gives the model's predictions for the rows at some positions.
        """
        ...

    def load_trust(self, content: dict[str, Any]) -> Any:
        """Makes the object that `fit_trust` made anew, from its `content`."""
        ...

    def new_rows(self, model: Model, about: Mapping[str, str], trust: Any, examples: Sequence[Any], device: str) -> Any:
        """New examples as a trained model reads them.

        Args:
            model: of the registry.
            about: facts that are kept with the trained model.
            trust: what `fit_trust` made, or None.
            examples: such as structures or formulas.
            device: to compute on.

        Raises:
            UserError: an example that cannot be predicted; the message names its position.
        """
        ...

    def averaged(self, fitted: Fitted, rows: Any, which: np.ndarray, copies: int) -> Prediction:
        """The mean prediction of moved copies of the rows at `which`; the plain one of what cannot be moved."""
        ...

    def judge_copies(
        self,
        fitted: Fitted,
        rows: Any,
        val: np.ndarray,
        val_targets: np.ndarray,
        metric: Metric,
        copies: int,
        *,
        only_if_better: bool,
    ) -> Any:
        """Measures on the rows at `val` what averaging over copies gains; a dataclass with `used` and `copies`."""
        ...

    def about(self, config: ModelConfig) -> dict[str, str]:
        """The facts of a config that are kept with a trained model."""
        ...


class FactsError(ValueError):
    """Nothing can be said of examples; the message says why, as a sentence for the reader without its full stop."""


@dataclass(frozen=True)
class Column:
    """A fact of every example, which a page shows beside the example's error.

    Attributes:
        name: of the column in the tables that `FamilyFacts` makes.
        kind: a category is a text, or a list of several, as of the elements of a crystal; a picture is HTML.
        title: of the page's section with the mean error of each category, or of each range of a number; "" for none.
        phrase: puts a category or a range into a sentence: `compounds with {}`.
        several: what the categories or ranges are together: `elements`.
        head: of the table of categories or ranges.
        list_head: of the column in the list of the worst examples; "" where it has none.
        ranges: of a number, the upper end of each and what it is called.
        within: name of a coarser category, in whose section the most frequent values of this one stand.
        opened: whether it takes the opened row, and not the name of its group alone.
        share: puts a category into a sentence on the worst examples, `contain {}`; "" for none.
        note: how it was found out or drawn, in small print.
        figure: draws the mean errors in place of bars, given a table with `error` and `n` by category and the title of
            an axis: a plotly figure with its height and its least width.
    """

    name: str
    kind: Literal["category", "number", "picture"]
    title: str = ""
    phrase: str = "{}"
    several: str = ""
    head: str = "group"
    list_head: str = ""
    ranges: tuple[tuple[float, str], ...] = ()
    within: str = ""
    opened: bool = False
    share: str = ""
    note: str = ""
    figure: Callable[[pd.DataFrame, str], Any] | None = None


class SeenExamples(Protocol):
    """Examples that pretraining has seen.

    Attributes:
        ids: those by which the file names them.
        groups: the names of their groups; an example of another group equals none of them.
        n_unreadable: examples of the file that could not be read.
    """

    ids: set[str]
    groups: Collection[str]
    n_unreadable: int

    def equal_ids(self, rows: Any, groups: Mapping[str, str]) -> set[str]:
        """Ids of the rows that equal one of these; the group of each row is given by id.

        Raises:
            FactsError: the rows are not what could be compared.
        """
        ...


class FamilyFacts(Protocol):
    """The facts of a family's examples for commands that read finished sweeps; imports neither torch nor Ray.

    `rows` are those of a task, as `data.tasks.open_task` returns them.
    """

    @property
    def COLUMNS(self) -> Sequence[Column]:  # noqa: N802 - a constant of a module
        """The facts that are known, in the order of a page."""
        ...

    @property
    def OPENED(self) -> str:  # noqa: N802
        """The word for what is opened again for facts that the name of a group does not tell, such as `structure`."""
        ...

    @property
    def GROUP_HEAD(self) -> str:  # noqa: N802
        """The head of a page's column of groups."""
        ...

    @property
    def PRETRAINED(self) -> str:  # noqa: N802
        """The pretraining that models with pretrained weights start from, in words."""
        ...

    @property
    def TRUST(self) -> str:  # noqa: N802
        """When `fit_trust` of the family marks a prediction, in words."""
        ...

    def group_html(self, group: str) -> str:
        """The name of a group as a page shows it, escaped."""
        ...

    def facts_of_groups(self, groups: Sequence[str]) -> dict[str, list[Any]]:
        """The facts that the name of an example's group tells: by column one for each group."""
        ...

    def facts_of_rows(self, rows: Any) -> pd.DataFrame:
        """The other facts but pictures, indexed by id; rows that cannot be read are left out.

        Raises:
            FactsError: nothing is known of these rows.
        """
        ...

    def pictures(self, rows: Any, ids: Iterable[str]) -> dict[str, str]:
        """Pictures of some rows by id, as HTML, as far as they can be drawn."""
        ...

    def read_seen(self, source: str) -> SeenExamples | None:
        """What pretraining has seen; None where the file or folder, which is there, holds no examples but other text.

        Raises:
            FactsError: it holds examples that cannot be read or compared.
        """
        ...

    def training_note(self, configs: Sequence[Mapping[str, Any]]) -> str:
        """How models of these configs were trained, as words behind the model's name: `with ...`; "" for no words."""
        ...

    def references(self, model: str, notes: Sequence[str]) -> list[str]:
        """The works that a trained model builds upon, in BibTeX, given its name and the notes of its sweep."""
        ...
