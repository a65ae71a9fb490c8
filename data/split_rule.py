"""How the folds of a task are made: its own, or folds that leave groups out, as `--split` says."""

from __future__ import annotations

from typing import Literal, get_args

from data.errors import UserError

N_FOLDS = 5
SplitRule = Literal["task", "leave-group-out:element", "leave-group-out:molecular"]
DEFAULT_SPLIT: SplitRule = "task"
LEAVE_ELEMENTS_OUT: SplitRule = "leave-group-out:element"
LEAVE_MOLECULES_OUT: SplitRule = "leave-group-out:molecular"


class SplitError(UserError, ValueError):
    """The rows at hand cannot be split as asked."""


def split_rule(text: str) -> SplitRule:
    """Reads the value of `--split`; `leave-group-out` alone is by element.

    Raises:
        SplitError: no such rule.
    """
    full = LEAVE_ELEMENTS_OUT if text == "leave-group-out" else text
    for rule in get_args(SplitRule):
        if full == rule:
            return rule
    raise SplitError(f"--split {text!r}: expected one of {', '.join(get_args(SplitRule))}")
