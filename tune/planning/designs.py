"""Which configs of a space are measured, so that what any of its trials costs lies between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from pydantic import ValidationError

from models.model import Model
from models.registry import open_model
from tune.spaces.ranges import values_of
from tune.spaces.space import SearchSpace

EPOCHS, CACHED_EPOCHS = 3, 8  # of measured trials; the first one warms up and is not counted


@dataclass(frozen=True)
class Design:
    """A config to measure.

    Attributes:
        fields: `model` and what is set of its config.
        reads_cached: whether its epochs read cached arrays, cost little a row, and so are measured on more rows.
        fits_once: whether it has no epochs: it is fitted in one go.
    """

    fields: dict[str, Any]
    reads_cached: bool
    fits_once: bool


def design(fields: dict[str, Any], *, has_arrays: bool) -> Design:
    """What kind of trial a config makes.

    Args:
        fields: `model` and what is set of its config.
        has_arrays: whether the family keeps cached arrays for the model.
    """
    model = open_model(fields["model"])
    fits_once = "epochs" not in model.config.model_fields
    reads_cached = has_arrays and not fits_once and model.reads_cached(model.config(**_own(fields)))
    return Design(fields, reads_cached, fits_once)


def designs(space: SearchSpace, *, has_arrays: bool) -> list[Design]:
    """The configs of a space to measure, the costliest first; none where the space trains nothing.

    Those that read cached arrays are measured with each value of a costly field, the others at its ends.
    """
    every = [design(_shortened(space, fields), has_arrays=has_arrays) for fields in steps(space)]
    cached = [candidate for candidate in every if candidate.reads_cached]
    uncached = [candidate for candidate in every if not candidate.reads_cached]
    places = [place(candidate.fields, batches=False) for candidate in uncached]
    ends = [{min(along), max(along)} for along in zip(*places, strict=True)]
    at_ends = [
        (at, candidate)
        for at, candidate in zip(places, uncached, strict=True)
        if all(coordinate in field_ends for coordinate, field_ends in zip(at, ends, strict=True))
    ]
    return [candidate for _, candidate in sorted(at_ends, key=lambda pair: pair[0], reverse=True)] + cached


def steps(space: SearchSpace) -> list[dict[str, Any]]:
    """Values by which steps of a space's trials differ in cost, the cheapest first, and the `model`.

    All choices of the costly fields, each with the smallest and the largest batches.
    """
    model = open_model(space.model)
    if not space.trains:
        return []
    values = {
        field: sorted(values_of(space.default(field, None)), key=partial(coordinate, model, field))
        for field in model.costly
    }
    if "batch_size" in model.config.model_fields:
        sizes = values_of(space.default("batch_size", None))
        values["batch_size"] = sorted({min(sizes), max(sizes)})
    combinations_of_values = itertools.product(*values.values())
    return [
        {"model": space.model, **dict(zip(values, combination, strict=True))} for combination in combinations_of_values
    ]


def place(fields: dict[str, Any], *, batches: bool = True) -> tuple[float, ...]:
    """Where a trial lies among others of its model: a number for each costly field, and for the size of its batches.

    A row costs its own work and a share of its batch, so that it is the inverse size that counts.

    Args:
        fields: `model` and what is set of its config.
        batches: whether their size counts.
    """
    model = open_model(fields["model"])
    model_fields = model.config.model_fields
    at = [coordinate(model, field, fields.get(field, model_fields[field].default)) for field in model.costly]
    if batches and "batch_size" in model_fields:
        at.append(1 / fields.get("batch_size", model_fields["batch_size"].default))
    return tuple(at)


def coordinate(model: Model, field: str, value: Any) -> float:
    """A number that grows with what a value of a costly field costs; words that no `Literal` declares count alike."""
    if isinstance(value, int | float):
        return float(value)
    choices = get_args(model.config.model_fields[field].annotation)
    return float(choices.index(value)) if value in choices else 0.0


def _shortened(space: SearchSpace, fields: dict[str, Any]) -> dict[str, Any]:
    """Some fields and a few epochs, and of what else the space sets as much as goes with them."""
    model = open_model(space.model)
    if "epochs" in model.config.model_fields:
        reads_cached = model.reads_cached(model.config(**_own(fields)))
        fields = {**fields, "epochs": CACHED_EPOCHS if reads_cached else EPOCHS}
    for field, value in space.settings.items():
        candidate = {field: values_of(value)[0], **fields}
        try:
            model.config(**_own(candidate))
        except ValidationError:  # such as patience, or cycles of more epochs
            continue
        fields = candidate
    return fields


def _own(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the model's config alone."""
    return {field: value for field, value in fields.items() if field != "model"}
