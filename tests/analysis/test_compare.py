"""Two finished sweeps side by side: what is called better, what is called noise, and what is refused."""

import re
import subprocess
import sys

import matplotlib.colors
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from finished_runs import REPOSITORY, make_rows, make_run, mean_error, predict, write_run
from marks import whole_only
from scipy.stats import t, ttest_ind
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from data.metrics import METRICS
from data.task_words import task_words
from models.bootstrap import weighted_auc
from tune.analysis.comparison import compare, differences
from tune.analysis.paired import PairedPredictions, difference, fold_scores
from tune.analysis.verdict import seed_noise, verdict_on
from tune.compare import app
from tune.errors import RunError
from tune.pages.comparison_page import COLOURS, comparison_markdown, config_differences, curves
from tune.runs import compared_members, finished_runs, load_sweep

MAE, ROCAUC = METRICS["mae"], METRICS["rocauc"]


def in_memory(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows as they are once they have been read."""
    return rows.rename(columns={"composition": "group"})


# --- verdicts ---


def test_the_same_predictions_are_inert(tmp_path):
    rows = make_rows()
    predicted = predict(rows, 0.1, seeds=2, jitter=0.01)
    a, b = make_run(tmp_path, "a", rows, predicted), make_run(tmp_path, "b", rows, predicted)
    assert compare(a, b).verdict == "identical (inert)"
    # one crystal in the last digit, and it is not the same any more
    nearly = {name: y.copy() for name, y in predicted.items()}
    nearly["seed_1"][7] = np.nextafter(nearly["seed_1"][7], np.inf)
    assert compare(a, make_run(tmp_path, "c", rows, nearly)).verdict == "within noise"


def test_a_lower_error_is_better_and_the_other_way_round_worse(tmp_path):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.10, seeds=3, jitter=0.001))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.08, seeds=3, jitter=0.001))
    found = compare(a, b)
    assert found.verdict == "better"
    of_a, of_b = (np.mean([mean_error(run, f"seed_{number}") for number in range(3)]) for run in (a, b))
    assert found.difference.value == pytest.approx(of_a - of_b)
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert found.noise.band < found.difference.value
    back = compare(b, a)
    assert back.verdict == "worse"
    assert back.difference.value == pytest.approx(-found.difference.value)


def test_seeds_that_differ_by_more_than_the_runs_make_it_noise(tmp_path):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.10, seeds=3, jitter=0.03))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.08, seeds=3, jitter=0.03))
    found = compare(a, b)
    assert found.difference.low > 0  # the crystals alone would have called it better
    assert found.noise.band > found.difference.value
    assert (found.verdict, "seeds alone" in found.sentence) == ("within noise", True)


def test_an_interval_that_holds_0_is_noise_however_quiet_the_seeds(tmp_path):
    rows = make_rows(n=10)
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1, seed=1, seeds=2, jitter=1e-9))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.1, seed=2, seeds=2, jitter=1e-9))
    found = compare(a, b)
    assert found.noise.band < abs(found.difference.value)
    assert (found.verdict, "holds 0" in found.sentence) == ("within noise", True)


def test_crystals_and_seeds_that_make_half_of_a_difference_each_make_it_noise_together(tmp_path):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.10, seeds=3, jitter=0.003))
    shifted = {name: y + 0.04 for name, y in predict(rows, 0.08, seeds=3, jitter=0.003).items()}
    b = make_run(tmp_path, "b", rows, shifted)
    found = compare(a, b)
    assert found.difference.low > 0
    assert found.noise.band < found.difference.value
    low, high = found.interval
    assert low < 0 < high
    assert found.verdict == "within noise"
    assert f"{low:.3g} to {high:.3g} over crystals and seeds together" in found.sentence
    assert f"{low:+.5f} to {high:+.5f}" in comparison_markdown(found)


def test_one_seed_each_is_undecided_until_a_noise_run_tells(tmp_path):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.10))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.08))
    found = compare(a, b)
    assert found.noise is None
    assert found.verdict == "undecided"
    assert "--seeds 3" in found.sentence
    assert "--space seed_noise" in found.sentence
    quiet = make_run(tmp_path, "quiet", rows, predict(rows, 0.1, seeds=4, jitter=1e-3))
    assert compare(a, b, quiet).verdict == "better"
    loud = compare(a, b, make_run(tmp_path, "loud", rows, predict(rows, 0.1, seeds=4, jitter=3e-2)))
    assert loud.verdict == "within noise"
    assert not [one for one in loud.warnings if "--noise" in one]
    deeper = {fold: {"lr": 0.001, "freeze_depth": "full"} for fold in range(5)}
    of_other = make_run(tmp_path, "other", rows, predict(rows, 0.1, seeds=4, jitter=1e-3), configs=deeper)
    (told,) = [one for one in compare(a, b, of_other).warnings if "--noise" in one]
    assert told.startswith("--noise other is of chgnet with freeze depth full; a and b trained otherwise")


def test_too_few_compositions_are_undecided(tmp_path):
    rows = make_rows(n_folds=1, n=6)
    a = make_run(tmp_path, "a", rows, predict(rows, 0.2, seeds=2, jitter=1e-6))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.1, seeds=2, jitter=1e-6))
    found = compare(a, b)
    assert found.difference.low > 0
    assert (found.verdict, "6 compositions" in found.sentence) == ("undecided", True)


def test_the_untrained_reference_has_no_seed_noise(tmp_path):
    rows = make_rows()
    run = make_run(tmp_path, "a", rows, predict(rows, 0.1, seeds=3, jitter=1e-3))
    found = compare(load_sweep(f"{run.address}/reference"), run)
    of_seeds = [mean_error(run, f"seed_{number}") for number in range(3)]
    assert found.noise.band == pytest.approx(t.ppf(0.975, 2) * np.std(of_seeds, ddof=1) / 3**0.5)
    assert found.verdict == "better"


def test_an_ensemble_is_judged_against_its_own_members_by_crystals_alone(tmp_path):
    """Its seeds are theirs; the mean of several predictions errs on no crystal by more than they do on average."""
    rows = make_rows()
    random = np.random.default_rng(5)
    members = {f"seed_{n}": rows["y_true"].to_numpy() + random.normal(0, 0.1 + 0.03 * n, len(rows)) for n in range(3)}
    members["ensemble"] = np.mean([*members.values()], axis=0)
    folder = write_run(tmp_path / "one", rows, members)
    whole, together = load_sweep(str(folder)), load_sweep(f"{folder}/ensemble")
    found = compare(whole, together)
    assert found.verdict == "better"
    assert found.interval == (found.difference.low, found.difference.high)
    assert found.interval[0] > 0
    assert not [one for one in found.warnings if "of one training" in one]
    assert compare(together, whole).verdict == "worse"
    # One of the members was drawn by chance, and says little of others.
    assert compare(load_sweep(f"{folder}/seed_0"), together).noise is None


def test_what_draws_nothing_at_random_needs_no_seeds(tmp_path):
    """As two Gaussian processes, each fitted once: the crystals alone tell."""
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.10), by_chance=False)
    b = make_run(tmp_path, "b", rows, predict(rows, 0.08), by_chance=False)
    assert (compare(a, b).verdict, compare(b, a).verdict) == ("better", "worse")
    assert compare(a, b).noise.band == 0
    c = make_run(tmp_path, "c", rows, predict(rows, 0.08, seeds=3, jitter=1e-3))
    of_seeds = [mean_error(c, f"seed_{number}") for number in range(3)]
    found = compare(a, c)
    assert found.noise.band == pytest.approx(t.ppf(0.975, 2) * np.std(of_seeds, ddof=1) / 3**0.5)
    assert found.verdict == "better"
    assert compare(a, make_run(tmp_path, "d", rows, predict(rows, 0.08))).verdict == "undecided"


# --- statistics ---


@pytest.mark.parametrize("of_seeds", [0.05, *whole_only(0.0, 0.2)])
def test_equally_good_runs_get_a_verdict_5_times_in_100_whatever_makes_them_differ(of_seeds):
    """Errors differ from crystal to crystal, and with `of_seeds` all errors of a seed are larger or smaller."""
    called = []
    for repetition in range(200):
        rng = np.random.default_rng(repetition)
        rows = make_rows(n=20, seed=repetition)
        sizes = 1 + of_seeds * rng.normal(size=(2, 4, 1))
        predicted = rows["y_true"].to_numpy() + sizes * rng.normal(size=(2, 1, 100))
        paired = PairedPredictions(in_memory(rows), *predicted)
        scores = [fold_scores(rows, predicted, MAE).mean(axis=1) for predicted in (paired.a, paired.b)]
        found = difference(paired, MAE, n_resamples=500, seed=repetition)
        called.append(verdict_on(paired, MAE, found, seed_noise(*scores), task_words({}))[0] in ("better", "worse"))
    print(f"called better or worse in {np.mean(called):.1%}")
    assert 0.01 <= np.mean(called) <= 0.085


def test_the_noise_of_several_seeds_is_that_of_welch():
    a, b = np.array([0.10, 0.12, 0.11]), np.array([0.20, 0.26, 0.21, 0.19])
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert seed_noise(a, b).band == pytest.approx((high - low) / 2)


def test_the_noise_of_another_run_by_hand():
    other = np.array([1.0, 2.0, 3.0])  # s = 1, df = 2
    band = seed_noise(np.array([5.0]), np.array([5.0, 6.0]), other).band
    assert band == pytest.approx(4.302653 * (1 + 1 / 2) ** 0.5)
    # one side with several seeds stands for both
    assert seed_noise(np.array([5.0]), np.array([5.0, 7.0])).band == pytest.approx(
        12.7062 * 2**0.5 * 1.5**0.5, rel=1e-5
    )
    assert seed_noise(np.array([5.0]), np.array([5.0])) is None


def of_errors(rows: pd.DataFrame, error_a: np.ndarray, error_b: np.ndarray) -> PairedPredictions:
    y_true = rows["y_true"].to_numpy()
    return PairedPredictions(in_memory(rows), (y_true + error_a)[None], (y_true + error_b)[None])


def test_polymorphs_that_err_alike_widen_the_interval_even_across_folds():
    together = make_rows(of_each=5)  # the five of a composition are in five folds
    apart = make_rows(of_each=1)
    by_composition = np.random.default_rng(1).normal(0.1, 0.05, size=40).repeat(5)
    width = {}
    for name, rows in (("together", together), ("apart", apart)):
        found = difference(of_errors(rows, by_composition + 1, np.ones(200)), MAE)
        width[name] = found.high - found.low
        assert found.value == pytest.approx(by_composition.mean())
    # five copies of each are worth one: the interval is wider by the root of five
    assert width["together"] / width["apart"] == pytest.approx(5**0.5, rel=0.05)


def test_rows_without_a_formula_are_not_taken_for_polymorphs():
    rows = make_rows().assign(composition="unknown")
    assert difference(of_errors(rows, np.ones(200), np.zeros(200)), MAE, 100).n_groups == 200


def test_the_interval_is_that_of_the_mean_over_folds_and_repeatable():
    # means of 1 and 0 in folds of 40 and of 10: 0.5 over folds, 0.8 over crystals
    rows = pd.concat([make_rows(1, 40), make_rows(1, 10, prefix="d").assign(fold=1)], ignore_index=True)
    errors = np.concatenate([np.random.default_rng(0).normal(1, 0.1, 40), np.zeros(10)])
    found = difference(of_errors(rows, errors, np.zeros(50)), MAE)
    assert found.value == pytest.approx(errors[:40].mean() / 2)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * errors[:40].std() / 40**0.5 / 2, rel=0.1)
    assert found == difference(of_errors(rows, errors, np.zeros(50)), MAE)
    assert found != difference(of_errors(rows, errors, np.zeros(50)), MAE, seed=1)


def test_without_a_difference_the_interval_covers_0_about_95_times_in_100():
    covered = []
    for repetition in range(200):
        rng = np.random.default_rng(repetition)
        rows = make_rows(n=30, of_each=2, seed=repetition)
        of_composition = rng.normal(size=(2, 75)).repeat(2, axis=1)
        errors = np.abs(rng.standard_t(5, size=(2, 150)) + of_composition)  # heavy tails, and polymorphs err alike
        found = difference(of_errors(rows, *errors), MAE, n_resamples=1000, seed=repetition)
        covered.append(found.low <= 0 <= found.high)
    print(f"covered in {np.mean(covered):.1%}")
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_area_under_weighted_rows_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.random(60) < 0.4, rng.integers(0, 20, 60) / 20  # with ties
    weights = rng.integers(0, 4, size=(5, 60))
    expected = [roc_auc_score(y_true, y_pred, sample_weight=row) for row in weights]
    assert weighted_auc(y_true, y_pred, weights.astype(float)) == pytest.approx(expected)
    assert weighted_auc(np.ones(60, dtype=bool), y_pred, weights) == pytest.approx(0.5)


def test_a_classification_is_judged_by_the_area(tmp_path):
    rows = make_rows(n=80)
    rows["y_true"] = (rows["y_true"] > 0).astype(float)
    rng = np.random.default_rng(3)
    noise = rng.normal(size=len(rows))

    def probabilities(scale: float) -> dict:
        return {f"seed_{n}": 1 / (1 + np.exp(-(2 * rows["y_true"] - 1) - (scale + n / 100) * noise)) for n in range(3)}

    task = {"kind": "classification", "unit": ""}
    a = make_run(tmp_path, "a", rows, probabilities(2.0), task=task)
    b = make_run(tmp_path, "b", rows, probabilities(0.7), task=task)
    found = compare(a, b)
    by_fold = [
        [
            roc_auc_score(rows["y_true"][rows["fold"] == f], run.members[m].test.query("fold == @f")["y_pred"])
            for m in ("seed_0", "seed_1", "seed_2")
            for f in range(5)
        ]
        for run in (a, b)
    ]
    assert found.difference.value == pytest.approx(np.mean(by_fold[0]) - np.mean(by_fold[1]))
    assert found.difference.low < found.difference.value < found.difference.high < 0
    assert found.verdict == "better"  # B has the larger area
    assert "ROC-AUC of B is higher" in found.sentence
    assert curves(found).startswith(b"\x89PNG")
    assert "not for ROC-AUC" in comparison_markdown(found)


# --- reading runs, and what is refused ---


def test_a_run_is_read_whole_or_one_member_of_it(tmp_path):
    rows, val_rows = make_rows(), make_rows(n=8, prefix="v")
    predicted = predict(rows, 0.1, seeds=2, jitter=0.01)
    run = make_run(
        tmp_path, "a", rows, predicted, val_rows=val_rows, val_members=predict(val_rows, 0.2, seeds=2, jitter=0.1)
    )
    assert list(run.members) == ["reference", "seed_0", "seed_1"]
    assert run.folds == [0, 1, 2, 3, 4]
    assert run.configs[3] == {"lr": 0.001, "seed": 0}
    assert (run.metric, run.task["name"], run.data_sha256) == (MAE, "made", "0123456789abcdef")
    read = run.members["seed_1"].test.set_index("id").loc[rows["id"], "y_pred"]
    assert (read.to_numpy() == predicted["seed_1"]).all()  # to the last digit
    assert len(run.members["seed_1"].validation) == 40
    assert list(run.members["seed_0"].history.columns[:2]) == ["epoch", "train_loss"]
    assert len(run.members["seed_0"].history) == 30
    one = load_sweep("a/seed_1", storage=str(tmp_path / "ray_results"))
    assert (one.name, [member.name for member in compared_members(one)]) == ("a/seed_1", ["seed_1"])


def test_ids_and_formulas_are_read_as_they_are_written(tmp_path):
    rows = make_rows(n_folds=1)
    rows.loc[:2, "id"] = ["007", "1e5", "nan"]
    rows.loc[:2, "composition"] = ["NaN", "NA", "None"]  # sodium nitride is no missing value
    read = make_run(tmp_path, "a", rows, predict(rows, 0.1)).members["seed_0"].test
    assert read["id"][:3].tolist() == ["007", "1e5", "nan"]
    assert read["group"][:3].tolist() == ["NaN", "NA", "None"]


def test_what_cannot_be_read_is_told(tmp_path):
    storage, rows = tmp_path / "ray_results", make_rows()
    for name in ("beta", "alpha"):
        write_run(storage / name, rows, predict(rows, 0.1))
    (storage / "begun").mkdir()
    (storage / "begun" / "sweep.json").write_text("{}")

    def refused(address: str) -> str:
        with pytest.raises(RunError) as told:
            load_sweep(address, str(storage))
        return str(told.value)

    assert finished_runs(str(storage)) == ["alpha", "beta"]
    assert finished_runs(str(tmp_path / "nowhere")) == []
    assert re.search(r"no run 'gamma'.*: alpha, beta$", refused("gamma"))
    assert "--resume begun" in refused("begun")
    assert f"--resume begun --storage {storage}`" in refused("begun/seed_0")
    (storage / "begun" / "sweep.json").write_text('{"gate": {}}')
    assert "a queue, whose command (tune/run_queue.py) goes on with it" in refused("begun")
    assert "no member 'seed_5': it has reference, seed_0" in refused("alpha/seed_5")
    (storage / "alpha" / "seed_0" / "preds_fold_3.csv").unlink()
    assert "seed_0/preds_fold_3.csv missing" in refused("alpha")
    file = storage / "beta" / "seed_0" / "preds_fold_2.csv"
    whole = file.read_text()
    for damage, reason in (
        (whole[: whole.rindex(",")] + ",\n", "not finite"),
        ("id,y_true\n1,2\n", "damaged"),
        ("", "damaged"),
        (whole + whole.splitlines()[1] + "\n", "more than once"),
    ):
        file.write_text(damage)
        assert reason in refused("beta")
        assert "seed_0/preds_fold_2.csv" in refused("beta")
    file.write_text(whole)
    (storage / "beta" / "seed_0" / "history_fold_1.csv").write_text("")
    assert "seed_0/history_fold_1.csv is damaged" in refused("beta")
    (storage / "beta" / "results.json").write_text('{"speed": 1}')
    assert "beta/results.json is not that of a sweep" in refused("beta")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": {"name": "other"}}, "task 'made' and 'other'"),
        ({"task": {"target": "gap"}}, "target 'e' and 'gap'"),
        ({"task": {"unit": "eV"}}, "unit 'eV/atom' and 'eV'"),
        ({"sha256": "fedcba"}, "rows differ"),
    ],
)
def test_runs_of_different_things_are_refused(tmp_path, change, reason):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1))
    with pytest.raises(RunError, match=reason):
        compare(a, make_run(tmp_path, "b", rows, predict(rows, 0.1), **change))


def test_runs_without_a_common_id_fold_or_label_are_refused(tmp_path):
    rows = make_rows()
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1))
    others = make_rows(prefix="d")
    moved = rows.assign(fold=(rows["fold"] + 1) % 5)
    for number, different in enumerate((others, moved)):
        with pytest.raises(RunError, match="no id in a common fold"):
            compare(a, make_run(tmp_path, f"b{number}", different, predict(different, 0.1)))
    labels = rows.assign(y_true=rows["y_true"].where(rows["id"] != "c-0003", 7.0))
    with pytest.raises(RunError, match=r"labels of 1 common ids differ, for example of 'c-0003'.* 7\.0"):
        compare(a, make_run(tmp_path, "relabelled", labels, predict(labels, 0.1)))


def test_a_noise_run_must_tell_something(tmp_path):
    rows = make_rows()
    a, b = (make_run(tmp_path, name, rows, predict(rows, 0.1)) for name in "ab")
    with pytest.raises(RunError, match="it has one seed"):
        compare(a, b, noise=a)
    some = rows[rows["fold"] < 3]
    with pytest.raises(RunError, match=r"none of the compared ids of fold\(s\) \[3, 4\]"):
        compare(a, b, noise=make_run(tmp_path, "some", some, predict(some, 0.1, seeds=2, jitter=0.1)))


def test_ids_in_one_run_only_are_told_and_left_out(tmp_path):
    rows = make_rows()
    fewer = rows[(rows["fold"] < 4) & (rows["id"] != "c-0000")]
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1, seeds=2, jitter=0.001))
    b = make_run(tmp_path, "b", fewer, predict(fewer, 0.1, seeds=2, jitter=0.001))
    found = compare(a, b)
    assert len(found.paired.rows) == 159
    warning = next(line for line in found.warnings if "partly" in line)
    assert "159 ids of fold(s) [0, 1, 2, 3]" in warning
    assert "a has 41 more" in warning
    assert "b has" not in warning


def test_validation_parts_are_compared_where_there_are_any(tmp_path):
    rows, val_rows = make_rows(), make_rows(n=10, prefix="v")
    val_rows.loc[1, "id"] = val_rows.loc[0, "id"]  # one crystal is in the validation parts of two folds
    old = make_run(tmp_path, "old", rows, predict(rows, 0.1))
    a, b = (
        make_run(tmp_path, name, rows, predict(rows, 0.1, seeds=2, jitter=0.001), val_rows=val_rows,
             val_members=predict(val_rows, error, seeds=2, jitter=0.001))
        for name, error in (("a", 0.1), ("b", 0.2))
    )  # fmt: skip
    found = compare(a, b, on="validation")
    assert (found.verdict, len(found.paired.rows)) == ("worse", 50)
    assert not any("test data" in warning for warning in found.warnings)
    assert compare(a, b).verdict == "identical (inert)"
    with pytest.raises(RunError, match=r"old has no predictions of its validation parts \(seed_0/val_fold_0.csv"):
        compare(a, old, on="validation")


# --- report, table, picture, command ---


def test_configurations_are_compared_field_by_field_and_fold_by_fold(tmp_path):
    rows = make_rows(n_folds=3)
    of_a = {fold: {"lr": 0.001, "loss": "mae", "epochs": 100, "seed": 0} for fold in range(3)}
    of_b = {fold: {"lr": 0.002, "loss": "huber" if fold == 1 else "mae", "epochs": 100, "seed": 9} for fold in range(3)}
    of_b[2]["mixup"] = True
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1), configs=of_a, task={"quantity": "energy_per_atom"})
    b = make_run(tmp_path, "b", rows, predict(rows, 0.1, seeds=2), configs=of_b, task={"quantity": "other"})
    assert config_differences(a, b) == [
        ("lr", "all", "0.001", "0.002"),
        ("loss", "1", "mae", "huber"),
        ("mixup", "2", "not there", "True"),
        ("--quantity", "all", "energy_per_atom", "other"),
        ("trained", "all", "seed_0", "seed_0, seed_1"),
    ]


def test_differences_are_per_crystal_means_over_seeds_largest_first(tmp_path):
    rows = make_rows(n_folds=2, n=10)
    a = make_run(tmp_path, "a", rows, predict(rows, 0.1, seeds=2, jitter=0.05))
    b = make_run(tmp_path, "b", rows, predict(rows, 0.3, seed=5))
    table = differences(compare(a, b))
    assert len(table) == 20
    assert table["difference"].abs().is_monotonic_decreasing
    row = table.iloc[0]
    errors = [run.members[m].test.set_index("id").loc[row["id"], "abs_error"]
              for run, m in ((a, "seed_0"), (a, "seed_1"), (b, "seed_0"))]  # fmt: skip
    assert row["abs_error_a"] == pytest.approx((errors[0] + errors[1]) / 2)
    assert row["difference"] == pytest.approx((errors[0] + errors[1]) / 2 - errors[2])


def test_the_command_writes_report_table_and_picture(tmp_path, monkeypatch):
    rows = make_rows()
    write_run(tmp_path / "ray_results" / "plain", rows, predict(rows, 0.10, seeds=3, jitter=0.001))
    write_run(tmp_path / "ray_results" / "tuned", rows, predict(rows, 0.08, seeds=3, jitter=0.001))

    command = [sys.executable, REPOSITORY / "tune" / "compare.py", "plain", "tuned"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "ray_results" / "compare-plain-tuned"
    text = (folder / "compare.md").read_text()
    assert text in done.stdout
    assert "## B is: better" in text
    assert "choose on test data" in text
    assert len(re.findall(r"^\| c-\d{4} \|", text, flags=re.MULTILINE)) == 10
    table = pd.read_csv(folder / "differences.csv")
    assert (len(table), table["id"][0] in text) == (200, True)
    picture = matplotlib.image.imread(folder / "curves.png")[..., :3]
    for colour in COLOURS.values():
        assert (np.abs(picture - matplotlib.colors.to_rgb(colour)).max(axis=-1) < 0.02).sum() > 100

    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["plain", "untold"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "RunError: no run 'untold'. Finished runs in ray_results: plain, tuned\n"


def test_predictions_that_are_not_those_that_were_scored_are_refused(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    folder = write_run(tmp_path / "damaged", rows, {"seed_0": rows["y_true"].to_numpy() + 0.1})
    file = folder / "seed_0" / "preds_fold_1.csv"
    table = pd.read_csv(file)
    table.iloc[:17].to_csv(file, index=False)
    with pytest.raises(RunError, match=r"preds_fold_1.csv is damaged: it has 17 predictions, and .* says 20"):
        load_sweep(str(folder))
    table.assign(y_pred=table["y_pred"].where(table.index != 3, 7.5)).to_csv(file, index=False)
    with pytest.raises(RunError, match=rf"abs_error of id '{table['id'][3]}' is not the distance of y_pred"):
        load_sweep(str(folder))
