"""Test predictions joined with test labels, once: the only module that reads labels of a test part."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.storage import read_whole
from models.metrics import all_scores
from tune.dataset import Dataset
from tune.search import Outcome
from tune.trial import MODEL_FILE, PREDICTIONS_FILE


class PredictionError(RuntimeError):
    """Predictions that do not cover the test part exactly once."""


@dataclass(frozen=True, eq=False)
class FoldScore:
    """One config on the test part of one fold.

    Attributes:
        fold: its index.
        predictions: id, composition, y_true, y_pred, abs_error (and std for an ensemble), one row a test id.
        scores: MAE, RMSE and largest error, or ROC-AUC and accuracy.
        n_fallback: test crystals without a graph, scored by the training mean.
    """

    fold: int
    predictions: pd.DataFrame
    scores: dict[str, float]
    n_fallback: int


def score_fold(dataset: Dataset, outcome: Outcome) -> FoldScore:
    """Join one outcome's predictions with the labels of its test part.

    A quarantined crystal of the test part has no graph and is predicted by the mean of the training labels.

    Raises:
        PredictionError: a test id has no prediction, or more than one.
    """
    split = dataset.splits[outcome.fold]
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    predicted = np.load(io.BytesIO(read_whole(filesystem, f"{path}/{PREDICTIONS_FILE}")))
    if predicted.shape != split.test.shape or not np.isfinite(predicted).all():
        raise PredictionError(
            f"fold {outcome.fold}: {len(predicted)} predictions, {np.isfinite(predicted).sum()} of them finite, "
            f"for {len(split.test)} test rows"
        )
    test_ids = set(dataset.folds[outcome.fold].test_ids)
    fallback = [row for row in dataset.quarantine if dataset.ids[row] in test_ids and row not in dataset.unscored]
    training_mean = dataset.labels[np.concatenate([split.train, split.val])].mean()
    rows = np.concatenate([split.test, np.array(fallback, dtype=np.int64)])
    y_pred = np.concatenate([predicted, np.full(len(fallback), training_mean)])
    ids = [dataset.ids[row] for row in rows]
    scorable = {dataset.ids[row] for row in range(len(dataset.ids)) if row not in dataset.unscored} & test_ids
    if len(set(ids)) != len(ids) or set(ids) != scorable:
        raise PredictionError(f"fold {outcome.fold}: {len(ids)} predictions do not match {len(scorable)} test ids")
    table = pd.DataFrame(
        {
            "id": ids,
            "composition": [dataset.formulas[row] or "unknown" for row in rows],
            "y_true": dataset.labels[rows],
            "y_pred": y_pred,
        }
    )
    return _scored(dataset, outcome.fold, table, len(fallback))


def ensemble(dataset: Dataset, members: list[FoldScore]) -> FoldScore:
    """Mean prediction of several seeds on one fold; `std` is the spread of the members at each id."""
    together = np.stack([member.predictions["y_pred"].to_numpy() for member in members])
    table = members[0].predictions[["id", "composition", "y_true"]].copy()
    table["y_pred"] = together.mean(axis=0)
    scored = _scored(dataset, members[0].fold, table, members[0].n_fallback)
    scored.predictions["std"] = together.std(axis=0, ddof=1)
    return scored


def model_file(outcome: Outcome) -> bytes:
    """The model an outcome left, as `models.fitted.load_model` reads it."""
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    return read_whole(filesystem, f"{path}/{MODEL_FILE}")


def _scored(dataset: Dataset, fold: int, table: pd.DataFrame, n_fallback: int) -> FoldScore:
    table["abs_error"] = (table["y_true"] - table["y_pred"]).abs()
    scores = all_scores(dataset.task.kind, table["y_true"].to_numpy(), table["y_pred"].to_numpy())
    return FoldScore(fold, table, scores, n_fallback)
