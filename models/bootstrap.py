"""Resamples groups of rows, to say how sure a metric or a difference of two is over them: every interval's source.

The percentile interval of a bootstrap (Efron and Tibshirani 1993, chapter 13) that draws groups, not rows (a cluster
bootstrap: Davison and Hinkley 1997, section 3.8): what belongs together, as polymorphs of a composition do, has like
errors, and is drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from data.metrics import Metric

MIN_GROUPS = 10  # below, an interval from resampling means nothing
RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # weights in memory
_NO_GROUP = ("", "unknown")  # what rows that could not be read have for a group


def group_numbers(rows: pd.DataFrame) -> np.ndarray:
    """Number of each row's group, int64 from 0, shape (n,); a row without a group is like no other row."""
    name = rows["group"].where(~rows["group"].isin(_NO_GROUP), "id " + rows["id"])
    return pd.factorize(name)[0]


def resampled_scores(
    rows: pd.DataFrame,
    predicted: Sequence[np.ndarray],
    metric: Metric,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """The metric of several models on the same resamples of groups.

    Groups are drawn with replacement within each fold, n - 1 of its n, which keeps intervals from being too
    narrow (McCarthy and Snowden, Vital and Health Statistics 2-95, 1985); one that is in several folds is drawn with
    the fold that has most of its rows and brings those of the other folds along. A resample's value is

        mean over folds f of  sum_i w_i e_i / sum_i w_i,  i in f,

    with w_i how often the group of i was drawn and e the absolute error, mean over a model's seeds; another metric of
    the means of examples' values takes its place likewise, and for a ROC-AUC the weighted ROC-AUC, mean over seeds.

    Args:
        rows: fold, id, group, and y_true where it is a number; n rows.
        predicted: of each model, shape (seeds, n); or the values that the metric is made of, shape (seeds, n, values).
            What is resampled is the mean over its seeds.
        metric: of the task.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Shape (resamples, models).
    """
    group = group_numbers(rows)
    folds, fold = np.unique(rows["fold"].to_numpy(), return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, len(folds)))
    np.add.at(counts, (group, fold), 1)
    # Groups of a fold stand side by side, for a slice is written ten times as fast as scattered columns.
    home = counts.argmax(axis=1)
    order = np.argsort(home, kind="stable")
    group, counts = np.argsort(order)[group], counts[order]
    draws = _draw(np.bincount(home), n_resamples, np.random.default_rng(seed))
    scored = _areas if metric.of_all is not None else _means_scored
    return np.concatenate(list(scored(rows, predicted, metric, group, fold, counts, draws)))


def _means_scored(
    rows: pd.DataFrame,
    predicted: Sequence[np.ndarray],
    metric: Metric,
    group: np.ndarray,
    fold: np.ndarray,
    counts: np.ndarray,
    draws: Iterator[np.ndarray],
) -> Iterator[np.ndarray]:
    """A metric of means of examples' values on each portion of draws, shape (resamples, models).

    Args:
        rows, predicted, metric: as in `resampled_scores`.
        group, fold: of each row, int64, shape (n,).
        counts: rows of each group in each fold.
        draws: how often each group is drawn, in portions.
    """
    values = [_values(rows, model_values, metric) for model_values in predicted]
    if metric.is_mean:  # the mean over seeds of means is the mean of their means
        values = [model_values.mean(axis=0, keepdims=True) for model_values in values]
    columns = np.concatenate(
        [np.moveaxis(model_values, 0, 1).reshape(len(rows), -1) for model_values in values], axis=1
    )
    sums = np.zeros((*counts.shape, columns.shape[1]))
    np.add.at(sums, (group, fold), columns)
    flat = sums.reshape(len(counts), -1)
    ends = np.cumsum([model_values.shape[0] * model_values.shape[2] for model_values in values])[:-1]
    for weights in draws:
        fold_counts = weights @ counts
        means = _means((weights @ flat).reshape(-1, *sums.shape[1:]), fold_counts)
        model_means = [part.reshape(*part.shape[:2], -1, values[0].shape[2]) for part in np.split(means, ends, axis=2)]
        scores = np.stack([metric.of_means(model_values).mean(axis=2) for model_values in model_means], axis=2)
        yield _over_folds(scores, fold_counts > 0)


def _areas(
    rows: pd.DataFrame,
    predicted: Sequence[np.ndarray],
    _metric: Metric,
    group: np.ndarray,
    fold: np.ndarray,
    counts: np.ndarray,
    draws: Iterator[np.ndarray],
) -> Iterator[np.ndarray]:
    """The ROC-AUC, likewise."""
    true = rows["y_true"].to_numpy() > 0.5
    rows_by_fold = [np.flatnonzero(fold == position) for position in range(counts.shape[1])]
    for weights in draws:
        by_fold = []
        for fold_rows in rows_by_fold:
            row_weights = weights[:, group[fold_rows]]
            aucs = [
                [weighted_auc(true[fold_rows], scores[fold_rows], row_weights) for scores in model_predictions]
                for model_predictions in predicted
            ]
            by_fold.append([np.mean(model_predictions, axis=0) for model_predictions in aucs])
        yield np.mean(by_fold, axis=0).T


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of the 95 % percentile interval of resampled values, shape (resamples,)."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def weighted_auc(y_true: np.ndarray, y_pred: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ROC-AUC of weighted rows, ties counted half; of a single class it counts as 0.5, as in `data.metrics`.

    Args:
        y_true: bool, shape (n,).
        y_pred: any float that is higher for true, shape (n,).
        weights: shape (resamples, n).

    Returns:
        Shape (resamples,).
    """
    positive, negative = (np.flatnonzero(y_true == which) for which in (True, False))
    positive, negative = (rows[np.argsort(y_pred[rows])] for rows in (positive, negative))
    # The weight of the negatives below each positive, half of those that tie with it: the mean of < and <=.
    weight = np.zeros((len(weights), len(negative) + 1))
    weights[:, negative].cumsum(axis=1, out=weight[:, 1:])
    below, up_to = (np.searchsorted(y_pred[negative], y_pred[positive], side) for side in ("left", "right"))
    positive_weights = weights[:, positive]
    wins = (positive_weights * (weight[:, below] + weight[:, up_to])).sum(axis=1) / 2
    pairs = positive_weights.sum(axis=1) * weight[:, -1]
    return np.divide(wins, pairs, out=np.full(len(wins), 0.5), where=pairs > 0)


def _draw(sizes: np.ndarray, n_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each group is drawn, shape (resamples of this portion, groups), fold after fold.

    Args:
        sizes: number of groups of each fold.
        n_resamples: in all.
        rng: draws.
    """
    # n - 1 draws of n; of a single one, that one
    ends = np.cumsum(sizes)
    portion = max(1, _AT_ONCE // int(ends[-1]))
    for begin in range(0, n_resamples, portion):
        size = min(portion, n_resamples - begin)
        weights = np.zeros((size, ends[-1]))
        for n, end in zip(sizes[sizes > 0].tolist(), ends[sizes > 0].tolist(), strict=True):
            draws = rng.integers(n, size=(size, max(1, n - 1))) + n * np.arange(size)[:, None]
            weights[:, end - n : end] = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)
        yield weights


def _values(rows: pd.DataFrame, predictions: np.ndarray, metric: Metric) -> np.ndarray:
    """The values of examples that a metric is made of, shape (seeds, n, values)."""
    if predictions.ndim == 3:
        return predictions
    y_true = rows["y_true"].to_numpy()
    return np.stack([metric.of_examples(y_true, seed_predictions) for seed_predictions in predictions])


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts, 0 of a fold that was not drawn.

    Args:
        sums: shape (resamples, folds, columns).
        counts: shape (resamples, folds).
    """
    has_rows = (counts > 0)[:, :, None]
    return np.divide(sums, counts[:, :, None], out=np.zeros_like(sums), where=has_rows)


def _over_folds(scores: np.ndarray, has_rows: np.ndarray) -> np.ndarray:
    """Mean over the folds that were drawn, shape (resamples, models).

    Args:
        scores: shape (resamples, folds, models).
        has_rows: whether any group of a fold was drawn, shape (resamples, folds).
    """
    return np.where(has_rows[:, :, None], scores, 0.0).sum(axis=1) / has_rows.sum(axis=1)[:, None]
