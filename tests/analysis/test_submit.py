"""Submissions to Matbench: what its own package makes of them, and what is refused with what is missing."""

import csv
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from finished_runs import REPOSITORY, write_run
from matbench_records import read_record
from official_runs import OPTIONS, SMALL, official_rows, official_run
from typer.testing import CliRunner

from data.metrics import METRICS
from models.crystals.family import PRETRAINED_ON
from tune.analysis.matbench_record import quiet_matbench
from tune.analysis.submission import MISSING
from tune.ensemble import app as average
from tune.runs import load_sweep
from tune.spaces.space import load_space
from tune.submit import app

SHARED = REPOSITORY.parent / "shared" / "data"
PREDICTIONS, LABELS = SHARED / "peer_predictions_mp_e_form.parquet", SHARED / "mp_e_form_compositions.parquet"
SMALL_CLASSES = "matbench_glass"


def submit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ray_results"


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return official_rows(SMALL)


def test_a_whole_task_is_recorded_scored_and_validated_by_matbench(here, small):
    y = small["y_true"].to_numpy()
    rows = small.assign(std=0.5)
    rows.loc[3, "std"] = 0.0  # members that agree
    members = {"seed_0": y + 0.5, "seed_1": y - 1.5, "ensemble": y + np.where(rows["fold"] == 2, 2.0, -1.0)}
    notes, flags = ["Labels are made.", PRETRAINED_ON], ["pretraining overlap"]
    official_run(here / "mine", SMALL, rows, members, notes=notes, flags=flags)
    done = submit("mine", "--authors", "A. Author", "--algorithm", "My CHGNet")
    assert done.exit_code == 0, done.output
    folder = here / "matbench_v0.1_My_CHGNet"
    assert sorted(one.name for one in folder.iterdir()) == ["info.json", "mine.yaml", "results.json.gz", "run.py"]

    plain = here / "results.json"
    plain.write_bytes(gzip.decompress((folder / "results.json.gz").read_bytes()))
    with quiet_matbench():
        from matbench.bench import MatbenchBenchmark

        read = MatbenchBenchmark.from_file(str(plain))
        assert read.is_valid
        assert read.is_recorded
    assert list(read.tasks_map) == [SMALL]
    task = read.tasks_map[SMALL]
    assert task.scores.mae.mean == pytest.approx((4 * 1.0 + 2.0) / 5)  # of the ensemble, fold by fold
    assert task.results.fold_2.scores.mae == pytest.approx(2.0)
    assert "mae  1.2000 +- 0.4000 over folds" in done.output
    first = rows.iloc[0]
    assert task.results.fold_0.data[first["id"]] == pytest.approx(first["y_true"] - 1.0, abs=1e-12)
    uncertainty = task.results.fold_0.uncertainty
    assert uncertainty[first["id"]].std == 0.5
    assert uncertainty[first["id"]].ci_upper - (first["y_true"] - 1) == pytest.approx(1.96 * 0.5, abs=1e-3)
    agreed = uncertainty[rows["id"][3]]
    assert (agreed.std, agreed.ci_lower) == pytest.approx((0.0, rows["y_true"][3] - 1.0), abs=1e-12)

    params = task.results.fold_3.parameters
    assert params.config == {"lr": 0.001, "seed": 0}
    assert (params.seeds, params.member) == ([0, 1], "ensemble")
    assert (params.git_commit, params.data_sha256) == ("abc", "0123456789abcdef")

    info = json.loads((folder / "info.json").read_text())
    assert sorted(info) == ["algorithm", "algorithm_long", "authors", "bibtex_refs", "notes", "requirements"]
    assert (info["authors"], info["algorithm"]) == ("A. Author", "My CHGNet")
    for told in (PRETRAINED_ON, "Flags: pretraining overlap.", "no search", "over the 2 members of the ensemble"):
        assert told in info["notes"]
        assert told in done.output
    assert "deng2023chgnet" in info["bibtex_refs"][0]
    assert info["requirements"] == {"python": ["torch==2.13.0", "chgnet==0.4.2"]}

    script = (folder / "run.py").read_text()
    compile(script, "run.py", "exec")
    assert "'--task', 'matbench_jdft2d', '--folds', '0,1,2,3,4'" in script
    assert "'--seeds', '2', '--tta', 'auto'" in script
    assert load_space(str(folder / "mine.yaml")).parameters == {"lr": 0.001, "epochs": 2}

    # one seed, and the reference, can be submitted too
    seed = submit("mine/seed_1", "--out", here / "one")
    assert seed.exit_code == 0, seed.output
    assert "info.json names no authors, give --authors" in seed.output
    assert read_record(here / "one" / "results.json.gz").scores[SMALL].mae.mean == pytest.approx(1.5)
    assert json.loads((here / "one" / "info.json").read_text())["algorithm"] == "mine/seed_1"


def test_run_py_repeats_the_runs_of_a_queue_and_their_average(here, small):
    y = small["y_true"].to_numpy()
    for name, error in (("ema", 0.5), ("swa", -0.7)):
        official_run(here / "daily" / name, SMALL, small, {"seed_0": y + error}, sweep=f"daily/{name}")
    done = CliRunner().invoke(average, ["daily/ema", "daily/swa", "--name", "both"])
    assert done.exit_code == 0, done.output
    done = submit("both", "--out", here / "out")
    assert done.exit_code == 0, done.output
    assert read_record(here / "out" / "results.json.gz").scores[SMALL].mae.mean == pytest.approx(0.1)
    script = (here / "out" / "run.py").read_text()
    assert "'--name', 'daily_ema', '--space', 'daily_ema.yaml'" in script
    assert "['tune/ensemble.py', 'daily_ema/seed_0', 'daily_swa/seed_0', '--name', 'both'" in script


def test_run_py_repeats_every_batch_of_a_sweep_that_was_extended(here, small):
    narrow = OPTIONS["space"] | {"num_samples": 9, "parameters": {"lr": {"choice": [0.001, 0.002]}, "epochs": 2}}
    wide = narrow | {"parameters": {"lr": {"loguniform": [0.0001, 0.01]}, "epochs": 2}}
    batches = [{"num_samples": n, "space": space} for n, space in ((3, narrow), (5, wide), (0, wide))]
    folder = official_run(here / "mine", SMALL, small, {"seed_0": small["y_true"].to_numpy() + 0.5})
    results = json.loads((folder / "results.json").read_text())
    results["options"] |= {"space": wide, "num_samples": 8, "batches": batches}
    (folder / "results.json").write_text(json.dumps(results))
    done = submit("mine", "--out", here / "out")
    assert done.exit_code == 0, done.output
    script = (here / "out" / "run.py").read_text()
    first, second, third = (script.index(part) for part in (
        "'--num-samples', '3'", "'--extend', 'mine', '--num-samples', '5', '--space', 'mine-1.yaml'", "'--only-failed'"
    ))  # fmt: skip
    assert first < second < third
    spaces = [load_space(str(here / "out" / name)).parameters["lr"] for name in ("mine.yaml", "mine-1.yaml")]
    assert spaces == [narrow["parameters"]["lr"], wide["parameters"]["lr"]]


def test_a_model_of_ones_own_goes_along_unless_it_changed(here, small):
    file = here.parent / "mine.py"
    file.write_text("MODEL = 1\n")
    model = {"name": "mine.py", "file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    official_run(here / "mine", SMALL, small, {"seed_0": small["y_true"].to_numpy() + 0.5}, model=model)
    assert submit("mine", "--out", here / "out").exit_code == 0
    assert (here / "out" / "mine.py").read_text() == "MODEL = 1\n"
    file.write_text("MODEL = 2\n")
    done = submit("mine", "--out", here / "again")
    assert (done.exit_code, (here / "again").exists()) == (1, False)
    assert "mine.py, the model of mine, is gone or was changed since: put it back" in done.output


def test_a_record_that_was_changed_is_not_read(here, small):
    official_run(here / "mine", SMALL, small, {"seed_0": small["y_true"].to_numpy() + 0.5})
    assert submit("mine", "--out", here / "out").exit_code == 0
    file = here / "out" / "results.json.gz"
    assert read_record(file).is_valid
    text = gzip.decompress(file.read_bytes())
    file.write_bytes(text.replace(b'"mae": 0.', b'"mae": 0.1', 1))  # and not compressed, as matbench 0.6 leaves it
    with pytest.raises(ValueError, match="Hash of dictionary does not match"):
        read_record(file)


def test_probabilities_are_recorded_and_what_matbench_makes_of_them_is_said(here):
    rows = official_rows(SMALL_CLASSES).assign(std=0.1)
    noise = np.random.default_rng(1).uniform(-0.6, 0.6, size=len(rows))
    predicted = np.clip(0.25 + 0.5 * rows["y_true"] + noise, 0, 1).to_numpy()
    official_run(here / "classes", SMALL_CLASSES, rows, {"seed_0": predicted})
    done = submit("classes", "--authors", "A. Author", "--out", here / "out")
    assert done.exit_code == 0, done.output
    task = read_record(here / "out" / "results.json.gz").tasks_map[SMALL_CLASSES]
    assert task.results.fold_0.data[rows["id"][0]] == pytest.approx(predicted[0])
    value = METRICS["rocauc"].value
    by_fold = [
        [value(part["y_true"].to_numpy(), p) for p in (predicted[part.index], predicted[part.index] > 0.5)]
        for _, part in rows.groupby("fold")
    ]
    own, rounded = np.mean(by_fold, axis=0)
    assert own - rounded > 0.05
    assert task.scores.rocauc.mean == pytest.approx(rounded)
    notes = json.loads((here / "out" / "info.json").read_text())["notes"]
    assert f"ROC-AUC of the recorded probabilities: {own:.4f}. That in the record, {rounded:.4f}, is of labels" in notes


def test_what_is_incomplete_is_refused_with_what_is_missing(here, small):
    def refused(name: str, rows: pd.DataFrame, **results) -> str:
        official_run(here / name, SMALL, rows, {"seed_0": rows["y_true"].to_numpy()}, **results)
        done = submit(name, "--out", here / "out")
        assert done.exit_code == 1
        assert not (here / "out").exists()
        return done.output

    lacking = small[small["fold"] == 1]["id"].iloc[[4, 9]].tolist()
    ids = refused("ids", small[~small["id"].isin(lacking)])
    assert "ids is not a complete matbench_jdft2d" in ids
    assert f"fold 1: 2 of 127 ids, {lacking[0]}, {lacking[1]}\n" in ids
    with (here / "ids" / MISSING).open() as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [("1", one) for one in lacking]
    assert "All 2 missing ids: ray_results/ids/missing_ids.csv" in ids

    folds = refused("folds", small[small["fold"] < 3])
    assert "fold 3: all 127 ids\n  fold 4: all 127 ids\n" in folds

    data = {"description": "subset, n=60 of 636", "sha256": "0123456789abcdef"}
    subset = refused("subset", small.groupby("fold").head(12), data=data)
    assert "(subset, n=60 of 636). Matbench takes whole tasks only" in subset
    assert "fold 0: 116 of 128 ids" in subset

    moved = small.assign(fold=np.where(small["id"] == small["id"][0], 1, small["fold"]))
    assert f"fold 0: 1 of 128 ids, {small['id'][0]}\n" in refused("moved", moved)


def test_other_tasks_and_other_labels_are_refused(here, small):
    rows = small.assign(y_true=small["y_true"] * 1.01)
    official_run(here / "labels", SMALL, rows, {"seed_0": rows["y_true"].to_numpy()})
    done = submit("labels")
    assert done.exit_code == 1
    assert "the labels are not Matbench's, their mean absolute deviation is" in done.output

    write_run(here / "own", rows, {"seed_0": rows["y_true"].to_numpy()})
    done = submit("own")
    assert done.exit_code == 1
    assert "own is of 'made', which is no task of Matbench" in done.output
    assert "Traceback" not in done.output
    assert submit("own", "--authors", " ").exit_code == 1


@pytest.mark.skipif(not (PREDICTIONS.exists() and LABELS.exists()), reason="the peers' predictions are not here")
def test_a_peers_predictions_of_the_whole_of_mp_e_form_get_their_published_score(here):
    labels = pd.read_parquet(LABELS).set_index("mbid")["e_form"]
    rows = official_rows("matbench_mp_e_form", labels)
    predicted = pd.read_parquet(PREDICTIONS).set_index("mbid").loc[rows["id"], "coNGN"].to_numpy()
    official_run(here / "whole", "matbench_mp_e_form", rows, {"seed_0": predicted.astype(float)})
    assert len(load_sweep("whole").members["seed_0"].test) == 132_752
    done = submit("whole", "--algorithm", "coNGN", "--out", here / "out")
    assert done.exit_code == 0, done.output
    assert "mae  0.0178 +- 0.0004 over folds" in done.output
