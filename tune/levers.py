"""Proof that levers are on: tiny runs before a sweep spends anything, and a look at its trials afterwards.

A field of a config that no code reads, or whose values give the same predictions, is a placeholder: results "with"
it are results without it. So each field that a space sets is tried on a few rows, and a sweep with one that does
nothing is refused.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from models.config import ModelConfig
from models.model import BadPredictionsError, Model, TrainingPart, TrainingRows, checked_predictions, fingerprint
from models.registry import open_model, planned_epochs
from models.train import NonFiniteLossError
from tune.dataset import Dataset
from tune.options import SweepError
from tune.search import Outcome
from tune.space import SearchSpace, combinations
from tune.trial import TrialFold

# Training rows of a try; the next is made only where predictions of the last were identical.
ROWS_WITH_EPOCHS, ROWS_AT_ONCE = (16, 64, 256), (64, 1000, 12_000)
MOST_EPOCHS = 30  # of a try, but for the lever `epochs` and the last try
# Of a try, but where it is the lever: few rows are many steps, and what acts late in training is seen although the best
# epoch was an early one.
OF_A_TRY = {"batch_size": 4, "keep": "last"}
IDENTICAL = 1e-6  # relative to the spread of the predictions: above the rounding of single precision
NOT_COMPARED = ("weights",)  # one value a sweep: other graphs and features belong to another


@dataclass(frozen=True)
class LeverCheck:
    """A lever, two of its values, and how far apart the predictions of two tiny runs are that differ in it alone.

    Attributes:
        lever: field of the config.
        values: the two.
        difference: largest difference of predictions, in the task's unit; or in words that one of the runs had to end.
        rows: that the runs were trained on.
    """

    lever: str
    values: list[Any]
    difference: float | str
    rows: int


Pair = tuple[str, dict[str, Any], dict[str, Any]]  # what is tried, and fields of two configs that differ in it alone


def lever_pairs(space: SearchSpace, seeds: int) -> list[Pair]:
    """What to try of a space: every field that it searches, or sets to another value than the default.

    Args:
        space: to be swept.
        seeds: how many the chosen config will be trained with; with several the seed is a lever too.
    """
    model = open_model(space.model)
    base = combinations(space)[0]
    pairs: list[Pair] = []
    for field, value in space.parameters.items():
        if isinstance(value, dict):
            first, *others = next(iter(value.values()))
            pairs += [(field, {**base, field: first}, {**base, field: other}) for other in others]
        elif value == "cross_entropy":  # the one loss that a classification has
            continue
        elif field not in NOT_COMPARED and value != (default := model.config.model_fields[field].default):
            # Twice as many epochs show that field as well as the default does, and sooner.
            other = min(default, 2 * value) if field == "epochs" and value else default
            if (without := _put_back(model.config, base, field, other)) is not None:
                pairs.append((field, without, base))
    if seeds > 1:
        pairs.append(("seed", {**base, "seed": 0}, {**base, "seed": 1}))
    return pairs


def change_pairs(space: SearchSpace, base: SearchSpace, change: Iterable[str]) -> list[Pair]:
    """What to try of an experiment: each field that it changes, with the baseline's value against its own.

    Args:
        space: of the experiment, without a range.
        base: of the baseline, of the same model.
        change: fields that differ.
    """
    config = open_model(space.model).config
    pairs: list[Pair] = []
    for field in change:
        before = base.parameters.get(field, config.model_fields[field].default)
        if field not in NOT_COMPARED and (without := _put_back(config, space.parameters, field, before)) is not None:
            pairs.append((field, without, space.parameters))
    return pairs


def not_shown(pairs: Sequence[Pair], known: Sequence[LeverCheck], model: str) -> list[Pair]:
    """The pairs whose two values of their lever no earlier check has compared."""
    fields = open_model(model).config.model_fields
    shown = [(check.lever, check.values) for check in known]
    return [pair for pair in pairs if (pair[0], [_value(config, pair[0], fields) for config in pair[1:]]) not in shown]


def check_levers(dataset: Dataset, space: SearchSpace, fold: int, pairs: Sequence[Pair]) -> list[LeverCheck]:
    """Run both configs of each pair on a few rows.

    Args:
        dataset: of the task.
        space: to be swept; the pairs are of its model.
        fold: whose training rows are used.
        pairs: to try.

    Raises:
        SweepError: a field of the space, or of the model's own config, that no code reads; a pair without a
            difference; or predictions that are not one finite number a row.
    """
    if not space.trains:
        return []
    model = open_model(space.model)
    part: TrialFold = ray.get(dataset.trial_folds[fold])
    rows: TrainingRows = ray.get(dataset.rows_ref)
    tries = _Tries(model, rows, part.part(dataset.task.kind, dataset.task.quantity))
    found = [tries.compare(*pair) for pair in pairs]
    if not pairs:  # what it reads is to be seen all the same
        tries.run(combinations(space)[0])
    if unread := sorted(set(space.parameters) - tries.read):
        raise SweepError(
            f"space {space.name}: no code of model {model.name} reads {', '.join(unread)}, so that setting it would "
            "change nothing"
        )
    if unread := read_nowhere(model, tries.read):
        raise SweepError(
            f"model {model.name}: no code reads {', '.join(unread)} of its {model.config.__name__}, so that setting it "
            "would change nothing: use it, or take it out"
        )
    return found


def read_nowhere(model: Model, read: set[str]) -> list[str]:
    """Fields that a model's own config declares and no code reads; those of the project's base classes are not its own.

    A try may not meet what is read on some condition only, so the source of the model must not name it either: as an
    attribute, or as a text.

    Args:
        model: whose config it is.
        read: fields that tries have read.
    """
    kinds = [kind for kind in model.config.__mro__ if issubclass(kind, ModelConfig)]
    ours = [kind for kind in kinds[1:] if kind.__module__.startswith("models.")]
    inherited = {field for kind in ours for field in kind.model_fields}
    files = set()
    for one in (*(kind for kind in kinds if kind not in ours), inspect.unwrap(model.start), model.load):
        with suppress(TypeError, OSError):  # a partial function, say, has no source of its own
            files.add(inspect.getsourcefile(one))
    named = {name for file in files if file for name in _names(Path(file))}
    return [field for field in model.config.model_fields if field not in read | inherited | named]


def inert_pairs(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Trials of one fold with different configs and identical predictions: what they differ in did nothing.

    Only trials that ran all their epochs are compared: had one that was stopped early gone on, averaged weights might
    have begun, or the learning rate fallen. Every epoch must be the same, and the model that is kept. Which epoch that
    is `keep` decides; where the best one is the last it has done so all the same, and is no lever that did nothing.
    """
    alike: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        planned = planned_epochs({"model": outcome.model, **outcome.config})
        if outcome.error is None and outcome.history and outcome.history[-1]["epoch"] >= planned:
            told = (*(epoch["fingerprint"] for epoch in outcome.history), fingerprint(outcome.val_predictions))
            alike.setdefault(told, []).append(outcome)
    found = []
    for one, other in itertools.chain(*(itertools.combinations(group, 2) for group in alike.values())):
        differing = {k for k in {*one.config, *other.config} if one.config.get(k) != other.config.get(k)}
        if levers := sorted(differing - {"keep"}):
            found.append({"fold": one.fold, "trials": [one.trial_id, other.trial_id], "levers": levers})
    return found


def _names(file: Path) -> Iterator[str]:
    """Every attribute and every text in the source of a file."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _put_back(config: type[ModelConfig], fields: dict[str, Any], field: str, value: Any) -> dict[str, Any] | None:
    """The same with another value of a field, without what goes only with the old one; None where no config is so."""
    useless = {one for one, (other, values) in config.only_with.items() if other == field and value not in values}
    rest = {**{key: kept for key, kept in fields.items() if key not in useless}, field: value}
    try:
        config(**rest)
    except ValidationError:
        return None
    return rest


class _Tries:
    """Tiny runs of a model on rows of one fold; remembers which fields of a config were read."""

    def __init__(self, model: Model, rows: TrainingRows, part: TrainingPart) -> None:
        self.model, self.rows, self.part = model, rows, part
        self.read: set[str] = set()

    def compare(self, lever: str, one: dict[str, Any], other: dict[str, Any]) -> LeverCheck:
        """Run both on more and more rows until they differ.

        Raises:
            SweepError: they do not.
        """
        fields = self.model.config.model_fields
        sizes = ROWS_WITH_EPOCHS if "epochs" in fields else ROWS_AT_ONCE
        values = [_value(config, lever, fields) for config in (one, other)]
        if lever == "batch_size":
            sizes = tuple(max(values) + size for size in sizes)
        for number, size in enumerate(sizes):
            rows, part = self._sample(size, number)
            # What needs all its epochs, such as a late unfreezing, gets them before it is refused.
            short = lever != "epochs" and number < len(sizes) - 1
            a, b = (self._predictions(lever, config, rows, part, number, short) for config in (one, other))
            if (a is None) != (b is None):
                return LeverCheck(lever, values, "the loss of one was not finite", len(part.train))
            if a is None or b is None:
                raise SweepError(
                    f"lever {lever}: the loss is not finite on {len(part.train)} rows, neither with {values[0]!r} nor "
                    f"with {values[1]!r}: try lower learning rates"
                )
            difference = float(np.abs(a - b).max())
            if difference > IDENTICAL * max(1e-12, float(np.std(a))):
                return LeverCheck(lever, values, difference, len(part.train))
        raise SweepError(
            f"lever {lever} does nothing: trained on {len(part.train)} rows with {values[0]!r} and with {values[1]!r}, "
            "all else equal, models give identical predictions. Leave it out, or choose values that differ in effect"
        )

    def run(self, fields: dict[str, Any]) -> None:
        """One tiny run."""
        rows, part = self._sample(ROWS_WITH_EPOCHS[0], 0)
        self._predictions("", fields, rows, part, 0, short=True)

    def _sample(self, size: int, number: int) -> tuple[TrainingRows, TrainingPart]:
        """Some training rows, and others of the training part in place of validation; the smaller crystals."""
        small = np.argsort(self.rows.n_atoms[self.part.train], kind="stable")
        candidates = self.part.train[small[: max(2 * size, len(small) // 2)]]
        chosen = np.random.default_rng(number).permutation(candidates)[: size + max(4, size // 4)]
        train = np.arange(min(size, max(1, len(chosen) - 1)))
        val = np.arange(len(train), len(chosen))
        part = replace(self.part, targets=self.part.targets[chosen], train=train, val=val)
        return self.rows.select(chosen), part

    def _predictions(
        self, lever: str, fields: dict[str, Any], rows: TrainingRows, part: TrainingPart, number: int, short: bool
    ) -> np.ndarray | None:
        """Of the rows in place of validation, by the model that a run keeps; None where its loss was not finite.

        Raises:
            SweepError: they are not one finite number a row.
        """
        config, read = _watched(self._smaller(lever, {"seed": number, **fields}, short, len(part.train)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run = self.model.start(config, rows, part, "cpu")
            for _ in run.epochs():
                pass
            return checked_predictions(run.fitted(), rows, part.val)
        except NonFiniteLossError:
            return None
        except BadPredictionsError as problem:
            raise SweepError(f"model {self.model.name}: {problem}") from None
        finally:
            torch.set_num_threads(threads)
            self.read |= read

    def _smaller(self, lever: str, fields: dict[str, Any], short: bool, n_rows: int) -> ModelConfig:
        """With what a try has and, if `short`, fewer epochs, as many as the config goes with; but for what is tried."""
        known, whole = self.model.config.model_fields, fields
        for field, value in OF_A_TRY.items():
            if field in known and field != lever:
                with suppress(ValidationError):
                    self.model.config(**(changed := {**fields, field: value}))
                    fields = changed
        epochs = fields.get("epochs", known["epochs"].default) if "epochs" in known else 0
        if short and epochs > MOST_EPOCHS:
            for fewer in range(MOST_EPOCHS, MOST_EPOCHS // 2, -1):  # snapshots want a multiple of theirs
                with suppress(ValidationError):
                    return self.model.config(**{**fields, "epochs": fewer})
        if lever == "ema_decay" and "batch_size" in known and not short:
            # One step stands for several of the whole training: the decay sets in only after some number of them.
            sizes = [config.get("batch_size", known["batch_size"].default) for config in (whole, fields)]
            steps = math.ceil(len(self.part.train) / sizes[0]) / math.ceil(n_rows / sizes[1])
            fields = {**fields, lever: fields[lever] ** max(1.0, steps)}
        return self.model.config(**fields)


def _value(config: dict[str, Any], lever: str, fields: dict[str, FieldInfo]) -> Any:
    """Of a lever in a config."""
    return config.get(lever, fields[lever].default)


def _watched(config: ModelConfig) -> tuple[ModelConfig, set[str]]:
    """The same config, and a set of the fields that have been read from it; who takes all of it has read them all."""
    kind, fields, read = type(config), type(config).model_fields, set[str]()

    class Watched(kind):  # type: ignore[valid-type,misc]
        def __getattribute__(self, name: str) -> Any:
            if name in fields:
                read.add(name)
            return super().__getattribute__(name)

        def __iter__(self) -> Any:  # as `dict` does
            read.update(fields)
            return super().__iter__()

        def model_dump(self, **options: Any) -> dict[str, Any]:
            read.update(set(options.get("include") or fields) - set(options.get("exclude") or ()))
            return super().model_dump(**options)

        def model_dump_json(self, **options: Any) -> str:
            read.update(set(options.get("include") or fields) - set(options.get("exclude") or ()))
            return super().model_dump_json(**options)

    return Watched.model_construct(**config.model_dump()), read
