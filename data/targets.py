"""Says why the target of a row cannot be used; rows with a reason are quarantined, never repaired or replaced."""

from __future__ import annotations

import math

import numpy as np

from data.row_numbers import RowNumbers

# What programs write where a value is missing: nines, the smallest integers of 32 and 64 bits, huge numbers.
_MARKS = (-(2.0**31), -(2.0**63), *(sign * float("9" * n) for sign in (1, -1) for n in range(3, 8)))
_HUGE = 1e20


def bad_target_reasons(ids: list[str], targets: np.ndarray, row_numbers: RowNumbers) -> dict[int, str]:
    """Rows whose target or id rules them out.

    Args:
        ids: one a row.
        targets: float64, shape (n_rows, ...).
        row_numbers: where the rows stand in the user's file.

    Returns:
        The reason by row position: a target that is not finite or is a mark for a missing value, or an id seen in an
        earlier row (which stays).
    """
    reasons = {}
    marks = missing_marks(targets) if targets.ndim == 1 else set()
    numbers = targets if targets.ndim == 1 else _worst(targets)
    first_row: dict[str, int] = {}
    for row, (row_id, target) in enumerate(zip(ids, numbers.tolist(), strict=True)):
        first = first_row.setdefault(row_id, row)
        if first != row:
            reasons[row] = f"duplicate id: {row_numbers.of(first)} has it already"
        elif math.isnan(target):
            reasons[row] = "target is missing or not a number"
        elif math.isinf(target):
            reasons[row] = f"target is {target}"
        elif target in marks:
            reasons[row] = (
                f"target is {target:.15g}, a common mark for a missing value, and no other target is like it: leave "
                "the cell empty if it is one"
            )
    return reasons


def _worst(targets: np.ndarray) -> np.ndarray:
    """A number for each array of targets, shape (n_rows,): one of it that is not finite where there is one, else 0."""
    flat = targets.reshape(len(targets), -1)
    is_bad = ~np.isfinite(flat)
    return np.where(is_bad.any(axis=1), flat[np.arange(len(flat)), is_bad.argmax(axis=1)], 0.0)


def missing_marks(targets: np.ndarray) -> set[float]:
    """Values among targets that stand for a missing one, as -999 does in a column of band gaps.

    Such is a common mark that stands alone: all targets that are no marks lie within a tenth of its size from zero, or
    it is negative and none of them is. A number of 1e20 or more is a mark where it is the only such number, and the
    others lie within a millionth of it, for concentrations are spread over many powers of ten.

    Args:
        targets: float64, shape (n_rows,); those that are not finite do not count.
    """
    finite = targets[np.isfinite(targets)]
    is_huge = np.abs(finite) >= _HUGE
    is_common = np.isin(finite, _MARKS) | (is_huge if len(np.unique(finite[is_huge])) == 1 else False)
    other_values = finite[~is_common]
    if not len(other_values):
        return set()
    largest = np.abs(other_values).max()
    return {
        mark
        for mark in np.unique(finite[is_common]).tolist()
        if largest <= abs(mark) * (1e-6 if abs(mark) >= _HUGE else 0.1) or (mark < 0 and other_values.min() >= 0)
    }
