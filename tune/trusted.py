"""What of a model's test predictions is not to be trusted, and the scores with and without it.

Marks come with the predictions (`models/trust.py`); a table of an earlier version has none, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from models.metrics import TRUSTED, Kind, all_scores

WORST = 3  # predictions that are named


def trust_facts(tables: Sequence[tuple[int, pd.DataFrame]], kind: Kind) -> dict[str, Any]:
    """How many predictions are not trusted, the worst of them, and the scores of the others.

    Args:
        tables: each fold's index and test predictions, with `trust` and `trusted`.
        kind: of the task.

    Returns:
        `n`, `n_untrusted`, `worst` (those of the largest error, a dict each) and, where each fold has trusted ones,
        `mean_of_trusted`, scores as in `mean`; nothing where a table has no marks.
    """
    if not all("trusted" in table for _, table in tables):
        return {}
    together = pd.concat([table.assign(fold=fold) for fold, table in tables], ignore_index=True)
    doubted = together[~together["trusted"]]
    columns = ["fold", "id", "composition", "y_true", "y_pred", "trust"]
    facts = {
        "n": len(together),
        "n_untrusted": len(doubted),
        "worst": doubted.nlargest(WORST, "abs_error")[columns].to_dict("records"),
    }
    kept = [table[table["trusted"]] for _, table in tables]
    if all(len(table) for table in kept):
        scores = [all_scores(kind, table["y_true"].to_numpy(), table["y_pred"].to_numpy()) for table in kept]
        facts["mean_of_trusted"] = {
            name: float((np.max if name == "max_error" else np.mean)([one[name] for one in scores]))
            for name in scores[0]
        }
    return facts


def trust_sentence(entry: dict[str, Any], metric: str, untrusted: str = "keep") -> str:
    """The facts of an entry of results.json in a sentence; "" where there are none.

    Args:
        entry: with `mean` and, if marks are known, `trust`.
        metric: that the run is judged by.
        untrusted: what the sweep was told to predict where there is no trust.
    """
    facts = entry.get("trust")
    if not facts:
        return ""
    if not facts["n_untrusted"]:
        return f"all {facts['n']:,} test predictions are trusted"
    named = "; ".join(
        f"{one['composition']} ({one['id']}, fold {one['fold']}) {one['y_pred']:.3g} for {one['y_true']:.3g}, trust "
        f"{one['trust']:.2g}"
        for one in facts["worst"]
    )
    told = f"{facts['n_untrusted']:,} of {facts['n']:,} test predictions are not trusted (trust below {TRUSTED})"
    told += ", and are the baseline's" if untrusted == "baseline" else ""
    told += f"; the largest errors among them: {named}"
    if "mean_of_trusted" in facts:
        told += f"; {metric.upper()} {entry['mean'][metric]:.4f} with them, "
        told += f"{facts['mean_of_trusted'][metric]:.4f} without"
    return told


def untrusted_facts(table: pd.DataFrame, kind: Kind, metric: str) -> dict[str, Any]:
    """For a line of the leaderboard: how many predictions of a table are not trusted, the worst, and the score without.

    Args:
        table: of all folds, with a column `fold`.
        kind: of the task.
        metric: that the line is judged by.
    """
    facts = trust_facts([(int(str(fold)), one) for fold, one in table.groupby("fold")], kind)
    if not facts:
        return {}
    told: dict[str, Any] = {"n_untrusted": facts["n_untrusted"]}
    if facts["n_untrusted"]:
        told["worst_untrusted"] = [f"{one['composition']} ({one['id']})" for one in facts["worst"]]
    if "mean_of_trusted" in facts:
        told[f"{metric}_of_trusted"] = facts["mean_of_trusted"][metric]
    return told


def untrusted_cell(told: dict[str, Any], metric: str, digits: int) -> str:
    """The same as text; "" where nothing is known."""
    if not told.get("n_untrusted"):
        return str(told.get("n_untrusted", ""))
    without = told.get(f"{metric}_of_trusted")
    score = "" if without is None else f" ({without:.{digits}f} without)"
    return f"{told['n_untrusted']}{score}: {', '.join(told['worst_untrusted'])}"
