"""What a fold is, and what may be wrong with making one."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import UserError

N_FOLDS = 5
FOLD_SEED = 18012019  # Matbench's own
DEFAULT_SPLIT = "task"  # of `--split`: the task's own folds


class SplitError(UserError, ValueError):
    """The rows at hand cannot be split as asked."""


@dataclass(frozen=True)
class Fold:
    """One of the five outer folds.

    Attributes:
        index: 0 to 4.
        train_ids: ids to train and validate on.
        test_ids: ids to test on.
    """

    index: int
    train_ids: list[str]
    test_ids: list[str]
