"""Reads `--split`, which says how the folds of a task are made: its own, or a family's that leave groups out."""

from __future__ import annotations

from data.families import FAMILIES, data_family
from data.fold import DEFAULT_SPLIT, SplitError


def split_rule(text: str) -> str:
    """Reads the value of `--split`; of rules `X:a` and `X:b` the first may be called `X`.

    Raises:
        SplitError: no such rule.
    """
    rules = [DEFAULT_SPLIT, *(rule for name in FAMILIES for rule in data_family(name).SPLIT_RULES)]
    for rule in rules:
        if text in (rule, rule.partition(":")[0]):
            return rule
    raise SplitError(f"--split {text!r}: expected one of {', '.join(rules)}")
