"""What a reader of results must know besides the scores: sentences for RESULTS.md, the report and the terminal.

Called by `tune/sweep/results.py`, and by `tune/sweep/sweep.py` for what is known before anything is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.notes import commonest_notes, rows_were
from data.task import Task
from models.registry import open_family, open_model
from tune.dataset.dataset import Dataset
from tune.spaces.space import SearchSpace
from tune.sweep.evaluate import FoldScore
from tune.trials.search import Outcome

_ROUNDING = 1e-5  # part of the spread of the labels by which predictions of the same model may differ


def target_note(task: Task, space: SearchSpace) -> str:
    """How the model takes a target of the user's own; "" where that is no question."""
    return open_family(task.family).target_note(open_model(space.model), task)


def row_notes(dataset: Dataset, n_fallback: int) -> list[str]:
    """Rows that were read with notes, and rows that take part in nothing.

    Args:
        dataset: the rows.
        n_fallback: quarantined rows of the test parts that have a label, and are scored all the same.
    """
    notes = []
    if dataset.notes:
        kinds = "; ".join(commonest_notes(dataset.notes.values()))
        notes.append(f"{rows_were(len(dataset.notes))} read with notes (notes.csv): {kinds}.")
    if dataset.quarantine:
        consequence = (
            f"of {n_fallback}, which have a label, the mean of the training labels is scored"
            if n_fallback
            else "neither trained on nor scored"
        )
        notes.append(f"{rows_were(len(dataset.quarantine))} quarantined (quarantine.csv): {consequence}.")
    return notes


def one_class_notes(scores: Sequence[FoldScore]) -> list[str]:
    """Where a ROC-AUC has nothing to rank, of each fold's test and validation part."""
    notes = []
    for name, parts, consequence in (
        (
            "test",
            {score.fold: score.test for score in scores},
            "counts as 0.5 there, in the mean of every model alike",
        ),
        (
            "validation",
            {score.fold: score.validation for score in scores},
            "is 0.5 there whatever was trained: no choice",
        ),
    ):
        if folds := [fold for fold, part in parts.items() if len(np.unique(part.y_true)) < 2]:
            fold_list = ", ".join(map(str, folds))
            notes.append(f"The {name} part of fold(s) {fold_list} holds one class alone: ROC-AUC {consequence}.")
    return notes


def untrained_notes(outcomes: Sequence[Outcome]) -> list[str]:
    """The folds in which no epoch was better on validation than none, so that the kept model is untrained."""
    untrained_folds = [
        f"{outcome.fold} (seed {outcome.config['seed']})"
        for outcome in outcomes
        if outcome.kept_epoch == 0 and len(outcome.history) > 1
    ]
    note = (
        f"In fold(s) {', '.join(untrained_folds)} no epoch was better on validation than the model before training, "
        "which is what is kept and scored there."
    )
    return [note] if untrained_folds else []


def same_seeds_notes(ensembles: Sequence[FoldScore]) -> list[str]:
    """Whether all seeds came to the same model: their spread is 0 then, and no uncertainty."""
    spread = max(float(score.test.std.max()) for score in ensembles if score.test.std is not None)
    spread_of_labels = float(np.std(np.concatenate([score.test.y_true for score in ensembles])))
    note = (
        "All seeds train the same model, as where one batch holds all training rows: that they agree says nothing of "
        "how sure the predictions are."
    )
    return [note] if spread <= _ROUNDING * spread_of_labels else []
