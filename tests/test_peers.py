"""The comparison with peers: on the sweep's own test crystals, by fold, and with the errors that were published."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.peers import compare
from data.folds import make_folds
from data.task_table import official_task
from models.metrics import all_scores
from tune.evaluate import FoldScore
from tune.options import Folder
from tune.results import summary

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"
PREDICTIONS, LABELS = SHARED / "peer_predictions_mp_e_form.parquet", SHARED / "mp_e_form_compositions.parquet"
TITLE = "pretrained + reference"
# Two folds of unequal size: the mean over folds is not that of all crystals.
LABEL = {0: {"a": 1.0, "b": 2.0, "c": 3.0}, 1: {"d": -1.0}}


def write_sweep(folder: Path, labels: dict[int, dict[str, float]], errors: dict[str, list[float]]) -> Path:
    """A finished sweep; `errors` are of the predictions by subfolder, one a fold and for all its crystals."""
    results = Folder(str(folder))
    by_name = {}
    for name, by_fold in errors.items():
        scores = []
        for (fold, of_fold), error in zip(labels.items(), by_fold, strict=True):
            y_true = np.array(list(of_fold.values()))
            table = pd.DataFrame({"id": list(of_fold), "composition": "X", "y_true": y_true, "y_pred": y_true + error})
            table["abs_error"] = abs(error)
            results.write_csv(f"{name}/preds_fold_{fold}.csv", table)
            found = all_scores("regression", y_true, table["y_pred"].to_numpy())
            scores.append(FoldScore(fold, predictions=table, validation=table, scores=found, n_fallback=0))
        by_name[name] = summary(scores)
    content = {"reference": {"title": TITLE, **by_name["reference"]}}
    content["seeds"] = [
        {"seed": int(name.removeprefix("seed_")), **one} for name, one in by_name.items() if name.startswith("seed_")
    ]
    if "ensemble" in by_name:
        content["ensemble"] = by_name["ensemble"]
    results.write_json("results.json", content)
    return folder


def write_peers(file: Path, columns: dict[str, dict[str, float]]) -> Path:
    """The peers' predictions by model and id, ids in the order of their first model."""
    table = pd.DataFrame(columns)
    table.rename_axis("mbid").reset_index().to_parquet(file)
    return file


@pytest.fixture
def sweep(tmp_path) -> Path:
    errors = {"reference": [0.5, 0.1], "seed_7": [0.2, -0.2], "seed_8": [-0.5, 0.0], "ensemble": [-0.1, -0.1]}
    return write_sweep(tmp_path / "sweep", LABEL, errors)


@pytest.fixture
def peers(tmp_path) -> Path:
    # in another order than the sweep's, and with crystals that the sweep does not have
    good = {"x": 90.0, "d": -1.0, "c": 3.06, "b": 1.97, "a": 1.0, "y": -90.0}
    bad = {"x": 0.0, "d": 1.0, "c": 0.0, "b": 2.0, "a": 1.0, "y": 0.0}
    return write_peers(tmp_path / "peers.parquet", {"bad": bad, "good": good})


def test_everyone_is_judged_on_the_sweeps_crystals_best_first(sweep, peers):
    table = compare(sweep, peers).set_index("model")
    assert list(table.index) == [
        "good", "ensemble of 2 seeds", "fine-tuned, seed 7", "fine-tuned, seed 8", TITLE, "bad",
    ]  # fmt: skip
    # by fold, then over folds: good 0.03, 0; bad 1, 2
    assert table["mae"].tolist() == pytest.approx([0.015, 0.1, 0.2, 0.25, 0.3, 1.5])
    spread = [0.03 / 2**0.5, 0, 0, 0.5 / 2**0.5, 0.4 / 2**0.5, 1 / 2**0.5]
    assert table["std_over_folds"].tolist() == pytest.approx(spread)
    assert table["median_error"].tolist() == pytest.approx([0.015, 0.1, 0.2, 0.5, 0.5, 1.0])
    assert (table["n"] == 4).all()
    assert table["this_sweep"].tolist() == [False, True, True, True, True, False]


def test_a_sweep_of_one_fold_and_one_seed_has_no_spread_and_no_ensemble(tmp_path, peers):
    sweep = write_sweep(tmp_path / "one", {1: LABEL[1]}, {"reference": [0.3], "seed_0": [0.1]})
    table = compare(sweep, peers)
    assert table["model"].tolist() == ["good", "fine-tuned, seed 0", TITLE, "bad"]
    assert table["mae"].tolist() == pytest.approx([0.0, 0.1, 0.3, 2.0])
    assert table["std_over_folds"].isna().all()
    assert (table["n"] == 1).all()


def test_ids_that_the_peers_lack_are_counted_and_one_is_named(sweep, tmp_path):
    peers = write_peers(tmp_path / "few.parquet", {"few": {"a": 1.0, "c": 3.0}})
    with pytest.raises(SystemExit, match=rf"^2 test ids are not in {re.escape(str(peers))}, for example b$"):
        compare(sweep, peers)


def run(*arguments: Path | str) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "benchmarks" / "peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_prints_the_table_or_why_not(sweep, peers, tmp_path):
    done = run(sweep, "--peers", peers)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in re.split("[│┃]", line)] for line in done.stdout.splitlines()]
    table = [line[1:-1] for line in cells if len(line) == 7]
    assert table[:2] == [
        ["model", "MAE", "+- over folds", "median error", "n"],
        ["good", "0.0150", "0.0212", "0.0150", "4"],
    ]
    assert [line[0] for line in table[1:]] == compare(sweep, peers)["model"].tolist()

    few = write_peers(tmp_path / "few.parquet", {"few": {"a": 1.0}})
    refused = run(sweep, "--peers", few)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"3 test ids are not in {few}, for example b\n"


@pytest.mark.skipif(not (PREDICTIONS.exists() and LABELS.exists()), reason="the peers' predictions are not here")
def test_peers_have_the_errors_that_they_published(tmp_path):
    labels = pd.read_parquet(LABELS).set_index("mbid")["e_form"]
    folds = make_folds(official_task("matbench_mp_e_form"), labels.index.tolist(), None)
    everything = {fold.index: labels.loc[fold.test_ids].to_dict() for fold in folds}
    sweep = write_sweep(tmp_path / "sweep", everything, {"reference": [0.5] * len(folds)})
    table = compare(sweep, PREDICTIONS).set_index("model")
    published = {"coNGN": 0.0178, "alignn": 0.0215, "cgcnnv2019": 0.0337, "rf": 0.1165}
    assert table.loc[list(published), "mae"].to_dict() == pytest.approx(published, abs=2e-4)
    assert (table["n"] == 132_752).all()
