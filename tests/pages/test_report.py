"""The page of a sweep: opened without a network in a real browser, and its numbers held against the sweep's files."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_runs import make_rows, predict, write_options, write_run
from page_text import text_of
from typer.testing import CliRunner

from data.crystals.convert import reduced_formula
from data.metrics import TRUSTED
from data.tasks import open_task
from models.crystals.cell_picture import cell_picture
from models.crystals.chemical_families import elements_of, families
from models.crystals.facts import crystals_of, facts_of_rows
from tune.pages.report_page import write_report
from tune.report import app
from tune.runs import load_sweep
from tune.spaces.space import load_space

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here")


@pytest.fixture(scope="module")
def demo():
    task, rows = open_task("demo", download_dir=Path("not-needed"))
    return task, rows


@pytest.fixture(scope="module")
def crystals(demo):
    """A hundred labelled crystals of the demo task in two folds."""
    _, rows = demo
    found = crystals_of(rows, rows.ids[::9][:100])
    targets = dict(zip(rows.ids, rows.targets.tolist(), strict=True))
    return pd.DataFrame(
        {
            "fold": np.arange(len(found)) % 2,
            "id": list(found),
            "composition": [reduced_formula(crystal) for crystal in found.values()],
            "y_true": [targets[one] for one in found],
        }
    )


def edit(folder: Path, **changes) -> None:
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, **changes}))


@pytest.fixture(scope="module")
def searched(tmp_path_factory, demo, crystals):
    """A finished sweep of demo crystals: a search of six trials, two seeds and their ensemble."""
    task, rows = demo
    folder = tmp_path_factory.mktemp("sweeps") / "searched"
    members = predict(crystals, 0.1, seeds=2, jitter=0.02)
    other = predict(crystals, 0.05, seed=1)["seed_0"] - crystals["y_true"].to_numpy()
    members["seed_1"] = members["seed_1"] + other
    members["ensemble"] = (members["seed_0"] + members["seed_1"]) / 2
    about = {"name": "demo", "target": task.target, "unit": task.unit, "kind": task.kind}
    trust = np.linspace(0.01, 1, len(crystals))
    marked = crystals.assign(trust=trust, trusted=trust >= TRUSTED)
    write_run(folder, marked, members, task=about, sha256=rows.sha256)
    for file in (folder / "ensemble").glob("preds_*.csv"):
        table = pd.read_csv(file)
        both = [pd.read_csv(folder / seed / file.name)["y_pred"] for seed in ("seed_0", "seed_1")]
        table.assign(std=np.std(both, axis=0, ddof=1)).to_csv(file, index=False)
    space, random = load_space("head_finetune"), np.random.default_rng(0)
    trials = []
    for rank in range(1, 7):
        done = 60 if rank < 3 else 20
        config = {"freeze_depth": "readout", "lr": float(10 ** random.uniform(-3.4, -2)), "seed": 0,
                  "epochs": 60 if rank < 3 else 100, "batch_size": 16 * 2 ** (rank % 3),
                  "weight_decay": float(10 ** random.uniform(-4, -1)), "loss": ("mae", "huber")[rank % 2]}  # fmt: skip
        trials.append({"search_fold": 0, "rank": rank, "trial": f"t{rank}", "config": config,
                       "epochs": config["epochs"], "epochs_done": done, "seconds": 1.0,
                       "kept_val_mae": 0.05 + 0.01 * rank, "kept_epoch": done})  # fmt: skip
        history = pd.DataFrame({"epoch": np.arange(done + 1), "train_loss": 0.1})
        history["val_mae"] = (0.05 + 0.01 * rank) * (1 + np.exp(-history["epoch"] / 8))
        (folder / f"search_fold_0/trial_t{rank}").mkdir(parents=True)
        history.to_csv(folder / f"search_fold_0/trial_t{rank}/history_fold_0.csv", index=False)
    edit(
        folder,
        trials=trials,
        options={"name": "searched", "seed": 0, "space": space.model_dump(), "searched": sorted(space.searched)},
        chosen=[{"fold": fold, "config": trials[0]["config"]} for fold in (0, 1)],
        levers=[{"lever": "lr", "values": [0.001, 0.01], "difference": 0.0125, "rows": 16}],
        flags=["labels of a model"],
    )
    write_options(folder)
    write_report(load_sweep(str(folder)))
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield opened
        opened.close()


def open_page(browser, file: Path, width: int):
    """The page at a width, offline, with what it said on the console and what it asked of a network."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg.main-svg'))")
    return page, said, [url for url in asked if not url.startswith(("file:", "data:"))]


def made(folder: Path, rows: pd.DataFrame, members: dict, **options) -> str:
    """The page of a made-up sweep, as text."""
    write_run(folder, rows, members, **options)
    return text_of(folder)


@pytest.fixture(scope="module")
def opened(browser, searched):
    """The page of the searched sweep on a desktop's screen, what it said and what it asked of a network."""
    return open_page(browser, searched / "report.html", 1200)


@needs_browser
def test_the_page_is_drawn_without_a_network(opened):
    page, said, asked = opened

    def sizes():
        return page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')].map(one => {"
            " const box = one.querySelector('svg.main-svg').getBoundingClientRect(); return [box.width, box.height] })"
        )

    # curves of search and training, importances, parallel coordinates, contour, parity, residuals, elements, families,
    # numbers of elements, target, atoms, crystal systems, space groups, trust, two of calibration
    assert len(sizes()) == 17
    assert all(wide > 400 and high > 100 for wide, high in sizes())
    assert page.locator("#worst svg.crystal").count() == 50
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200

    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.querySelector('#parity svg.main-svg').getBoundingClientRect().width < 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(wide > 200 and high > 100 for wide, high in sizes())
    page.set_viewport_size({"width": 1200, "height": 900})
    assert said == []
    assert asked == []


@needs_browser
def test_numbers_of_the_page_are_those_of_the_files(opened, searched):
    page = opened[0]
    results = json.loads((searched / "results.json").read_text())

    def table(part):
        return page.evaluate(
            "part => [...document.querySelector(`#${part} tbody`).rows]"
            ".map(row => [...row.cells].map(cell => cell.textContent))",
            part,
        )

    scores = {line[0]: line[1:] for line in table("scores")}
    for title, entry in (("seed 1", results["seeds"][1]), ("ensemble of 2 seeds", results["ensemble"])):
        assert scores[title][0] == f"{entry['mean']['mae']:.4f}"
        assert scores[title][1:3] == [f"{fold['mae']:.4f}" for fold in entry["folds"]]
    predictions = pd.concat([pd.read_csv(searched / f"ensemble/preds_fold_{fold}.csv") for fold in (0, 1)])
    predictions = predictions.sort_values("abs_error", ascending=False)
    worst = table("worst")
    for line, row in zip(worst, predictions.to_dict("records"), strict=False):
        assert line[2] == row["composition"]
        assert line[3] == row["id"]
        assert line[5:8] == [f"{row[name]:.4f}" for name in ("y_true", "y_pred", "abs_error")]

    by_element = {line[0]: line[1:3] for line in table("elements")}
    hold = predictions[["O" in elements_of(formula) for formula in predictions["composition"]]]
    assert by_element["O"][0] == str(len(hold))
    assert float(by_element["O"][1]) == pytest.approx(hold["abs_error"].mean(), rel=5e-3)
    stopped = page.evaluate("figures[0].data.find(trace => trace.name === 'stopped by ASHA').x")
    assert stopped == [20, 20, 20, 20]


@needs_browser
def test_a_click_on_a_head_sorts(opened):
    page = opened[0]
    head = page.locator("#worst th", has_text="true")

    def shown():
        return [float(text) for text in page.locator("#worst tbody td:nth-child(6)").all_inner_texts()]

    before = shown()
    head.locator("button").click()
    assert shown() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert shown() == sorted(before, reverse=True)
    page.locator("#worst th", has_text="formula").locator("button").click()
    formulas = page.locator("#worst tbody td:nth-child(3)").all_text_contents()
    assert formulas[0][0] == min(one[0] for one in formulas)


def test_sentences_follow_from_the_files(searched):
    text = text_of(searched)
    assert "ASHA stopped 4 of 6 trials before their epochs" in text
    assert "the predictions of the ensemble, the mean of the 2 seeds" in text
    assert "lr changes predictions by up to 0.0125 eV/atom" in text
    assert "1 training of 5 epochs together took 0.500 core-hours" in text
    assert "labels of a model" in text
    z = [pd.read_csv(searched / f"ensemble/preds_fold_{fold}.csv") for fold in (0, 1)]
    within = (pd.concat(z)["abs_error"] <= pd.concat(z)["std"]).mean()
    assert f"{within:.0%} of the errors are within one std" in text
    n_untrusted = sum((~table["trusted"]).sum() for table in z)
    assert f"{n_untrusted} of 100 test predictions are not trusted" in text
    only = text_of(searched / "seed_1")
    assert "the predictions of seed 1" in only
    assert (searched / "report-seed_1.html").exists()


def test_a_page_holds_plotly_once_and_nothing_from_elsewhere(searched):
    page = (searched / "report.html").read_text()
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"?(https?:)?//", page)


def test_without_search_structures_and_ensemble_the_page_says_why(tmp_path):
    rows = make_rows(1, 60)
    text = made(tmp_path / "plain", rows, predict(rows, 0.1))
    assert "Nothing was searched" in text
    assert "the predictions of seed 0." in text
    assert "fold 0 alone" in text
    assert "The structures cannot be opened any more: no sweep 'plain' in" in text
    assert "There is no uncertainty to judge" in text


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("error", [0.0, 0.1])
def test_a_page_of_few_crystals_or_of_equal_errors_is_made_all_the_same(tmp_path, n, error):
    rows = make_rows(1, n).assign(composition="NaCl", std=0.2)
    text = made(tmp_path / "few", rows, {"seed_0": rows["y_true"].to_numpy() + error})
    assert f"These {n} of {n} crystals" in text
    assert " nan" not in text
    assert "100% of the errors are within one std" in text


def test_an_experiment_of_a_queue_stands_beside_the_others_with_their_verdicts(tmp_path):
    rows = make_rows(2, 40)
    common = {"seeds": 3, "val": 0.2, "test": 0.21}
    gains = {"gain": 0.02, "gain_interval": [0.01, 0.03], "test_gain": -0.01, "test_gain_interval": [-0.02, 0.0]}
    baseline = {"experiment": "baseline", "change": {}, "verdict": "baseline", **common}
    ema = {"experiment": "ema", "change": {"averaging": "ema"}, "verdict": "better", **common, **gains}
    ranking = {"queue": "daily", "metric": "mae", "unit": "eV/atom", "experiments": [ema, baseline]}
    (tmp_path / "queue.json").write_text(json.dumps(ranking))
    text = made(tmp_path / "ema", rows, predict(rows, 0.1))
    assert "ema against the baseline: better. Of all experiments of the queue daily: 1 better." in text
    assert "+0.0200 (+0.0100 to +0.0300)" in text
    assert "averaging ema" in text
    assert "Experiments with one change" not in made(tmp_path / "other", rows, predict(rows, 0.1))


def copied(searched: Path, folder: Path) -> tuple[Path, dict]:
    """A copy of the searched sweep, to be changed, and what is in its results.json."""
    copy = folder / "searched"
    shutil.copytree(searched, copy)
    return copy, json.loads((copy / "results.json").read_text())


def test_rows_that_changed_are_not_taken_for_those_that_were_predicted(tmp_path, searched):
    copy, results = copied(searched, tmp_path)
    edit(copy, data={**results["data"], "sha256": "0" * 64})
    assert "are not those that were predicted" in text_of(copy)


def test_what_asha_stopped_is_told_though_the_space_leaves_epochs_at_their_default(tmp_path, searched):
    copy, results = copied(searched, tmp_path)
    for trial in results["trials"]:
        del trial["config"]["epochs"]
    del results["options"]["space"]["parameters"]["epochs"]
    edit(copy, **results)
    assert "ASHA stopped 4 of 6 trials before their epochs" in text_of(copy)


def test_trials_that_are_all_as_good_are_not_called_a_range(tmp_path, searched):
    copy, results = copied(searched, tmp_path)
    for trial in results["trials"]:
        trial["kept_val_mae"] = 0.25
    edit(copy, **results)
    assert "that were scored all have 0.250, and nothing tells which is better" in text_of(copy)


def test_results_of_an_earlier_version_are_a_page_all_the_same(tmp_path, searched):
    """They did not say what a trial was to train, and of a classification had the space as it was asked for."""
    copy, results = copied(searched, tmp_path)
    for trial in results["trials"]:
        del trial["epochs"]
        trial["config"]["loss"] = "cross_entropy"
    edit(copy, **results)
    text = text_of(copy)
    assert "An earlier version of matsweep wrote these results" in text
    assert "choices=" not in text  # Optuna's own words


def test_of_the_largest_errors_of_folds_the_page_has_the_largest(tmp_path):
    rows = make_rows(2, 60)
    folder = write_run(tmp_path / "outlier", rows, predict(rows, 0.1))
    results = json.loads((folder / "results.json").read_text())
    for entry in (results["reference"], results["seeds"][0]):
        for fold, largest in zip(entry["folds"], (0.2734, 16.8912), strict=True):
            fold["max_error"] = largest
        entry["mean"]["max_error"] = 8.5823  # an earlier version wrote the mean of the two
    edit(folder, **results)
    text = text_of(folder)
    assert "largest error" in text
    assert "16.8912" in text
    assert "8.5823" not in text


def test_the_page_says_where_the_seed_is_from(tmp_path):
    rows = make_rows(1, 30)
    configs = {0: {"lr": 0.01, "seed": 5, "epochs": 3}}
    folder = write_run(tmp_path / "seeded", rows, predict(rows, 0.1), configs=configs)
    options = json.loads((folder / "results.json").read_text())["options"]
    edit(folder, options={**options, "seed": 5, "space": {"parameters": {"lr": 0.01}}})
    text = text_of(folder)
    assert re.search(r"lr ?0.01 ?set by the space ?seed ?5 ?--seed 5", text), text
    assert "1 field left at the default" in text


def test_a_unit_keeps_its_brackets(tmp_path):
    rows = make_rows(1, 60)
    text = made(tmp_path / "moduli", rows, predict(rows, 0.1), task={"unit": "log10(GPa)"})
    assert re.search(r"Half of the errors are below [\d.]+ log10\(GPa\), and", text)


def test_ranges_of_a_target_that_many_crystals_share_are_not_called_equal(tmp_path):
    """As of a band gap, which is zero for every metal."""
    rows = make_rows(1, 160).assign(y_true=lambda table: table["y_true"].clip(lower=0))
    text = made(tmp_path / "gaps", rows, predict(rows, 0.1))
    assert "equally many" not in text
    assert "where many have the same target, their range has more" in text


@needs_browser
def test_a_classification_has_a_roc_curve_and_reliability(browser, tmp_path):
    rows = make_rows(2, 60).assign(y_true=lambda table: (table["y_true"] > 0).astype(float))
    noise = np.random.default_rng(1).normal(0, 0.2, len(rows))
    made(tmp_path / "classes", rows, {"seed_0": np.clip(0.5 + 0.3 * (rows["y_true"] - 0.5) + noise, 0, 1)},
         task={"kind": "classification", "unit": ""})  # fmt: skip
    page, said, _ = open_page(browser, tmp_path / "classes/report.html", 390)
    assert said == []
    assert page.locator("#roc .js-plotly-plot").count() == page.locator("#calibration .js-plotly-plot").count() == 1
    assert page.locator("#parity").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_average_looks_for_structures_at_its_members(tmp_path, searched, crystals):
    members = {"ensemble": predict(crystals, 0.1)["seed_0"]}
    results = json.loads((searched / "results.json").read_text())
    folder = write_run(tmp_path / "mean", crystals, members, sha256=results["data"]["sha256"])
    one = {"member": "searched/ensemble", "address": str(searched), "notes": [], "chosen": []}
    weights = [{"fold": fold, "config": {"weight of searched/ensemble": 1.0}} for fold in (0, 1)]
    edit(
        folder,
        members=[one],
        chose_by_validation=False,
        weights="0.3.0",
        chosen=weights,
        ensemble={"title": "mean of 1 runs", **results["ensemble"]},
    )
    text = text_of(folder)
    assert "An average trains nothing" in text
    assert "Space groups by spglib" in text
    assert "weight of searched/ensemble" in text


def test_a_sweep_that_cannot_be_read_is_one_line(tmp_path):
    for arguments in ([str(tmp_path / "none")], ["a", "b", "--out", "c.html"]):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 1
        assert shown.output.count("\n") == 1
        assert shown.output.startswith("RunError: ")


def test_symmetry_and_pictures_of_known_crystals(demo):
    _, rows = demo
    facts = facts_of_rows(rows.select(list(range(0, 946, 60)), rows.sha256))
    pictured = crystals_of(rows, facts.index)
    for one, crystal in pictured.items():
        assert facts.loc[one, "n_atoms"] == len(crystal.numbers)
        drawn = cell_picture(crystal)
        assert drawn.count("<circle") >= len(crystal.numbers)  # those on faces are drawn on both sides
        assert "nan" not in drawn
    from pymatgen.core import Lattice, Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    from data.crystals.elements import SYMBOL_NUMBERS

    symbols = {number: symbol for symbol, number in SYMBOL_NUMBERS.items()}
    for one, crystal in list(pictured.items())[:6]:
        species = [symbols[number] for number in crystal.numbers.tolist()]
        structure = Structure(Lattice(crystal.lattice), species, crystal.frac_coords)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # spglib's, of how pymatgen calls it
            analyzer = SpacegroupAnalyzer(structure, symprec=0.1)
        assert facts.loc[one, "space_group"].endswith(f"({analyzer.get_space_group_number()})")
        assert facts.loc[one, "symmetry"] == analyzer.get_crystal_system()


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("Ca(NO3)2", {"oxides", "chalcogenides"}),
        ("NaN", {"nitrides", "pnictides"}),
        ("UCl4", {"chlorides", "halides", "actinides"}),
        ("LaNi5", {"intermetallics", "lanthanides"}),
        ("Fe", {"elements"}),
        ("GaAs", {"arsenides", "pnictides"}),
        ("D2O", {"oxides", "chalcogenides"}),
    ],
)
def test_families(formula, expected):
    assert set(families(elements_of(formula))) == expected
