"""Merges values of a space that leave the same model on the rows at hand: the search offers one of them.

What is the same depends on the rows alone: batches of 32 and of 64 are one batch where 14 rows train. On more rows
they differ, so that the space is no mistake. What could do nothing on any rows is refused by `tune/sweep/levers.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from models.registry import open_model
from tune.spaces.space import SearchSpace, combinations


@dataclass(frozen=True)
class Merged:
    """Names values of a field, the first of which stands for all; of a range its two ends."""

    field: str
    values: list[Any]
    is_range: bool

    def sentence(self, n_train: int) -> str:
        """Says on the terminal what was merged."""
        *most, last = map(str, self.values)
        values = f"{most[0]} to {last}" if self.is_range else f"{', '.join(most)} and {last}"
        return f"{self.field}: {values} train the same model on {n_train} training rows, so the search takes {most[0]}"


def merge(space: SearchSpace, n_train: int) -> tuple[SearchSpace, list[Merged]]:
    """Narrows a space to one value of those that are the same on so many training rows.

    Values of a field are the same if that is so beside every combination of the others.

    Args:
        space: of a sweep.
        n_train: training rows of the largest fold that is searched.
    """
    parameters, merged = dict(space.parameters), []
    for field, value_range in space.searched.items():
        kind, bounds = value_range.kind, value_range.bounds
        bases = _others(space, field)

        def same(a: Any, b: Any, field: str = field, bases: Sequence[dict[str, Any]] = bases) -> bool:
            return all(trains_the_same(space.model, {**base, field: a}, {**base, field: b}, n_train) for base in bases)

        if value_range.is_choice:
            classes: list[list[Any]] = []
            for value in bounds:
                alike = next((values for values in classes if same(values[0], value)), None)
                if alike is None:
                    classes.append([value])
                else:
                    alike.append(value)
            choices = [values[0] for values in classes]
            merged += [Merged(field, values, is_range=False) for values in classes if len(values) > 1]
            parameters[field] = {kind: choices} if len(choices) > 1 else choices[0]
        elif value_range.is_whole and same(bounds[1] - 1, bounds[1]):
            low, high = bounds
            first, last = low, high  # the first value that is the same as the last one
            while first < last:
                middle = (first + last) // 2
                first, last = (first, middle) if same(middle, high) else (middle + 1, last)
            merged.append(Merged(field, [first, high], is_range=True))
            parameters[field] = {kind: [low, first]} if low < first else low
        elif not value_range.is_whole and same(*bounds):
            merged.append(Merged(field, bounds, is_range=True))
            parameters[field] = bounds[0]
    return space.model_copy(update={"parameters": parameters}), merged


def as_offered(space: SearchSpace, config: dict[str, Any], n_train: int) -> dict[str, Any]:
    """Puts values that a space offers into a config of a narrower space, or of one that was merged otherwise.

    Args:
        space: that was merged.
        config: fields of the model's config.
        n_train: training rows that the config is trained on.
    """
    for field, value_range in space.searched.items():
        if value_range.is_choice and config[field] not in value_range.bounds:
            alike = (
                bound
                for bound in value_range.bounds
                if trains_the_same(space.model, config, {**config, field: bound}, n_train)
            )
            config = {**config, field: next(alike, config[field])}
        elif value_range.is_whole:
            config = {**config, field: min(config[field], value_range.bounds[1])}
    return config


def trains_the_same(model: str, first: dict[str, Any], second: dict[str, Any], n_train: int) -> bool:
    """Says whether two configs leave the same model on so many training rows, if not on any number of them.

    Args:
        model: by name.
        first, second: fields of its config.
        n_train: training rows.
    """
    try:
        configs = [open_model(model).config(**fields) for fields in (first, second)]
    except ValidationError:
        return False
    return configs[0].effective(n_train) == configs[1].effective(n_train)


def differing_base(space: SearchSpace, lever: str, values: Sequence[Any], n_train: int) -> dict[str, Any] | None:
    """Finds fields beside which two values of a lever differ on so many training rows; None where there are none.

    Args:
        space: that the other fields are of.
        lever: field of the config.
        values: the two.
        n_train: training rows.
    """
    first, second = values
    for base in _others(space, lever):
        if not trains_the_same(space.model, {**base, lever: first}, {**base, lever: second}, n_train):
            return base
    return None


def _others(space: SearchSpace, field: str) -> list[dict[str, Any]]:
    """Lists the combinations of all fields but this one, each once."""
    configs = ({name: value for name, value in config.items() if name != field} for config in combinations(space))
    return [fields for fields, _ in itertools.groupby(sorted(configs, key=repr))]
