"""Test predictions joined with test labels, once: the only module that reads labels of a test part."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.errors import UserError
from data.stores.storage import read_whole
from models.metrics import TRUSTED, all_scores
from tune.dataset.dataset import Dataset
from tune.trials.search import Outcome
from tune.trials.trial import MODEL_FILE, PREDICTIONS_FILE


class PredictionError(UserError, RuntimeError):
    """Predictions that do not cover the test part exactly once."""


@dataclass(frozen=True, eq=False)
class FoldScore:
    """One config on the test part of one fold.

    Attributes:
        fold: its index.
        predictions: id, composition, y_true, y_pred, abs_error (and std of an ensemble, or of a model that tells its
            uncertainty), trust and trusted (`models/crystals/trust.py`), one row a test id.
        validation: the same of the fold's validation part.
        scores: MAE, RMSE and largest error, or ROC-AUC and accuracy.
        n_fallback: test crystals without a graph, scored by the training mean.
    """

    fold: int
    predictions: pd.DataFrame
    validation: pd.DataFrame
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
    for part, which in (("test", split.test), ("val", split.val)):
        values = predicted[part]
        if values.shape != which.shape or not np.isfinite(values).all():
            raise PredictionError(
                f"fold {outcome.fold}: {len(values)} predictions, {np.isfinite(values).sum()} of them finite, "
                f"for {len(which)} {part} rows"
            )
    test_ids = set(dataset.folds[outcome.fold].test_ids)
    fallback = [row for row in dataset.quarantine if dataset.ids[row] in test_ids and row not in dataset.unscored]
    training_mean = dataset.labels[np.concatenate([split.train, split.val])].mean()
    rows = np.concatenate([split.test, np.array(fallback, dtype=np.int64)])
    y_pred = np.concatenate([predicted["test"], np.full(len(fallback), training_mean)])
    ids = [dataset.ids[row] for row in rows]
    scorable = {dataset.ids[row] for row in range(len(dataset.ids)) if row not in dataset.unscored} & test_ids
    if len(set(ids)) != len(ids) or set(ids) != scorable:
        raise PredictionError(f"fold {outcome.fold}: {len(ids)} predictions do not match {len(scorable)} test ids")
    table = _table(dataset, rows, y_pred)
    validation = _table(dataset, split.val, predicted["val"])
    if "test_std" in predicted:
        # Nothing is known of a crystal without a graph: as uncertain as the labels are spread.
        spread = dataset.labels[np.concatenate([split.train, split.val])].std()
        table["std"] = np.concatenate([predicted["test_std"], np.full(len(fallback), spread)])
        validation["std"] = predicted["val_std"]
    if "test_trust" in predicted:
        _mark(table, np.concatenate([predicted["test_trust"], np.zeros(len(fallback))]))
        _mark(validation, predicted["val_trust"])
    return FoldScore(outcome.fold, table, validation, _scores(dataset, table), len(fallback))


def ensemble(dataset: Dataset, members: list[FoldScore]) -> FoldScore:
    """Mean prediction of several seeds on one fold.

    `std` is the spread of the members at each id, `trust` the least of theirs: one wild member spoils a mean.
    """
    first = members[0]
    tables = []
    for part in ("predictions", "validation"):
        together = np.stack([getattr(member, part)["y_pred"].to_numpy() for member in members])
        table = getattr(first, part)[["id", "composition", "y_true"]].copy()
        table["y_pred"] = together.mean(axis=0)
        table["abs_error"] = (table["y_true"] - table["y_pred"]).abs()
        table["std"] = together.std(axis=0, ddof=1)
        if all("trust" in getattr(member, part) for member in members):
            _mark(table, np.min([getattr(member, part)["trust"].to_numpy() for member in members], axis=0))
        tables.append(table)
    return FoldScore(first.fold, tables[0], tables[1], _scores(dataset, tables[0]), first.n_fallback)


def model_file(outcome: Outcome) -> bytes:
    """The model an outcome left, as `models.fitted.load_model` reads it."""
    assert outcome.folder is not None
    filesystem, path = outcome.folder
    return read_whole(filesystem, f"{path}/{MODEL_FILE}")


def _mark(table: pd.DataFrame, trust: np.ndarray) -> None:
    """Add how far each prediction can be trusted; a crystal without a graph, which no model has seen, not at all."""
    table["trust"] = trust
    table["trusted"] = trust >= TRUSTED


def _table(dataset: Dataset, rows: np.ndarray, y_pred: np.ndarray) -> pd.DataFrame:
    y_true = dataset.labels[rows]
    return pd.DataFrame(
        {
            "id": [dataset.ids[row] for row in rows],
            "composition": [dataset.clusters[row] or "unknown" for row in rows],
            "y_true": y_true,
            "y_pred": y_pred,
            "abs_error": np.abs(y_true - y_pred),
        }
    )


def _scores(dataset: Dataset, table: pd.DataFrame) -> dict[str, float]:
    return all_scores(dataset.task.kind, table["y_true"].to_numpy(), table["y_pred"].to_numpy())
