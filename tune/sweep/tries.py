"""Runs a model on a few rows of one fold, by which `tune/sweep/levers.py` sees what a field of a config does."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from models.config import GradientConfig, ModelConfig
from models.model import BadPredictionsError, Model, TrainingPart, TrainingRows, checked_predictions
from models.registry import open_family
from models.training.train import NonFiniteLossError
from tune.errors import SweepError

# Training rows of a try; the next is made only where predictions of the last were identical.
ROWS_WITH_EPOCHS, ROWS_AT_ONCE = (16, 64, 256), (64, 1000, 12_000)
MOST_EPOCHS = 30  # of a try, but for the lever `epochs` and the last try
# Of a try, but where it is the lever: few rows are many steps, and what acts late in training is seen although the best
# epoch was an early one.
OF_A_TRY = {"batch_size": 4, "least_steps": 1, "keep": "last"}
IDENTICAL = 1e-6  # relative to the spread of the predictions: above the rounding of single precision
# What stands for a difference where there is nothing to measure.
ALIKE = "the same model"
ONE_LABEL = "nothing to learn from one label"
BEST_WAS_LAST = "the best epoch was the last"
ONLY_ELSEWHERE = "it acts on the demo's crystals, and makes no difference"


class InertError(SweepError):
    """A lever of which two values give identical predictions."""


@dataclass(frozen=True)
class LeverCheck:
    """A lever, two of its values, and how far apart the predictions of two tiny runs are that differ in it alone.

    Attributes:
        lever: field of the config.
        values: the two.
        difference: largest difference of predictions, in the task's unit; or in words why there is none to tell.
        rows: that the runs were trained on.
    """

    lever: str
    values: list[Any]
    difference: float | str
    rows: int


class Tries:
    """Tiny runs of a model on rows of one fold; remembers which fields of a config were read."""

    def __init__(self, model: Model, rows: TrainingRows, part: TrainingPart) -> None:
        self.model, self.rows, self.part = model, rows, part
        self.sizes = open_family(model.family).sizes(rows)
        self.read: set[str] = set()

    def compare(self, lever: str, first: dict[str, Any], second: dict[str, Any]) -> LeverCheck:
        """Run both on more and more rows until they differ.

        Raises:
            InertError: they do not.
            SweepError: the loss of both is not finite.
        """
        fields = self.model.config.model_fields
        sizes = ROWS_WITH_EPOCHS if "epochs" in fields else ROWS_AT_ONCE
        values = [value_of(config, lever, fields) for config in (first, second)]
        if lever == "batch_size":
            sizes = tuple(max(values) + size for size in sizes)
        for number, size in enumerate(sizes):
            rows, part = self._sample(size, number)
            # What needs all its epochs, such as a late unfreezing, gets them before it is refused.
            short = lever != "epochs" and number < len(sizes) - 1
            a, b = (self._predictions(lever, config, rows, part, number, short) for config in (first, second))
            if (a is None) != (b is None):
                return LeverCheck(lever, values, "the loss of one was not finite", len(part.train))
            if a is None or b is None:
                raise SweepError(
                    f"lever {lever}: the loss is not finite on {len(part.train)} rows, neither with {values[0]!r} nor "
                    f"with {values[1]!r}: try lower learning rates"
                )
            difference = float(np.abs(a - b).max())
            spread = float(np.std(a)) or float(np.std(part.targets[part.train]))  # one row is not spread
            if difference > IDENTICAL * max(1e-12, spread):
                return LeverCheck(lever, values, difference, len(part.train))
        if lever == "keep" and issubclass(self.model.config, GradientConfig):  # that of more rows may be another one
            return LeverCheck(lever, values, BEST_WAS_LAST, len(part.train))
        raise InertError(
            f"lever {lever} does nothing: trained on {len(part.train)} rows with {values[0]!r} and with {values[1]!r}, "
            "all else equal, models give identical predictions. Leave it out, or choose values that differ in effect"
        )

    def run(self, fields: dict[str, Any]) -> None:
        """One tiny run."""
        rows, part = self._sample(ROWS_WITH_EPOCHS[0], 0)
        self._predictions("", fields, rows, part, 0, short=True)

    def _sample(self, size: int, number: int) -> tuple[TrainingRows, TrainingPart]:
        """Some training rows, and others of the training part in place of validation; the smaller ones.

        Where the training part has too few for that it is taken as it is, with the fold's own validation.
        """
        if len(self.part.train) < size + max(4, size // 4):
            every = np.concatenate([self.part.train, self.part.val])
            train, val = np.split(np.arange(len(every)), [len(self.part.train)])
            return self.rows.select(every), replace(self.part, targets=self.part.targets[every], train=train, val=val)
        small = np.argsort(self.sizes[self.part.train], kind="stable")
        candidates = self.part.train[small[: max(2 * size, len(small) // 2)]]
        positions = np.random.default_rng(number).permutation(candidates)[: size + max(4, size // 4)]
        train, val = np.arange(size), np.arange(size, len(positions))
        part = replace(self.part, targets=self.part.targets[positions], train=train, val=val)
        return self.rows.select(positions), part

    def _predictions(
        self, lever: str, fields: dict[str, Any], rows: TrainingRows, part: TrainingPart, number: int, short: bool
    ) -> np.ndarray | None:
        """Predicts the rows in place of validation by the model that a run keeps; None where its loss was not finite.

        Raises:
            SweepError: they are not one finite number a row.
        """
        config, fields_read = _watched(self._smaller(lever, {"seed": number, **fields}, short, len(part.train)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run = self.model.start(config, rows, part, "cpu")
            for _ in run.epochs():
                pass
            return checked_predictions(run.fitted(), rows, part.val, part.prediction_shape)
        except NonFiniteLossError:
            return None
        except BadPredictionsError as problem:
            raise SweepError(f"model {self.model.name}: {problem}") from None
        finally:
            torch.set_num_threads(threads)
            self.read |= fields_read

    def _smaller(self, lever: str, fields: dict[str, Any], short: bool, n_rows: int) -> ModelConfig:
        """Makes a config smaller as a try needs it, and if `short` with fewer epochs, but for the lever itself."""
        model_fields, whole = self.model.config.model_fields, fields
        for field, value in OF_A_TRY.items():
            if field in model_fields and field != lever:
                with suppress(ValidationError):
                    self.model.config(**(candidate := {**fields, field: value}))
                    fields = candidate
        epochs = fields.get("epochs", model_fields["epochs"].default) if "epochs" in model_fields else 0
        if short and epochs > MOST_EPOCHS:
            for fewer in range(MOST_EPOCHS, MOST_EPOCHS // 2, -1):  # snapshots want a multiple of theirs
                with suppress(ValidationError):
                    return self.model.config(**{**fields, "epochs": fewer})
        if lever == "ema_decay" and "batch_size" in model_fields and not short:
            # One step stands for several of the whole training: the decay sets in only after some number of them.
            sizes = [config.get("batch_size", model_fields["batch_size"].default) for config in (whole, fields)]
            steps = math.ceil(len(self.part.train) / sizes[0]) / math.ceil(n_rows / sizes[1])
            fields = {**fields, lever: fields[lever] ** max(1.0, steps)}
        return self.model.config(**fields)


def value_of(config: dict[str, Any], lever: str, fields: dict[str, FieldInfo]) -> Any:
    """Reads the value of a lever in a config, or its default."""
    return config.get(lever, fields[lever].default)


def _watched(config: ModelConfig) -> tuple[ModelConfig, set[str]]:
    """Gives the config again, with a set that collects the fields as they are read from it."""
    kind, fields, fields_read = type(config), type(config).model_fields, set[str]()

    class Watched(kind):  # type: ignore[valid-type,misc]
        def __getattribute__(self, name: str) -> Any:
            if name in fields:
                fields_read.add(name)
            return super().__getattribute__(name)

        def __iter__(self) -> Any:  # as `dict` does
            fields_read.update(fields)
            return super().__iter__()

        def model_dump(self, **options: Any) -> dict[str, Any]:
            fields_read.update(set(options.get("include") or fields) - set(options.get("exclude") or ()))
            return super().model_dump(**options)

        def model_dump_json(self, **options: Any) -> str:
            fields_read.update(set(options.get("include") or fields) - set(options.get("exclude") or ()))
            return super().model_dump_json(**options)

    return Watched.model_construct(**config.model_dump()), fields_read
