"""Counts the test predictions that are not to be trusted, and scores the others.

Marks come with the predictions (the family's `fit_trust` makes them); a table of an earlier version has none, and
nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from data.metrics import METRICS, TRUSTED, Metric, example_errors, scores_of
from tune.records.members import as_written

WORST = 3  # predictions that are named


def trust_facts(tables: Sequence[tuple[int, pd.DataFrame]], metric: Metric, group_name: str) -> dict[str, Any]:
    """Counts the predictions that are not trusted, names the worst of them, and scores the others.

    Args:
        tables: each fold's index and test predictions, with `trust` and `trusted`.
        metric: that the task is judged by.
        group_name: what the task calls a group, which is the name of it in the facts.

    Returns:
        `n`, `n_untrusted`, `worst` (those of the largest error, a dict each) and, where each fold has trusted ones,
        `mean_of_trusted`, scores as in `mean`; nothing where a table has no marks.
    """
    if not all("trusted" in table for _, table in tables):
        return {}
    together = pd.concat([table.assign(fold=fold) for fold, table in tables], ignore_index=True)
    untrusted = together[~together["trusted"]]
    untrusted = untrusted.assign(error=example_errors(metric, untrusted))
    worst = as_written(untrusted.nlargest(WORST, "error"), group_name)
    columns = ["y_true", "y_pred"] if "y_pred" in worst else ["error"]
    facts = {
        "n": len(together),
        "n_untrusted": len(untrusted),
        "worst": worst[["fold", "id", group_name, *columns, "trust"]].to_dict("records"),
    }
    trusted = [table[table["trusted"]] for _, table in tables]
    if all(len(table) for table in trusted):
        scores = [scores_of(metric, table) for table in trusted]
        facts["mean_of_trusted"] = {
            name: float(
                (np.max if name == "max_error" else np.mean)([scores_of_fold[name] for scores_of_fold in scores])
            )
            for name in scores[0]
        }
    return facts


def _said(row: dict[str, Any]) -> str:
    """A prediction and its label, or where they are no numbers the error."""
    return f"{row['y_pred']:.3g} for {row['y_true']:.3g}" if "y_pred" in row else f"error {row['error']:.3g}"


def trust_sentence(entry: dict[str, Any], metric: str, group_name: str, untrusted: str = "keep") -> str:
    """Puts what an entry of results.json says of trust into a sentence; "" where it says nothing.

    Args:
        entry: with `mean` and, if marks are known, `trust`.
        metric: that the run is judged by.
        group_name: what the task calls a group.
        untrusted: what the sweep was told to predict where there is no trust.
    """
    facts = entry.get("trust")
    if not facts:
        return ""
    if not facts["n_untrusted"]:
        return f"all {facts['n']:,} test predictions are trusted"
    named = "; ".join(
        f"{row[group_name]} ({row['id']}, fold {row['fold']}) {_said(row)}, trust {row['trust']:.2g}"
        for row in facts["worst"]
    )
    sentence = f"{facts['n_untrusted']:,} of {facts['n']:,} test predictions are not trusted (trust below {TRUSTED})"
    sentence += ", and are the baseline's" if untrusted == "baseline" else ""
    sentence += f"; the largest errors among them: {named}"
    if "mean_of_trusted" in facts:
        sentence += f"; {METRICS[metric].title} {entry['mean'][metric]:.4f} with them, "
        sentence += f"{facts['mean_of_trusted'][metric]:.4f} without"
    return sentence


def untrusted_facts(table: pd.DataFrame, metric: Metric, group_name: str) -> dict[str, Any]:
    """Counts what is not trusted of a line of the leaderboard, names the worst of it, and scores the rest.

    Args:
        table: of all folds, with a column `fold`.
        metric: that the task is judged by.
        group_name: what the task calls a group.
    """
    facts = trust_facts(
        [(int(str(fold)), fold_table) for fold, fold_table in table.groupby("fold")], metric, group_name
    )
    if not facts:
        return {}
    line: dict[str, Any] = {"n_untrusted": facts["n_untrusted"]}
    if facts["n_untrusted"]:
        line["worst_untrusted"] = [f"{row[group_name]} ({row['id']})" for row in facts["worst"]]
    if "mean_of_trusted" in facts:
        line[f"{metric.name}_of_trusted"] = facts["mean_of_trusted"][metric.name]
    return line


def untrusted_cell(line: dict[str, Any], metric: str, digits: int) -> str:
    """Writes what `untrusted_facts` gave as the text of a cell; "" where it gave nothing."""
    if not line.get("n_untrusted"):
        return str(line.get("n_untrusted", ""))
    without = line.get(f"{metric}_of_trusted")
    score = "" if without is None else f" ({without:.{digits}f} without)"
    return f"{line['n_untrusted']}{score}: {', '.join(line['worst_untrusted'])}"
