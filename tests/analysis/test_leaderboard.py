"""The leaderboard: who is ranked with whom, on which crystals, and when two are told apart."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from finished_runs import REPOSITORY, make_rows, make_run, predict, write_run
from typer.testing import CliRunner

import tune.compare
import tune.ensemble
import tune.leaderboard
import tune.report
import tune.submit
from data.crystals.task_table import official_task
from data.folds import make_folds
from data.metrics import METRICS
from tune.analysis.comparison import compare
from tune.analysis.matbench_record import refuse_incomplete
from tune.analysis.peers import peer_tables, read_peers
from tune.analysis.ranking import Ranking, mean_scores, pooled_spread, rankings
from tune.errors import RunError
from tune.leaderboard import app
from tune.pages.leaderboard_page import FILES, caption, cells, facts, heading
from tune.runs import load_sweep

SHARED = REPOSITORY.parent / "shared" / "data"
PREDICTIONS, LABELS = SHARED / "peer_predictions_mp_e_form.parquet", SHARED / "mp_e_form_compositions.parquet"
ZERO_SHOT = "pretrained + reference"


def two_folds() -> pd.DataFrame:
    """Two folds of unequal size: the mean over folds is not that of all crystals."""
    return pd.DataFrame(
        {"fold": [0, 0, 0, 1], "id": list("abcd"), "composition": list("abcd"), "y_true": [1.0, 2.0, 3.0, -1.0]}
    )


def names(section: Ranking) -> list[str]:
    return [place.entry.name for place in section.places]


def ranks(section: Ranking) -> dict[str, tuple[int | None, bool]]:
    return {place.entry.name: (place.rank, place.tied) for place in section.places}


def write_peers(file: Path, columns: dict[str, dict[str, float]]) -> Path:
    """The peers' predictions by model and id, ids in the order of their first model."""
    pd.DataFrame(columns).rename_axis("mbid").reset_index().to_parquet(file)
    return file


def write_record(folder: Path, by_fold: dict[int, dict[str, float]], *, packed: bool = True) -> Path:
    """A submission to Matbench as its package lays it out."""
    results = {f"fold_{fold}": {"data": data, "parameters": {}, "scores": {}} for fold, data in by_fold.items()}
    text = json.dumps({"tasks": {"matbench_mp_e_form": {"results": results}}}).encode()
    folder.mkdir(parents=True)
    file = folder / "results.json.gz"
    file.write_bytes(gzip.compress(text, 1) if packed else text)
    return file


# --- peers ---


def test_everyone_is_scored_on_the_runs_crystals_best_first(tmp_path):
    rows = two_folds()
    y, first = rows["y_true"], rows["fold"] == 0
    run = make_run(tmp_path, "mine", rows, {"seed_7": y + np.where(first, 0.2, -0.2), "ensemble": y - 0.1})
    # in another order than the run's, and with crystals that the run does not have
    good = {"x": 90.0, "d": -1.0, "c": 3.06, "b": 1.97, "a": 1.0, "y": -90.0}
    bad = {"x": 0.0, "d": 1.2, "c": 0.0, "b": 2.0, "a": 1.0, "y": 0.0}
    peers = write_peers(tmp_path / "peers.parquet", {"bad": bad, "good": good})
    (section,) = rankings([run], {str(peers): read_peers(peers)})
    assert names(section) == ["good", "mine", ZERO_SHOT, "bad"]
    # by fold, then over folds: good 0.03, 0; bad 1, 2.2; the untrained one predicts 0.5
    scores = {place.entry.name: place.scores for place in section.places}
    assert [scores[name]["mae"] for name in names(section)] == pytest.approx([0.015, 0.1, 1.5, 1.6])
    assert scores["good"]["max_error"] == pytest.approx(0.06)
    assert scores["bad"]["rmse"] == pytest.approx((3**0.5 + 2.2) / 2)
    spread = [facts(place, section)["std_over_folds"] for place in section.places]
    assert spread == pytest.approx([0.03 / 2**0.5, 0, 0, 1.2 / 2**0.5], abs=1e-12)
    assert all(facts(place, section)["n_ids"] == 4 for place in section.places)
    assert [place.entry.origin for place in section.places] == ["peer", "run", "zero-shot", "peer"]


def test_ids_that_a_peer_lacks_are_counted_and_one_is_named(tmp_path):
    run = make_run(tmp_path, "mine", two_folds(), {"seed_0": two_folds()["y_true"]})
    few = write_peers(tmp_path / "few.parquet", {"few": {"a": 1.0, "c": 3.0}})
    with pytest.raises(RunError, match=rf"^2 test ids are not in {few}, for example b: name runs"):
        rankings([run], {str(few): read_peers(few)})
    for nothing in (np.nan, np.inf):
        gap = write_peers(tmp_path / "gap.parquet", {"gap": {**dict.fromkeys("abc", 1.0), "d": nothing}})
        with pytest.raises(RunError, match=rf"^gap of {gap} has no prediction of 1 test ids, for example d: take"):
            rankings([run], {str(gap): read_peers(gap)})
    other = write_peers(tmp_path / "other.parquet", {"other": {"mb-phonons-0001": 1.0}})
    with pytest.raises(RunError, match=r"other.parquet: it has none of the test ids of these runs"):
        rankings([run], {str(other): read_peers(other)})


@pytest.mark.parametrize("packed", [True, False])
def test_a_record_of_matbench_is_read_packed_or_not(tmp_path, packed):
    file = write_record(tmp_path / "matbench_v0.1_MyNet", {0: {"a": 1, "b": True}, 1: {"d": -1.5}}, packed=packed)
    table = read_peers(file)
    assert table.to_dict() == {"MyNet": {"a": 1.0, "b": 1.0, "d": -1.5}}
    (tmp_path / "matbench_v0.1_MyNet" / "info.json").write_text('{"algorithm": "My Net"}')
    assert list(read_peers(file)) == ["My Net"]


def test_what_is_no_file_of_predictions_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"none.parquet cannot be read"):
        read_peers(tmp_path / "none.parquet")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(RunError, match=r"a.parquet cannot be read"):
        read_peers(tmp_path / "a.parquet")
    pd.DataFrame({"id": ["a"], "net": [1.0]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(RunError, match=r"b.parquet is laid out in an unknown way .*no column 'mbid'"):
        read_peers(tmp_path / "b.parquet")
    for text in ("{}", "[]", "no json", '{"tasks": {"t": {"results": {"fold_0": 1}}}}'):
        (tmp_path / "c.json.gz").write_text(text)
        with pytest.raises(RunError, match=r"c.json.gz is laid out in an unknown way"):
            read_peers(tmp_path / "c.json.gz")
    with pytest.raises(RunError, match="'a' is in several folds"):
        read_peers(write_record(tmp_path / "twice", {0: {"a": 1.0}, 1: {"a": 1.0}}))


@pytest.mark.skipif(not (PREDICTIONS.exists() and LABELS.exists()), reason="the peers' predictions are not here")
def test_peers_have_the_errors_that_they_published(tmp_path):
    published = {"coNGN": 0.0178, "alignn": 0.0215, "cgcnnv2019": 0.0337, "rf": 0.1165}
    labels = pd.read_parquet(LABELS).set_index("mbid")["e_form"]
    table = pd.read_parquet(PREDICTIONS).set_index("mbid")[list(published)].astype(float)
    folds = make_folds(official_task("matbench_mp_e_form"), labels.index.tolist(), None)
    rows = pd.concat([pd.DataFrame({"fold": fold.index, "id": fold.test_ids}) for fold in folds], ignore_index=True)
    rows = rows.assign(group="X", y_true=labels.loc[rows["id"]].to_numpy())
    for name, expected in published.items():
        by_fold = {fold.index: table.loc[fold.test_ids, name].to_dict() for fold in folds}
        file = write_record(tmp_path / f"matbench_v0.1_{name}", by_fold)
        found = peer_tables(read_peers(file), rows, str(file))
        assert list(found) == [name]
        assert len(found[name]) == 132_752
        assert mean_scores(found[name], METRICS["mae"])["mae"] == pytest.approx(expected, abs=6e-5)
    of_table = peer_tables(read_peers(PREDICTIONS), rows, str(PREDICTIONS))
    assert {name: mean_scores(of_table[name], METRICS["mae"])["mae"] for name in published} == pytest.approx(
        published, abs=6e-5
    )


# --- ranks ---


def test_a_difference_that_crystals_explain_shares_the_first_rank(tmp_path):
    rows = make_rows()
    y = rows["y_true"].to_numpy()
    noise = np.random.default_rng(1).normal(size=(2, len(rows)))
    best = make_run(tmp_path, "best", rows, {"seed_0": y + 0.1 * noise[0]})
    other = make_run(tmp_path, "other", rows, {"seed_0": y + 0.1001 * noise[1]})
    worse = make_run(tmp_path, "worse", rows, {"seed_0": y + 0.2 * noise[0]})
    (section,) = rankings([worse, other, best], {})
    first, second = names(section)[:2]
    assert {first, second} == {"best", "other"}
    assert ranks(section) == {first: (1, True), second: (1, True), "worse": (3, False), ZERO_SHOT: (4, False)}
    shown = [cells(place, section)["rank"] for place in section.places]
    assert shown == ["1 =", "1 =", "3", "4"]
    # the same interval as that of compare.py, up to the sign
    runs = {"best": best, "other": other, "worse": worse}
    for place in section.places[1:3]:
        found = compare(runs[place.entry.name], runs[first]).difference
        expected = (found.value, found.low, found.high)
        assert (place.difference.value, place.difference.low, place.difference.high) == pytest.approx(expected)


def test_a_difference_that_seeds_explain_shares_the_first_rank(tmp_path):
    rows = make_rows()
    best = make_run(tmp_path, "best", rows, predict(rows, 0.100))
    near = make_run(tmp_path, "near", rows, predict(rows, 0.104))  # the same pattern: crystals tell them apart
    far = make_run(tmp_path, "far", rows, predict(rows, 0.150))
    (section,) = rankings([best, near, far], {})
    assert [section.spread, ranks(section)["near"]] == [None, (2, False)]
    noisy = make_run(tmp_path, "noisy", rows, predict(rows, 0.3, seeds=4, jitter=0.003))
    (section,) = rankings([best, near, far, noisy], {})
    assert section.spread.freedom == 3
    assert ranks(section)["near"] == (1, True)
    assert ranks(section)["best"] == (1, True)
    assert ranks(section)["far"] == (3, False)


def test_seeds_count_once_and_only_where_all_folds_were_trained(tmp_path):
    rows = make_rows()
    noisy = make_run(tmp_path, "noisy", rows, predict(rows, 0.1, seeds=4, jitter=0.003))
    alone = rankings([noisy], {})[0].spread
    assert alone.freedom == 3
    members = [load_sweep(f"{noisy.address}/seed_{number}") for number in (0, 2)]
    first = rows[rows["fold"] == 0]  # one fold's mean is spread otherwise than that of five
    part = make_run(tmp_path, "part", first, predict(first, 0.1, seeds=3, jitter=0.05))
    assert rankings([noisy, *members, part], {})[0].spread == alone


def test_the_spread_of_seeds_is_pooled_and_its_band_as_by_hand():
    spread = pooled_spread([np.array([1.0, 3.0]), np.array([5.0]), np.array([0.0, 0.0, 3.0])])
    assert (spread.std, spread.freedom) == (pytest.approx(((2 + 6) / 3) ** 0.5), 3)
    # t(0.975, 3) = 3.182; something that trains nothing has no seeds
    assert spread.band(1, 4) == pytest.approx(3.182 * spread.std * 1.25**0.5, rel=1e-3)
    assert spread.band(0, 4) == pytest.approx(3.182 * spread.std * 0.5, rel=1e-3)
    assert pooled_spread([np.array([1.0]), np.array([])]) is None


def test_a_run_is_judged_by_its_ensemble_else_its_seed_else_its_reference(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    several = make_run(tmp_path, "several", rows, {"seed_0": y + 0.2, "seed_1": y + 0.4, "ensemble": y + 0.3})
    one = make_run(tmp_path, "one", rows, {"seed_0": y + 0.1})
    none = make_run(tmp_path, "none", rows, {})
    (section,) = rankings([several, one, none], {})
    assert names(section) == ["one", "several", "none"]
    told = {place.entry.name: facts(place, section) for place in section.places}
    assert [told[name]["member"] for name in names(section)] == ["seed_0", "ensemble", "reference"]
    assert [told[name]["seeds"] for name in names(section)] == [1, 2, 0]
    assert told["several"]["mae"] == pytest.approx(0.3)
    assert told["several"]["seed_std"] == pytest.approx(0.2 / 2**0.5)
    assert told["none"]["kind"] == "zero-shot"


def test_a_model_that_draws_nothing_has_its_seeds_and_no_noise_of_seeds(tmp_path):
    """As of two Gaussian processes of which one learns from rows drawn at random."""
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    drawing = make_run(tmp_path, "drawing", rows, {"seed_0": y + 0.1})
    exact = make_run(tmp_path, "exact", rows, {"seed_0": y + 0.2}, by_chance=False)
    (section,) = rankings([drawing, exact], {})
    lines = {place.entry.name: (place.entry.n_draws, facts(place, section)) for place in section.places}
    assert [lines[name][1]["seeds"] for name in ("drawing", "exact", ZERO_SHOT)] == [1, 1, 0]
    assert [lines[name][0] for name in ("drawing", "exact", ZERO_SHOT)] == [1, 0, 0]
    assert [lines[name][1]["by_chance"] for name in ("drawing", "exact")] == [True, False]


def test_a_pretrained_network_is_listed_once_and_another_one_too(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    weights = {name: {fold: {"weights": name, "seed": 0} for fold in (0, 1)} for name in ("0.3.0", "r2scan")}
    a = make_run(tmp_path, "a", rows, {"seed_0": y + 0.1}, configs=weights["0.3.0"])
    b = make_run(tmp_path, "b", rows, {"seed_0": y + 0.2}, configs=weights["0.3.0"])
    part = make_run(tmp_path, "part", rows[rows["fold"] == 0], {"seed_0": y[rows["fold"] == 0] + 0.3})
    c = make_run(tmp_path, "c", rows, {"seed_0": y + 0.4, "reference": y + 0.9}, configs=weights["r2scan"])
    (section,) = rankings([a, b, part, c], {})
    zero_shot = [place.entry.name for place in section.places if place.entry.origin == "zero-shot"]
    assert sorted(zero_shot) == [f"{ZERO_SHOT} (0.3.0)", f"{ZERO_SHOT} (r2scan)"]
    # a reference that no network is part of is no control of pretraining
    results = json.loads((tmp_path / "ray_results" / "a" / "results.json").read_text())
    results["reference"]["title"] = "reference: linear in the element fractions"
    (tmp_path / "ray_results" / "a" / "results.json").write_text(json.dumps(results))
    (section,) = rankings([load_sweep(a.address)], {})
    assert names(section) == ["a"]


def test_other_rows_and_other_tasks_are_other_sections(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    predicted = {"seed_0": rows["y_true"].to_numpy() + 0.1}
    a = make_run(tmp_path, "a", rows, predicted)
    b = make_run(tmp_path, "b", rows, predicted, sha256="another")
    c = make_run(tmp_path, "c", rows, predicted, task={"name": "zzz"})
    found = rankings([a, b, c], {})
    assert sorted(names(section)[0] for section in found) == ["a", "b", "c"]
    assert found[-1].task["name"] == "zzz"


def test_runs_of_other_folds_are_not_ranked_compared_or_submitted_together(tmp_path):
    rows = two_folds()
    own = make_run(tmp_path, "own", rows, {"seed_0": rows["y_true"]})
    make_run(tmp_path, "left", rows, {"seed_0": rows["y_true"]})
    file = tmp_path / "ray_results" / "left" / "results.json"
    record = json.loads(file.read_text())
    record["options"]["split"] = "leave-group-out:element"
    file.write_text(json.dumps(record))
    left = load_sweep(str(file.parent))
    peers = write_peers(tmp_path / "peers.parquet", {"peer": dict(zip(rows["id"], rows["y_true"], strict=True))})
    tables = rankings([own, left], {str(peers): read_peers(peers)})
    # A peer was trained on what the split leaves out.
    assert {heading(table): "peer" in names(table) for table in tables} == {
        "made: e, eV/atom": True,
        "made: e, eV/atom, --split leave-group-out:element": False,
    }
    with pytest.raises(RunError, match=r"the folds differ, --split task and leave-group-out:element"):
        compare(own, left)
    with pytest.raises(RunError, match=r"--split leave-group-out:element: Matbench takes its own folds only"):
        refuse_incomplete(left, left.members["seed_0"])


def test_ids_that_several_folds_test_are_counted_once(tmp_path):
    rows = make_rows(n_folds=2, n=20)
    rows.loc[1, ["id", "composition", "y_true"]] = rows.loc[0, ["id", "composition", "y_true"]]
    run = make_run(tmp_path, "twice", rows, {"seed_0": rows["y_true"].to_numpy() + 0.1})
    (section,) = rankings([run], {})
    assert "39 test ids of fold(s) 0, 1 (40 predictions: some are in several)" in caption(section)[0]
    assert facts(section.places[0], section)["n_ids"] == 39


def test_a_run_that_lacks_folds_has_no_rank_and_is_compared_on_what_it_has(tmp_path):
    rows = make_rows(n_folds=3, n=40)
    y = rows["y_true"].to_numpy()
    of_fold = rows["fold"].to_numpy() == 1
    best = make_run(tmp_path, "best", rows, {"seed_0": y + np.where(of_fold, 0.4, 0.1)})
    part = make_run(tmp_path, "part", rows[of_fold], {"seed_0": y[of_fold] + 0.3})
    (section,) = rankings([part, best], {})
    assert ranks(section) == {"best": (1, False), ZERO_SHOT: (2, False), "part": (None, False)}
    place = section.places[-1]
    assert (place.n_common, place.scores["mae"]) == (40, pytest.approx(0.3))
    assert place.difference.value == pytest.approx(-0.1)
    assert place.difference.high == pytest.approx(-0.1)
    assert "rank" not in facts(place, section)
    line = cells(place, section)
    assert "+-" not in line["MAE"]  # one fold has no spread
    assert "fold(s) 1 only, 40 ids in common with the best" in line["flags"]


def test_a_classification_is_ranked_by_its_roc_auc(tmp_path):
    rows = make_rows().assign(y_true=lambda table: (table["y_true"] > 0).astype(float))
    noise = np.random.default_rng(3).normal(size=(2, len(rows)))
    task = {"kind": "classification"}
    good = make_run(tmp_path, "good", rows, {"seed_0": rows["y_true"] + 0.5 * noise[0]}, task=task)
    bad = make_run(tmp_path, "bad", rows, {"seed_0": rows["y_true"] + 3.0 * noise[1]}, task=task)
    (section,) = rankings([bad, good], {})
    assert names(section) == ["good", "bad", ZERO_SHOT]
    assert section.metric == METRICS["rocauc"]
    place = section.places[1]
    assert sorted(place.scores) == ["accuracy", "rocauc"]
    found = compare(good, bad).difference
    expected = (found.value, found.low, found.high)
    assert (place.difference.value, place.difference.low, place.difference.high) == pytest.approx(expected)
    assert place.difference.value > 0  # behind the best
    assert cells(place, section)["ROC-AUC behind the best"].startswith("+")


# --- the command ---


def board(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ray_results"


def change(folder: Path, **results) -> None:
    """Put other results in place of a run's; None takes one away."""
    told = json.loads((folder / "results.json").read_text()) | results
    (folder / "results.json").write_text(json.dumps({name: one for name, one in told.items() if one is not None}))


def test_the_command_lists_all_runs_with_what_a_reader_must_know(here, tmp_path):
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    official = {"name": "matbench_mp_e_form", "n_official": 132752}
    for name, error in (("a", 0.1), ("queue/b", 0.2), ("old", 0.3)):
        write_run(here / name, rows, {"seed_0": y + error}, task=official)
    change(here / "a", flags=["subset", "inert"], cost={"cpu_hours": 1.25, "gpu_hours": 0.4})
    told = json.loads((here / "a" / "results.json").read_text())
    told["seeds"][0]["training"] = [{"fold": 0, "n_trained": 400}, {"fold": 1, "n_trained": 412525}]
    change(here / "a", seeds=told["seeds"])
    change(here / "queue" / "b", sweep="queue/b")
    (here / "queue" / "queue.json").write_text("{}")
    change(here / "old", flags=["pretraining overlap"])
    write_run(here / "damaged", rows, {"seed_0": y})
    write_run(here / "older", rows, {"seed_0": y})
    change(here / "older", flags=None, cost=None)
    (here / "damaged" / "seed_0" / "preds_fold_1.csv").unlink()
    peers = write_peers(tmp_path / "peers.parquet", {"net": dict(zip(rows["id"], y + 0.15, strict=True))})

    done = board("--peers", peers)
    assert done.exit_code == 0, done.output
    text = (here / "leaderboard.md").read_text()
    assert "## matbench_mp_e_form: e, eV/atom" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    table = [dict(zip(header, line, strict=True)) for line in split]
    assert [line["name"] for line in table] == ["**a**", "net", "**queue/b**", "**old**", ZERO_SHOT]
    assert [line["rank"] for line in table] == ["1", "2", "3", "4", "5"]
    first = table[0]
    assert first["MAE"] == "0.1000 +- 0.0000"
    assert (first["parameters"], first["GPU h"], first["CPU h"]) == ("412,525", "0.4", "1.2")
    assert (first["seeds"], first["protocol"], first["flags"]) == ("1", "no search", "subset, inert")
    assert (first["date"], first["what"]) == ("2026-11-21", "chgnet")
    assert table[1]["what"] == "peer"
    assert table[1]["flags"] == "trained on the whole task"
    assert table[1]["MAE behind the best"] == "+0.0500 (+0.0500 to +0.0500)"
    assert table[3]["flags"] == "pretraining overlap"
    assert "was pretrained on Materials Project data" in text
    assert "- damaged: " in text
    assert "of another version of matsweep (KeyError: 'cost, flags')" in text
    assert "Left out: damaged" in done.output

    loaded = (here / "leaderboard.json").read_text()
    assert "null" not in loaded
    (section,) = json.loads(loaded)["sections"]
    entry = section["entries"][0]
    assert (entry["name"], entry["rank"], entry["tied"], entry["folds"]) == ("a", 1, False, [0, 1])
    assert entry["mae"] == pytest.approx(0.1)
    assert section["entries"][1]["difference_to_best"] == pytest.approx(0.05)
    csv = pd.read_csv(here / "leaderboard.csv")
    assert csv["name"].tolist() == ["a", "net", "queue/b", "old", ZERO_SHOT]
    assert csv["task"].unique().tolist() == ["matbench_mp_e_form"]

    chosen = board("a", "old", "--out", tmp_path / "out")
    assert chosen.exit_code == 0, chosen.output
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert "queue/b" not in (tmp_path / "out" / "leaderboard.md").read_text()


def test_the_command_says_what_it_cannot_do(here, tmp_path):
    empty = board()
    assert (empty.exit_code, empty.output.strip()) == (1, "RunError: there is no finished sweep in ray_results")
    rows = make_rows(n_folds=2, n=20)
    write_run(here / "a", rows, {"seed_0": rows["y_true"].to_numpy()})
    for arguments, reason in (
        (["b"], "no run 'b'. Finished runs in ray_results: a"),
        (["--peers", tmp_path / "none.parquet"], "none.parquet cannot be read"),
        (["--contamination", tmp_path / "none.txt"], "there is no such file or folder"),
    ):
        refused = board(*arguments)
        assert refused.exit_code == 1
        assert reason in refused.output
        assert "Traceback" not in refused.output
    assert not (here / "leaderboard.md").exists()


def test_a_row_is_a_line_at_160_columns_and_flags_have_a_legend(here):
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    flags = ["subset", "pretraining overlap", "search saw other folds", "inert"]
    for name, error in (("head_finetune_on_all_official_folds", 0.1), ("gaussian_process_atoms", 0.2)):
        write_run(here / name, rows, {"seed_0": y + error})
        change(here / name, flags=flags, model={"name": "gaussian_process"})
    write_run(here / "part", rows[rows["fold"] == 0], {"seed_0": y[rows["fold"] == 0] + 0.3})
    done = board()
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    table = lines[next(at for at, line in enumerate(lines) if line[:2] == ["rank", "name"]) + 2 :]
    assert [line[1] for line in table[:2]] == ["head_finetune_on_all_official_folds", "gaussian_process_atoms"]
    assert [line[-4:] for line in table[:2]] == [["1", "2", "3", "4"]] * 2
    assert table[3][0] == "part"
    assert table[3][-1] == "5"
    legend = (
        "Flags: 1 subset; 2 pretraining overlap; 3 search saw other folds; 4 inert; 5 fold(s) 0 only, 20 ids in common"
    )
    assert legend in " ".join(done.output.split())


def test_names_are_looked_up_in_the_storage_that_is_given(here, tmp_path):
    rows = make_rows(n_folds=2, n=20)
    y = rows["y_true"].to_numpy()
    for name in ("a", "b"):
        write_run(tmp_path / "elsewhere" / name, rows, {"seed_0": y + 0.1})
    storage = f"--storage={tmp_path}/elsewhere"
    for command, arguments, written in (
        (tune.leaderboard.app, [], "leaderboard.md"),
        (tune.compare.app, ["a", "b"], "compare-a-b/compare.md"),
        (tune.ensemble.app, ["a", "b", "--name=both"], "both/results.json"),
        (tune.report.app, ["a"], "a/report.html"),
    ):
        done = CliRunner().invoke(command, [*arguments, storage])
        assert done.exit_code == 0, done.output
        assert (tmp_path / "elsewhere" / written).exists()
    refused = CliRunner().invoke(tune.submit.app, ["a", storage])
    assert "made" in refused.output, refused.output  # which is no task of Matbench
    assert "no run" not in refused.output
    assert not here.exists()


def test_untrusted_predictions_are_counted_named_and_left_out_of_a_second_score(here):
    rows = two_folds().assign(trust=[0.9, 0.2, 0.8, 0.7], trusted=[True, False, True, True])
    y = rows["y_true"].to_numpy()
    write_run(here / "wild", rows, {"seed_0": y + np.array([0.1, 15.0, 0.1, 0.1])})
    write_run(here / "older", rows.drop(columns=["trust", "trusted"]), {"seed_0": y + 0.2})
    done = board()
    assert done.exit_code == 0, done.output
    text = (here / "leaderboard.md").read_text()
    assert "| 1 (0.1000 without): b (b) |" in text
    assert "Untrusted are predictions whose trust is below 0.5" in text
    (section,) = json.loads((here / "leaderboard.json").read_text())["sections"]
    by_name = {entry["name"]: entry for entry in section["entries"]}
    assert by_name["wild"]["n_untrusted"] == 1
    assert by_name["wild"]["worst_untrusted"] == ["b (b)"]
    assert by_name["wild"]["mae_of_trusted"] == pytest.approx(0.1)
    assert "n_untrusted" not in by_name["older"]
    assert "untrusted" in done.output
