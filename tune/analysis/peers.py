"""Other people's predictions of a Matbench task: a table of several models, or one published results.json.gz."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from tune.errors import RunError

_FOLDER_PREFIX = "matbench_v0.1_"
_GZIP = b"\x1f\x8b"


def read_peers(file: str | Path) -> pd.DataFrame:
    """Predictions of other models, as the public leaderboard's submissions give them.

    Args:
        file: a Parquet file with the Matbench ids in `mbid` and one column of predictions a model; or a
            `results.json.gz` that `matbench` wrote, gzipped or not, of any of its tasks together.

    Returns:
        Index: Matbench ids, each once, for they name their task. One float64 column a model; NaN where it has
        no prediction.

    Raises:
        RunError: the file cannot be read, or is laid out otherwise.
    """
    path = Path(file)
    try:
        table = _read_table(path) if path.suffix == ".parquet" else _read_record(path)
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as problem:
        raise RunError(f"--peers {file} cannot be read: {problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise RunError(
            f"--peers {file} is laid out in an unknown way ({type(problem).__name__}: {problem}): expected a .parquet "
            "with a column `mbid` and one of predictions a model, or a results.json.gz written by matbench"
        ) from None
    if table.index.has_duplicates:
        raise RunError(f"--peers {file} has {table.index[table.index.duplicated()][0]!r} more than once")
    return table


def peer_tables(peers: pd.DataFrame, rows: pd.DataFrame, file: str) -> dict[str, pd.DataFrame]:
    """The peers' predictions of exactly these rows, by model; none where they are of other tasks.

    Args:
        peers: as `read_peers` gives them.
        rows: fold, id, group, y_true.
        file: where they come from, for messages.

    Raises:
        RunError: they have some of the ids only.
    """
    ids = rows["id"]
    is_predicted = ids.isin(peers.index).to_numpy()
    if not is_predicted.any():
        return {}
    if not is_predicted.all():
        raise RunError(
            f"{(~is_predicted).sum()} test ids are not in {file}, for example {ids[~is_predicted].iloc[0]}: name runs "
            "of those ids alone that it has"
        )
    row_predictions = peers.loc[ids]
    tables = {}
    for name in row_predictions.columns:
        predicted = row_predictions[name].to_numpy()
        is_missing = ~np.isfinite(predicted)
        if is_missing.all():  # a model that did not enter this task
            continue
        if is_missing.any():
            first = ids[is_missing].iloc[0]
            raise RunError(
                f"{name} of {file} has no prediction of {is_missing.sum()} test ids, for example {first}: take that "
                "column out, or name other runs"
            )
        tables[str(name)] = rows.assign(y_pred=predicted)
    return tables


def _read_table(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    if "mbid" not in table:
        raise KeyError(f"no column 'mbid' but {list(table.columns)[:10]}")
    return table.set_index("mbid").astype(float)


def _read_record(path: Path) -> pd.DataFrame:
    """What `MatbenchBenchmark.to_file` writes, without the seconds and checks of `from_file`."""
    content = path.read_bytes()
    # matbench 0.6 writes plain text whatever the name; what its repository holds is compressed.
    if content.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read()
    predictions: dict[str, float] = {}
    for task in orjson.loads(content)["tasks"].values():
        for fold in task["results"].values():
            again = predictions.keys() & fold["data"].keys()
            if again:
                raise ValueError(f"{min(again)!r} is in several folds")
            predictions |= fold["data"]
    name = _algorithm(path)
    return pd.DataFrame({name: pd.Series(predictions, dtype=float)}).rename_axis("mbid")


def _algorithm(path: Path) -> str:
    """The name that info.json beside the file gives, else that of its folder."""
    try:
        return str(orjson.loads((path.parent / "info.json").read_bytes())["algorithm"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.resolve().parent.name.removeprefix(_FOLDER_PREFIX)
