"""Predictions beside their labels, and the files that hold them: a table, and arrays where they are no numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.metrics import TRUSTED, Metric, value_columns, with_beside
from tune.records.folder import Folder
from tune.records.members import PREFIX, as_written


@dataclass(frozen=True, eq=False)
class Labelled:
    """Predictions of some examples beside their labels.

    Attributes:
        ids: one an example.
        groups: one an example, the name of what it belongs to.
        y_true: shape (n, ...).
        y_pred: shape (n, ...).
        std: uncertainty in the shape of `y_pred`, or None.
        trust: shape (n,), or None.
    """

    ids: list[str]
    groups: list[str]
    y_true: np.ndarray
    y_pred: np.ndarray
    std: np.ndarray | None
    trust: np.ndarray | None

    @property
    def of_numbers(self) -> bool:
        """Whether a prediction is a number."""
        return self.y_pred.ndim == 1

    def table(self, metric: Metric) -> pd.DataFrame:
        """A row an example: id, group, y_true, y_pred, abs_error, std, trust and trusted, as far as they are known.

        Where predictions are arrays, the values of each example that the metric, and those beside it, are made of stand
        in place of the numbers; of a metric that is scaled they stand beside them.
        """
        columns: dict[str, Any] = {"id": self.ids, "group": self.groups}
        if self.of_numbers:
            columns |= {"y_true": self.y_true, "y_pred": self.y_pred, "abs_error": np.abs(self.y_true - self.y_pred)}
            if self.std is not None:
                columns["std"] = self.std
        if metric.scaled or not self.of_numbers:
            for score_metric in with_beside(metric):
                if score_metric.columns:
                    values = score_metric.of_examples(self.y_true, self.y_pred)
                    columns |= dict(zip(value_columns(score_metric, values.shape[1]), values.T, strict=True))
        if self.trust is not None:
            columns |= {"trust": self.trust, "trusted": self.trust >= TRUSTED}
        return pd.DataFrame(columns)

    def write(self, folder: Folder, member: str, on: str, fold: int, metric: Metric, group_name: str) -> None:
        """Write the files of a fold's part, `test` or `validation`, into the folder of a member."""
        name = f"{member}/{PREFIX[on]}_fold_{fold}"
        if not self.of_numbers:
            uncertain = {} if self.std is None else {"std": self.std}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, y_true=self.y_true, y_pred=self.y_pred, **uncertain)
            folder.write(f"{name}.npz", buffer.getvalue())
        folder.write_csv(f"{name}.csv", as_written(self.table(metric), group_name))
