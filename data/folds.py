"""Who is trained, validated and tested on: five folds of a task, and each fold's seeded validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.families import data_family
from data.fold import FOLD_SEED, N_FOLDS, Fold, SplitError
from data.task import Task


@dataclass(frozen=True, eq=False)
class Split:
    """One fold's rows by use.

    Attributes:
        fold: index of the fold, 0 to 4.
        train: int64, shape (n_train,), ascending row positions.
        val: int64, shape (n_val,), ascending row positions.
        test: int64, shape (n_test,), ascending row positions.
        by_row: whether near-duplicates may be on both sides of validation: all training rows have one composition.
    """

    fold: int
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    by_row: bool = False


def make_folds(task: Task, ids: list[str], groups: list[str] | None) -> list[Fold]:
    """The five folds of a task.

    The published folds of an official task, restricted to the ids present; otherwise Matbench's recipe, a
    shuffled 5-fold, with whole groups in one fold where there are groups.

    Args:
        task: the task.
        ids: one a row; an id that repeats counts once.
        groups: one a row, or None.

    Raises:
        SplitError: an id is not in the official folds, or there are fewer than five ids or groups.
    """
    if task.official is not None:
        return data_family(task.family).official_folds(task, ids)
    first_row: dict[str, int] = {}
    for row, row_id in enumerate(ids):
        first_row.setdefault(row_id, row)
    names = np.array(list(first_row), dtype=object)
    units = None if groups is None else [groups[row] for row in first_row.values()]
    n_units = len(names) if units is None else len(set(units))
    if n_units < N_FOLDS:
        units_word = "ids" if units is None else "groups"
        raise SplitError(f"task {task.name!r} has {n_units} {units_word}; {N_FOLDS} folds need at least {N_FOLDS}")
    # Imported here: half a second that official tasks need not pay.
    from sklearn.model_selection import GroupKFold, KFold

    splitter = KFold if units is None else GroupKFold
    parts = splitter(N_FOLDS, shuffle=True, random_state=FOLD_SEED).split(names, groups=units)
    return [Fold(k, names[train].tolist(), names[test].tolist()) for k, (train, test) in enumerate(parts)]


def split_fold(
    fold: Fold,
    ids: list[str],
    usable: np.ndarray,
    compositions: list[str],
    *,
    groups: list[str] | None = None,
    val_fraction: float = 0.1,
    seed: int,
) -> Split:
    """Set a validation part aside from a fold's training part.

    Rows that share a composition, or a group, go to the same side, so that near-duplicates do not
    leak; where there is one composition alone, rows go by group, or each by itself. Of the divisions
    this allows, one as near to `val_fraction` as possible is drawn, the same one for the same seed,
    fold and rows.

    Args:
        fold: the fold.
        ids: one a row.
        usable: bool, shape (n_rows,); rows that are False appear nowhere in the split.
        compositions: reduced formula, one a row.
        groups: one a row, or None.
        val_fraction: share of the fold's usable training rows, between 0 and 1.
        seed: non-negative.

    Raises:
        SplitError: a part would be empty, or `val_fraction` or `seed` is out of range.
    """
    if not 0.0 < val_fraction < 1.0:
        raise SplitError(f"val_fraction is {val_fraction}; expected a number between 0 and 1, such as 0.1")
    if seed < 0:
        raise SplitError(f"seed is {seed}; expected 0 or more")
    rows = np.flatnonzero(usable)
    train_ids, test_ids = set(fold.train_ids), set(fold.test_ids)
    training = np.array([row for row in rows.tolist() if ids[row] in train_ids], dtype=np.int64)
    test = np.array([row for row in rows.tolist() if ids[row] in test_ids], dtype=np.int64)
    for part, name in ((training, "training"), (test, "test")):
        if len(part) == 0:
            raise SplitError(f"fold {fold.index} has no usable {name} rows; give the task more rows")
    labels = [[labelling[row] for row in training.tolist()] for labelling in (compositions, groups) if labelling]
    by_row = len(set(labels[0])) == 1
    if by_row:  # it tells no rows apart
        labels = labels[1:] or [training.tolist()]
    group_of_row = _joined_groups(labels)
    sizes = np.bincount(group_of_row)
    if len(sizes) < 2:
        problem = f"{len(training)} usable training rows of fold {fold.index} all share a group"
        if len(training) == 1:
            problem = f"fold {fold.index} has one usable training row"
        raise SplitError(f"{problem}, so none can be held out for validation; give the task more rows or groups")
    least = min(2, max(1, len(training) // 4))  # one row alone would choose by chance
    order = np.random.default_rng([seed, fold.index]).permutation(len(sizes))
    val_groups = order[_subset_nearest(sizes[order].tolist(), max(least, round(val_fraction * len(training))))]
    is_val = np.isin(group_of_row, val_groups)
    return Split(fold.index, train=training[~is_val], val=training[is_val], test=test, by_row=by_row and groups is None)


def _joined_groups(labels: Sequence[Sequence[str | int]]) -> np.ndarray:
    """The group of each row: rows are joined where any of the labellings agrees, however indirectly.

    Returns:
        int64, shape (n_rows,), numbered from 0 in order of appearance.
    """
    parent = list(range(len(labels[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for labelling in labels:
        first: dict[str | int, int] = {}
        for row, label in enumerate(labelling):
            parent[root(row)] = root(first.setdefault(label, row))
    number: dict[int, int] = {}
    return np.array([number.setdefault(root(row), len(number)) for row in range(len(parent))], dtype=np.int64)


def _subset_nearest(sizes: list[int], goal: int) -> list[int]:
    """Positions of `sizes` whose sum is as near to `goal` as any proper, non-empty subset's.

    Among the subsets that are, one of those that need the fewest leading positions.
    """
    limit = min(sum(sizes) - 1, max(2 * goal, min(sizes)))
    # last[s]: the position with which the sum s was first reached; the rest of that sum was
    # reached before it, so following `last` back never uses a position twice.
    last = np.full(limit + 1, -1, dtype=np.int64)
    last[0] = len(sizes)
    for position, size in enumerate(sizes):
        if size <= limit:
            sums_reached = (last[: limit + 1 - size] >= 0) & (last[size:] < 0)
            last[size:][sums_reached] = position
        if goal <= limit and last[goal] >= 0:
            break
    sums = np.flatnonzero(last[1:] >= 0) + 1
    remaining = int(sums[np.argmin(np.abs(sums - goal))])
    positions = []
    while remaining:
        positions.append(int(last[remaining]))
        remaining -= sizes[positions[-1]]
    return positions
