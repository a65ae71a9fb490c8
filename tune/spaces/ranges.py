"""A range that a search space gives a field: its kind and its bounds, and all that follows from the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("choice", "uniform", "loguniform", "int", "logint")


@dataclass(frozen=True)
class Range:
    """A range of values that a field is searched in.

    Attributes:
        kind: one of `KINDS`.
        bounds: the values of a choice; of the others the lowest and the highest value, both included.
    """

    kind: str
    bounds: list[Any]

    @classmethod
    def of(cls, value: Mapping[str, list[Any]]) -> Range:
        """A range as a space's `parameters` have it: `{kind: bounds}`."""
        ((kind, bounds),) = value.items()
        return cls(kind, bounds)

    def __str__(self) -> str:
        return f"{self.kind} {self.bounds}"

    @property
    def is_choice(self) -> bool:
        """Whether the bounds are all the values there are."""
        return self.kind == "choice"

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return self.kind in ("int", "logint")

    @property
    def is_log(self) -> bool:
        """Whether values are drawn evenly on a logarithmic scale."""
        return self.kind in ("loguniform", "logint")

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.is_choice:
            return len(self.bounds)
        return self.bounds[1] - self.bounds[0] + 1 if self.is_whole else math.inf

    def holds(self, candidate: Any) -> bool:
        """Whether all values of another range, or a value, are in it."""
        values = candidate.bounds if isinstance(candidate, Range) else [candidate]
        if self.is_choice:
            return not (isinstance(candidate, Range) and not candidate.is_choice) and set(values) <= set(self.bounds)
        if any(isinstance(value, bool | str) for value in values):
            return False
        return self.bounds[0] <= min(values) and max(values) <= self.bounds[1]

    def for_ray(self) -> Any:
        """The domain of Ray Tune."""
        import ray.tune  # here, as Optuna below: who reads a space to look at it need not wait for them

        if self.is_choice:
            return ray.tune.choice(self.bounds)
        low, high = self.bounds
        if self.is_whole:
            return (ray.tune.lograndint if self.is_log else ray.tune.randint)(low, high + 1)
        return (ray.tune.loguniform if self.is_log else ray.tune.uniform)(low, high)

    def for_optuna(self) -> BaseDistribution:
        """The distribution of Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.is_choice:
            return CategoricalDistribution(self.bounds)
        low, high = self.bounds
        return (IntDistribution if self.is_whole else FloatDistribution)(low, high, log=self.is_log)


def values_of(value: Any) -> list[Any]:
    """The one value that a space sets a field to; of a range its choices, or its two ends."""
    return [value] if not isinstance(value, Range) else value.bounds


def range_problem(value: Mapping[str, Any], *, whole_numbers: bool) -> str | None:
    """What is wrong with a range as a space's file has it, whose bounds are values of the field; or None.

    Args:
        value: `{kind: bounds}`, or something else in its place.
        whole_numbers: whether the field takes these alone.
    """
    range_ = Range.of(value)
    kind, bounds = range_.kind, range_.bounds
    if range_.is_choice:
        return f"choice lists {bounds!r}, some twice" if len(set(bounds)) < len(bounds) else None
    if len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds) or bounds[0] >= bounds[1]:
        return f"{kind} takes [low, high] with low < high, got {bounds!r}"
    if not all(math.isfinite(bound) for bound in bounds):
        return f"{kind} takes two finite numbers, got {bounds!r}"
    if range_.is_log and bounds[0] <= 0:
        return f"{kind} takes bounds above zero, got {bounds!r}"
    if whole_numbers != range_.is_whole:
        return f"{kind} does not fit a field that takes " + (
            "int, logint or choice" if whole_numbers else "uniform, loguniform or choice"
        )
    return None
