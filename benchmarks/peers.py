"""Compare a finished sweep with the predictions of other models on exactly the same test crystals.

    python benchmarks/peers.py ray_results/NAME --peers FILE.parquet

FILE holds one row a crystal: its Matbench id in `mbid`, and one column of predictions a model, as the
public leaderboard's submissions give them. Peers were trained on the whole task, CHGNet was pretrained on
the Materials Project: the table says how far apart they are, not which method learns better.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table


def fold_errors(folder: Path, folds: list[int]) -> pd.DataFrame:
    """Predictions of one config: id, y_true, y_pred and fold, all folds together."""
    parts = [pd.read_csv(folder / f"preds_fold_{fold}.csv").assign(fold=fold) for fold in folds]
    return pd.concat(parts, ignore_index=True)


def compare(sweep: Path, peers_file: Path) -> pd.DataFrame:
    """MAE of every model over the sweep's test ids: mean and standard deviation over folds, and the median error.

    Raises:
        SystemExit: a test id of the sweep is missing from the peers' file.
    """
    results = json.loads((sweep / "results.json").read_text())
    folds = [entry["fold"] for entry in results["reference"]["folds"]]
    entries = {results["reference"]["title"]: fold_errors(sweep / "reference", folds)}
    for entry in results["seeds"]:
        entries[f"fine-tuned, seed {entry['seed']}"] = fold_errors(sweep / f"seed_{entry['seed']}", folds)
    if "ensemble" in results:
        entries[f"ensemble of {len(results['seeds'])} seeds"] = fold_errors(sweep / "ensemble", folds)
    peers = pd.read_parquet(peers_file).set_index("mbid")
    ours = next(iter(entries.values()))
    missing = ours.loc[~ours["id"].isin(peers.index), "id"]
    if len(missing):
        raise SystemExit(f"{len(missing)} test ids are not in {peers_file}, for example {missing.iloc[0]}")
    for name in peers.columns:
        entries[name] = ours.assign(y_pred=peers.loc[ours["id"], name].to_numpy())
    rows = []
    for name, table in entries.items():
        error = (table["y_true"] - table["y_pred"]).abs()
        by_fold = error.groupby(table["fold"]).mean()
        rows.append((name, by_fold.mean(), by_fold.std(), error.median(), len(table), name not in peers.columns))
    columns = ["model", "mae", "std_over_folds", "median_error", "n", "this_sweep"]
    return pd.DataFrame(rows, columns=columns).sort_values("mae", ignore_index=True)


def main(
    sweep: Annotated[Path, typer.Argument(help="Folder of a finished sweep.")],
    peers: Annotated[Path, typer.Option(help="Parquet of the peers' predictions, one column a model.")],
) -> None:
    """Print the table, best first."""
    table = Table("model", "MAE", "+- over folds", "median error", "n")
    for row in compare(sweep, peers).itertuples():
        spread = "" if np.isnan(row.std_over_folds) else f"{row.std_over_folds:.4f}"
        style = "bold" if row.this_sweep else ""
        table.add_row(row.model, f"{row.mae:.4f}", spread, f"{row.median_error:.4f}", str(row.n), style=style)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
