"""Runs averaged into a run: the numbers by hand, what is left on disk, who can read it, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from finished_runs import make_rows, make_run, mean_error, predict, write_run
from typer.testing import CliRunner

from models.fitted import ModelFileError, load_model
from tune.analysis.average import average, average_markdown, average_results, tables
from tune.analysis.comparison import compare
from tune.analysis.ranking import rankings
from tune.ensemble import app
from tune.errors import RunError
from tune.runs import SweepRun, chose_by_validation, contribution, load_sweep


def two_runs(tmp_path: Path, rows: pd.DataFrame, val_rows: pd.DataFrame) -> list[SweepRun]:
    """A run of one seed, and one of two seeds and their ensemble, which errs half as much on validation."""
    y, y_val = rows["y_true"].to_numpy(), val_rows["y_true"].to_numpy()
    one = make_run(tmp_path, "one", rows, {"seed_0": y + 0.3}, val_rows=val_rows, val_members={"seed_0": y_val - 0.2})
    several = {"seed_0": y + 0.1, "seed_1": y - 0.3, "ensemble": y - 0.1}
    on_val = {"seed_0": y_val + 5, "seed_1": y_val + 5, "ensemble": y_val + 0.1 * (1 + (val_rows["fold"] == 1))}
    return [one, make_run(tmp_path, "two", rows, several, val_rows=val_rows, val_members=on_val)]


@pytest.fixture
def rows() -> pd.DataFrame:
    return make_rows(n_folds=2, n=20)


@pytest.fixture
def val_rows() -> pd.DataFrame:
    return make_rows(n_folds=2, n=6, prefix="v", seed=1)


def test_equal_weights_by_hand(tmp_path, rows, val_rows):
    runs = two_runs(tmp_path, rows, val_rows)
    found = average(runs)
    assert found.names == ["one/seed_0", "two/ensemble"]
    assert found.weights[0].tolist() == found.weights[1].tolist() == [0.5, 0.5]
    table = tables(found.test, runs[0])[1].set_index("id")
    y_true = rows[rows["fold"] == 1].set_index("id")["y_true"]
    assert sorted(table.index) == sorted(y_true.index)
    assert table["y_pred"].to_numpy() == pytest.approx(y_true[table.index].to_numpy() + 0.1)  # of +0.3 and -0.1
    assert table["abs_error"].to_numpy() == pytest.approx(0.1)
    assert table["std"].to_numpy() == pytest.approx(0.4 / 2**0.5)  # two members 0.4 apart, ddof 1
    assert tables(found.validation, runs[0])[0]["abs_error"].to_numpy() == pytest.approx(0.05)  # of -0.2 and +0.1


def test_weights_by_validation_by_hand(tmp_path, rows, val_rows):
    runs = two_runs(tmp_path, rows, val_rows)
    found = average(runs, "validation")
    # fold 0: errors 0.2 and 0.1, weights 25 : 100; fold 1: 0.2 and 0.2
    assert found.weights[0] == pytest.approx([0.2, 0.8])
    assert found.weights[1] == pytest.approx([0.5, 0.5])
    by_fold = tables(found.test, runs[0])
    assert by_fold[0]["y_pred"].to_numpy() == pytest.approx(by_fold[0]["y_true"] + 0.2 * 0.3 - 0.8 * 0.1)
    assert by_fold[1]["y_pred"].to_numpy() == pytest.approx(by_fold[1]["y_true"] + 0.1)
    # the spread is that of the members, whatever their weights
    assert by_fold[0]["std"].to_numpy() == pytest.approx(0.4 / 2**0.5)


def test_a_run_gives_its_ensemble_else_its_only_seed_else_the_reference(tmp_path, rows, val_rows):
    one, two = two_runs(tmp_path, rows, val_rows)
    untrained = make_run(tmp_path, "none", rows, {})
    assert [contribution(run).name for run in (one, two, untrained)] == ["seed_0", "ensemble", "reference"]
    assert contribution(load_sweep(f"{two.address}/seed_1")).name == "seed_1"
    found = average([load_sweep(f"{two.address}/seed_0"), load_sweep(f"{two.address}/seed_1")])
    assert found.names == ["two/seed_0", "two/seed_1"]


def test_two_experiments_of_a_queue_are_two_runs_and_members_of_one_sweep_cost_it_once(tmp_path, rows, val_rows):
    runs = [make_run(tmp_path, f"daily/{name}", rows, predict(rows, 0.1)) for name in ("ema", "swa")]
    for run in runs:
        run.results["sweep"] = f"daily/{run.name}"
    assert average(runs).names == ["daily/ema/seed_0", "daily/swa/seed_0"]
    two = two_runs(tmp_path, rows, val_rows)[1]
    members = [load_sweep(f"{two.address}/seed_{number}") for number in (0, 1)]
    for together, cpu_hours in ((members, 0.5), ([*members, runs[0]], 1.0)):
        results = average_results("mean", together, average(together), "equal")
        assert (results["cost"]["cpu_hours"], results["cost"]["trainings"]) == (cpu_hours, 2 * cpu_hours)


def test_weights_that_flatter_a_run_which_chose_its_epoch_by_validation_say_so(tmp_path, rows, val_rows):
    def notes(*keep: str) -> list[str]:
        runs = [
            make_run(tmp_path, name, rows, predict(rows, 0.1), val_rows=val_rows, val_members=predict(val_rows, 0.1),
                 configs={fold: {"keep": kept} for fold in (0, 1)})
            for name, kept in zip("ab", keep, strict=True)
        ]  # fmt: skip
        return average_results("mean", runs, average(runs, "validation"), "validation")["notes"]

    assert notes("best", "last")[-1].startswith("The epoch or the config of a/seed_0 was chosen on the validation part")
    assert notes("best", "best") == notes("last", "last") == ["Labels are made."]


def test_a_mean_of_runs_that_chose_by_validation_is_flattered_as_they_are(tmp_path, rows, val_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kept in (("one", "best"), ("two", "best"), ("last", "last")):
        write_run(
            tmp_path / "ray_results" / name, rows, predict(rows, 0.1, seeds=2, jitter=0.01), val_rows=val_rows,
            val_members=predict(val_rows, 0.1, seeds=2, jitter=0.01),
            configs={fold: {"keep": kept} for fold in (0, 1)},
        )  # fmt: skip
    members = ["one/seed_0", "two/seed_1"]
    assert CliRunner().invoke(app, [*members, "--name", "both"]).exit_code == 0
    both, last = load_sweep("both"), load_sweep("last")
    assert chose_by_validation(both)
    found = compare(last, both, on="validation")
    assert found.verdict == "undecided"
    assert "validation flatters the first" in found.sentence
    assert "validation flatters" not in compare(load_sweep("one"), both, on="validation").sentence


def test_what_stands_beside_a_choice_by_validation_is_not_flattered_by_it(tmp_path, rows, val_rows):
    run = make_run(tmp_path, "one", rows, predict(rows, 0.1), val_rows=val_rows, val_members=predict(val_rows, 0.1))
    for option in ({"searched": ["lr"]}, {"tta": "auto"}):
        run.results["options"] = option
        assert chose_by_validation(run)
        beside = load_sweep(f"{run.address}/reference")
        beside.results["options"] = option
        assert not chose_by_validation(beside)
    run.results["options"] = {"tta": "8"}
    assert not chose_by_validation(run)


def test_a_member_in_another_order_is_put_in_order(tmp_path, rows):
    shuffled = rows.sample(frac=1, random_state=0)
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1))
    b = make_run(tmp_path, "b", shuffled, {"seed_0": shuffled["y_true"].to_numpy()})
    table = pd.concat(tables(average([a, b]).test, a).values()).set_index("id")
    errors = a.members["seed_0"].test.set_index("id")["abs_error"]
    assert table["abs_error"].to_numpy() == pytest.approx(errors[table.index].to_numpy() / 2)


def test_a_classification_averages_probabilities_with_equal_weights_only(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    rows["y_true"] = (rows["y_true"] > 0).astype(float)
    task = {"kind": "classification", "unit": ""}
    runs = [
        make_run(tmp_path, name, rows, {"seed_0": np.full(len(rows), p)}, task=task)
        for name, p in (("a", 0.2), ("b", 0.6))
    ]
    assert tables(average(runs).test, runs[0])[0]["y_pred"].to_numpy() == pytest.approx(0.4)
    with pytest.raises(RunError, match="a classification has not: take --weights equal"):
        average(runs, "validation")


def test_what_does_not_go_together_is_refused(tmp_path, rows, val_rows):
    one, two = two_runs(tmp_path, rows, val_rows)

    def refused(*runs: SweepRun, weights: str = "equal") -> str:
        with pytest.raises(RunError) as told:
            average(list(runs), weights)
        return str(told.value)

    assert "at least two" in refused(one)
    assert refused(one, two, one) == "one/seed_0 is given more than once"
    assert "'made' and 'other'" in refused(one, make_run(tmp_path, "t", rows, predict(rows, 1), task={"name": "other"}))
    assert "rows differ" in refused(one, make_run(tmp_path, "h", rows, predict(rows, 1), sha256="ffff"))
    first = rows[rows["fold"] == 0]
    assert "folds [0, 1] and [0]" in refused(one, make_run(tmp_path, "f", first, predict(first, 1)))
    fewer = rows[1:]
    told = refused(one, make_run(tmp_path, "i", fewer, predict(fewer, 1)))
    assert "same ids in their test parts: one has 40, 39 of them are in all" in told
    unvalidated = make_run(tmp_path, "v", rows, predict(rows, 1))
    assert "seed_0/val_fold_0.csv" in refused(one, unvalidated, weights="validation")
    other_split = val_rows.assign(fold=1 - val_rows["fold"])
    split = make_run(tmp_path, "s", rows, predict(rows, 1), val_rows=other_split, val_members=predict(other_split, 1))
    assert "no id in a common fold" in refused(one, split, weights="validation")
    some = val_rows[2:]
    partly = make_run(tmp_path, "p", rows, predict(rows, 1), val_rows=some, val_members=predict(some, 1))
    assert "validation parts: one has 12, 10 of them are in all; split the folds alike" in refused(
        one, partly, weights="validation"
    )


def test_folds_split_otherwise_are_averaged_without_a_validation_part(tmp_path, rows, val_rows):
    one, _ = two_runs(tmp_path, rows, val_rows)
    old = make_run(tmp_path, "old", rows, predict(rows, 0.1))
    found = average([one, old])
    assert found.validation is None
    assert "old has no predictions of its validation parts" in found.why_no_validation


def test_the_command_leaves_a_run_that_others_can_read(tmp_path, rows, val_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = two_runs(tmp_path, rows, val_rows)
    done = CliRunner().invoke(app, ["one", "two", "--name", "both", "--weights", "validation"])
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "ray_results" / "both"
    text = (folder / "RESULTS.md").read_text()
    assert text in done.stdout
    # errors on validation and test; of the mean: 0.04 and 0 on validation, 0.02 and 0.1 on test
    assert "| one/seed_0 | 0.2000 | 0.3000 |" in text
    assert "| two/ensemble | 0.1500 | 0.1000 |" in text
    assert "| **mean of 2 runs** | 0.0200 | 0.0600 |" in text
    assert "| two/ensemble | 0.800 | 0.500 |" in text
    assert "1 / MAE^2" in text
    assert "null" not in (folder / "results.json").read_text()
    with pytest.raises(ModelFileError, match="an average of runs, of which there is no model"):
        load_model(folder, fold=0)

    both = load_sweep(str(folder))
    assert both.configs[0] == pytest.approx({"weight of one/seed_0": 0.2, "weight of two/ensemble": 0.8})
    expected = average(runs, "validation")
    read = both.members["ensemble"].test.set_index("id").loc[expected.test.rows["id"], "y_pred"]
    assert (read.to_numpy() == expected.test.mean).all()
    results = json.loads((folder / "results.json").read_text())
    assert results["ensemble"]["mean"]["mae"] == pytest.approx(mean_error(both, "ensemble"))
    found = compare(runs[0], both)
    assert found.difference.value == pytest.approx(0.3 - 0.06)
    assert compare(runs[0], both, on="validation").difference.value == pytest.approx(0.2 - 0.02)

    (told,) = [one for one in compare(runs[0], both, on="validation").warnings if "weights" in one]
    assert told.startswith("The weights of both were chosen by these validation parts")
    assert not [one for one in compare(runs[0], both).warnings if "weights" in one]

    peer = pd.DataFrame({"peer": rows["y_true"].to_numpy()}, index=rows["id"])
    (ranking,) = rankings([both], {"peers.parquet": peer})
    scores = {place.entry.name: place.scores["mae"] for place in ranking.places}
    assert (scores["peer"], scores["both"]) == pytest.approx((0.0, 0.06))


def test_an_average_can_be_averaged_again_under_another_name(tmp_path, rows, val_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_runs(tmp_path, rows, val_rows)
    write_run(tmp_path / "ray_results" / "third", rows, {"seed_0": rows["y_true"].to_numpy() + 0.7})

    def ensemble(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    assert ensemble("one", "two", "--name", "both").exit_code == 0
    for name, file in (("begun", "sweep.json"), ("queued", "queue.json")):
        (tmp_path / "ray_results" / name).mkdir()
        (tmp_path / "ray_results" / name / file).touch()
    for name, reason in (
        ("both", "'both' in ray_results is an average of sweeps: choose another --name"),
        ("begun", "sweep 'begun' exists in ray_results: choose another --name, or go on with it by"),
        ("queued", "'queued' in ray_results is a queue of experiments: choose another --name"),
        ("far/away", "--name 'far/away': expected the name of a folder in ray_results"),
        (" spaced", "--name ' spaced': expected the name of a folder in ray_results"),
    ):
        refused = ensemble("both", "third", "--name", name)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"SweepError: {reason}")
    done = ensemble("both", "third", "--name", "all")
    assert done.exit_code == 0, done.stderr
    everything = load_sweep(str(tmp_path / "ray_results" / "all"))
    assert mean_error(everything, "ensemble") == pytest.approx(0.4)  # of +0.1 and +0.7
    assert "No predictions of the validation parts" in (tmp_path / "ray_results" / "all" / "RESULTS.md").read_text()


def test_a_mean_is_trusted_as_far_as_its_least_trusted_member(tmp_path, rows):
    trust = np.linspace(0.6, 1, len(rows))
    doubted = trust.copy()
    doubted[[0, 5]] = 0.01
    runs = [
        make_run(tmp_path, name, rows.assign(trust=of_run, trusted=of_run >= 0.5), predict(rows, 0.1))
        for name, of_run in (("a", trust), ("b", doubted))
    ]
    mean = average(runs)
    table = pd.concat(tables(mean.test, runs[0]).values()).set_index("id").loc[rows["id"]]
    np.testing.assert_array_equal(table["trust"].to_numpy(), np.minimum(trust, doubted))
    assert table.index[~table["trusted"]].tolist() == [rows["id"][0], rows["id"][5]]
    results = average_results("mean", runs, mean, "equal")
    assert results["ensemble"]["trust"]["n_untrusted"] == 2
    assert f"2 of {len(rows)} test predictions are not trusted" in average_markdown(results)
    older = make_run(tmp_path, "older", rows, predict(rows, 0.2))
    assert "trust" not in tables(average([*runs, older]).test, runs[0])[0]
