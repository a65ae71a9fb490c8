"""A machine that is taken away: SIGTERM, and the trial goes on from the batch it was at."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from sweeps import new, prepare, run, start

from tune.trials.preemption import FILE, load_paused

SPACE = "parameters:\n  freeze_depth: full\n  epochs: 4\n  batch_size: 4\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A space of one long training, and ids of the demo."""
    return prepare(tmp_path_factory.mktemp("preemption"), every=5, long=SPACE)


def wait_for(pattern: str, place: Path, driver: subprocess.Popen) -> Path:
    """The first file that matches, as soon as it is there."""
    deadline = time.monotonic() + 300
    while not (found := sorted(place.glob(pattern))):
        assert driver.poll() is None, "the sweep ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def workers(driver: subprocess.Popen) -> list[psutil.Process]:
    """Processes of Ray that train, by the title that cluster.kuberay.yaml knows them by."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if child.cmdline() and child.cmdline()[0].startswith("ray::ResourceTrainable")]


@pytest.fixture(scope="module")
def whole(folder):
    """A training that nothing disturbs."""
    run(folder, *new(folder, "whole", "long"), "--folds=2")
    return trained(folder, "whole")


def trained(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    """History and predictions."""
    seed = folder / f"results/{name}/seed_0"
    return pd.read_csv(seed / "history_fold_2.csv"), (seed / "preds_fold_2.csv").read_text()


def begun(folder: Path, name: str, request: pytest.FixtureRequest) -> tuple[subprocess.Popen, psutil.Process]:
    """The same training in its third epoch: its driver and its worker."""
    driver = start(folder, folder / f"{name}.log", *new(folder, name, "long"), "--folds=2")
    request.addfinalizer(driver.kill)
    wait_for("evaluate-*/trial_*/checkpoint_000002/state.pt", folder / f"results/{name}", driver)
    time.sleep(0.4)  # of an epoch that takes more than a second
    (worker,) = workers(driver)
    return driver, worker


@pytest.mark.whole
def test_a_trial_told_to_end_saves_and_goes_on_from_that_batch(folder, whole, request):
    driver, worker = begun(folder, "preempted", request)
    worker.send_signal(signal.SIGTERM)
    file = wait_for(f"evaluate-*/trial_*/{FILE}", folder / "results/preempted", driver)
    state = torch.load(file, weights_only=True)
    if state["midway"]:  # as ever, unless the signal met the trial as it reported
        state["midway"]["total"] += 1e6  # so that what comes of this state can be told from an epoch done again
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").rename(file)
    assert driver.wait(timeout=600) == 0, (folder / "preempted.log").read_text()

    (before, predicted), (after, predicted_after) = whole, trained(folder, "preempted")
    cut = state["history"][-1]["epoch"] + 1
    assert cut in (3, 4)
    assert (after["train_loss"][cut] > 1000) == bool(state["midway"])
    same = ["epoch", "val_loss", "val_mae", "lr", "fingerprint"]
    pd.testing.assert_frame_equal(before[same], after[same], check_exact=True)
    assert predicted == predicted_after


@pytest.mark.slow
def test_a_worker_that_is_killed_begins_its_epoch_again(folder, whole, request):
    driver, worker = begun(folder, "killed", request)
    worker.kill()
    assert driver.wait(timeout=600) == 0, (folder / "killed.log").read_text()
    (before, predicted), (after, predicted_after) = whole, trained(folder, "killed")
    pd.testing.assert_frame_equal(before.drop(columns="seconds"), after.drop(columns="seconds"), check_exact=True)
    assert predicted == predicted_after
    assert not list((folder / "results/killed").glob(f"evaluate-*/trial_*/{FILE}"))


def written(folder: Path, last_epoch: int) -> str:
    folder.mkdir(exist_ok=True)
    torch.save({"history": [{"epoch": epoch} for epoch in range(last_epoch + 1)]}, folder / FILE)
    return str(folder)


@pytest.mark.parametrize(("last_epoch", "told", "used"), [(3, 3, True), (4, 3, True), (2, 3, False), (5, 3, False)])
def test_no_epoch_goes_unreported_and_none_is_reported_twice(tmp_path, last_epoch, told, used):
    state = load_paused(written(tmp_path, last_epoch), told)
    assert (state is not None) == used


def test_a_trial_that_was_never_paused_has_nothing_to_load(tmp_path):
    assert load_paused(str(tmp_path), -1) is None


@pytest.mark.parametrize("left", [0, 300])
def test_a_pause_that_was_saved_in_part_counts_as_none(tmp_path, left):
    folder = written(tmp_path, 3)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:left])
    assert load_paused(folder, 3) is None
