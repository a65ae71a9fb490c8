"""Makes folds whose test parts are unlike all that is trained on: `--split leave-group-out`.

A task's own folds ask how well a model predicts more of the same. These ask what it says of chemistry that its
training part does not hold: elements, or molecular crystals, which fold by fold are left out of it altogether.
"""

from __future__ import annotations

import numpy as np

from data.crystals.left_out_rules import LEAVE_ELEMENTS_OUT, LEAVE_MOLECULES_OUT
from data.fold import FOLD_SEED, N_FOLDS, Fold, SplitError


def leave_elements_out(ids: list[str], fractions: np.ndarray) -> tuple[list[Fold], list[list[int]]]:
    """Five folds; each leaves some elements out: it tests every row that holds one, and trains on those that do not.

    Elements are drawn in an order of their own, the same for the same rows, as long as a fold tests no more than a
    fifth of the rows. An element of more rows than that is never left out, and no element is left out twice. A row that
    holds elements of two folds is tested in both.

    Args:
        ids: one a row; rows of the same id are in the same parts.
        fractions: element fractions, shape (n, 94); a row of zeros is in no part.

    Returns:
        The folds, and the atomic numbers that each leaves out, ascending.

    Raises:
        SplitError: a fold has no element to leave out.
    """
    holds = np.asarray(fractions) > 0
    is_usable = holds.any(axis=1)
    limit = is_usable.sum() / N_FOLDS
    tests = np.zeros((N_FOLDS, len(ids)), dtype=bool)
    left_out: list[list[int]] = [[] for _ in range(N_FOLDS)]
    for position in np.random.default_rng(FOLD_SEED).permutation(holds.shape[1]).tolist():
        if not holds[:, position].any():
            continue
        for fold in np.argsort(tests.sum(axis=1), kind="stable").tolist():
            tested_rows = tests[fold] | holds[:, position]
            if tested_rows.sum() <= limit:
                tests[fold] = tested_rows
                left_out[fold].append(position + 1)
                break
    if not all(left_out):
        n_rare = int((holds.sum(axis=0)[holds.any(axis=0)] <= limit).sum())
        raise SplitError(
            f"--split {LEAVE_ELEMENTS_OUT}: {n_rare} elements are in no more than a fifth of the {is_usable.sum()} "
            f"rows; {N_FOLDS} folds need at least {N_FOLDS} to leave out"
        )
    folds = [Fold(k, _named(ids, is_usable & ~test), _named(ids, test)) for k, test in enumerate(tests)]
    return folds, [sorted(numbers) for numbers in left_out]


def leave_molecules_out(ids: list[str], is_molecular: np.ndarray, is_usable: np.ndarray) -> list[Fold]:
    """Five folds that all train on the crystals that are not molecular; each tests another fifth of those that are.

    Args:
        ids: one a row; rows of the same id are in the same parts.
        is_molecular: bool, shape (n,), see `data.crystals.molecules.molecular`.
        is_usable: bool, shape (n,); rows that are False are in no part.

    Raises:
        SplitError: fewer than five molecular crystals, or no other ones.
    """
    molecules, other_ids = _named(ids, is_molecular & is_usable), _named(ids, ~is_molecular & is_usable)
    if len(molecules) < N_FOLDS or not other_ids:
        raise SplitError(
            f"--split {LEAVE_MOLECULES_OUT}: {len(molecules)} of the rows are molecular crystals, {len(other_ids)} are "
            f"not; {N_FOLDS} folds need at least {N_FOLDS} to test on, and others to train on"
        )
    shuffled = np.random.default_rng(FOLD_SEED).permutation(len(molecules))
    parts = [np.sort(part) for part in np.array_split(shuffled, N_FOLDS)]
    return [Fold(k, other_ids, [molecules[position] for position in part.tolist()]) for k, part in enumerate(parts)]


def _named(ids: list[str], which: np.ndarray) -> list[str]:
    """Ids of the rows that are chosen, each once, in order."""
    return list(dict.fromkeys(ids[row] for row in np.flatnonzero(which).tolist()))
