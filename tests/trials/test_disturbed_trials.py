"""What may happen to a trial, in short: whatever it is, the trial ends as one that nothing disturbs.

The same in full-sized sweeps is in test_faults.py, test_preemption.py, test_storage.py and cluster/.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import ray.tune
from marks import whole_only
from model_cases import one_thread
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from sweeps import DEMO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.machine.ray_session import connect
from data.stores.storage import StorageError, read_whole
from data.tasks import open_task
from models.registry import open_model
from tune.dataset.dataset import Dataset, load_dataset
from tune.spaces.space import SearchSpace
from tune.trials import experiment
from tune.trials.resources import Resources
from tune.trials.search import Outcome, train_chosen
from tune.trials.trial import PREDICTIONS_FILE

# Ray leaves sockets and log files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
EPOCHS = 5
SPACE = SearchSpace(  # of a network whose training draws numbers: those, too, must be the same
    name="brief",
    model="composition_network",
    parameters={"epochs": EPOCHS, "width": 64, "head_width": 64, "lr": 0.003, "mixup": True, "dropout": 0.1},
)
CONFIG = SPACE.config(**SPACE.parameters).model_dump() | {"batch_size": 4}
FOLD = 0
# A time.time() that is off by as many seconds as a file says; put where Python looks for it at every start.
JUMPING = """\
import os, time
_clock = time.time
def _jumping():
    try:
        with open({file!r}) as file:
            return _clock() + float(file.read())
    except FileNotFoundError:
        return _clock()
time.time = _jumping
"""


class Reports(ray.tune.Callback):
    """Which epochs a trial has reported, and from which process."""

    def __init__(self):
        self.epochs, self.pids = [], []

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.epochs.append(result["epoch"])
        self.pids.append(result["pid"])

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline, f"reported until then: {self.epochs}"
            time.sleep(0.01)


def formulas(folder: Path) -> Dataset:
    """Those of the demo, for the Ray that is there."""
    table = pd.read_parquet(DEMO, columns=["id", "formula", "e_form"]).rename(columns={"formula": "composition"})
    table.to_csv(folder / "formulas.csv", index=False)
    task, rows = open_task(str(folder / "formulas.csv"), download_dir=folder)
    return load_dataset(task, rows, SPACE, str(folder), used_folds={FOLD}, seed=0, gpus_per_task=0)


def train(dataset: Dataset, folder: Path, disturb: Callable[[Reports], None] | None = None) -> tuple[Outcome, Reports]:
    """Train one trial as a sweep does; from another thread `disturb` is called in the midst of its third epoch."""
    reports = Reports()

    def when_due():
        reports.wait_for(lambda: 2 in reports.epochs)
        time.sleep(0.05)
        assert reports.epochs[-1] < EPOCHS, "the trial was faster than this test"
        disturb(reports)

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(when_due) if disturb else None
        chosen = [(FOLD, {"model": SPACE.model, **CONFIG})]
        (outcome,) = train_chosen(
            dataset, chosen, resources=Resources(1, 0, 1), folder=f"{folder}/run", watch=[reports]
        )
        if disturbed:
            disturbed.result()
    return outcome, reports


def without_seconds(history: list[dict]) -> list[dict]:
    return [epoch | {"seconds": 0} for epoch in history]


@pytest.fixture(scope="module")
def whole(ray_session, tmp_path_factory) -> tuple[list[dict], np.ndarray]:
    """History and predictions of a training that knows nothing of Ray."""
    dataset = formulas(tmp_path_factory.mktemp("whole"))
    # Copied, for torch warns of arrays that cannot be written to, as those in Ray's store.
    fold, rows, task = deepcopy(ray.get(dataset.trial_folds[FOLD])), ray.get(dataset.rows_ref), dataset.task
    model = open_model(SPACE.model)
    with one_thread():
        run = model.start(model.config(**CONFIG), rows, fold.part(task), "cpu")
        for _ in run.epochs():
            pass
        predicted = run.fitted().predict_rows(rows, fold.test).values
    return without_seconds([asdict(epoch) for epoch in run.history]), predicted


def check_equal(outcome: Outcome, whole: tuple[list[dict], np.ndarray]) -> None:
    """To the last bit."""
    assert outcome.error is None
    assert without_seconds(outcome.history) == whole[0]
    filesystem, path = outcome.folder
    with np.load(io.BytesIO(read_whole(filesystem, f"{path}/{PREDICTIONS_FILE}"))) as predicted:
        np.testing.assert_array_equal(predicted["test"], whole[1])


def check_gone_on_elsewhere(reports: Reports) -> None:
    """In another process, with at most one epoch trained again."""
    first = [epoch for epoch, pid in zip(reports.epochs, reports.pids, strict=True) if pid == reports.pids[0]]
    then = reports.epochs[len(first) :]
    assert first == list(range(len(first)))
    assert then[0] in (first[-1], first[-1] + 1)  # the epoch it was in, or the one that had just ended
    # The last one twice, again with the predictions; once where the first process had reported it and not yet these.
    assert then in ([*range(then[0], EPOCHS + 1), EPOCHS], [EPOCHS] if first[-1] == EPOCHS else None)
    assert len({*reports.pids}) == 2


def test_a_killed_worker_costs_an_epoch_and_changes_nothing(ray_session, whole, tmp_path):
    outcome, reports = train(formulas(tmp_path), tmp_path, lambda reports: os.kill(reports.pids[-1], signal.SIGKILL))
    check_gone_on_elsewhere(reports)
    check_equal(outcome, whole)


@pytest.mark.parametrize("lacking", ["search_gen_state-*", *whole_only("searcher-state-*")])
def test_a_first_record_that_a_kill_cut_short_is_begun_anew(ray_session, whole, tmp_path, lacking):
    """On its way to a bucket: of the files of a record some are there and others are not."""
    dataset = formulas(tmp_path)
    train(dataset, tmp_path)
    (folder,) = tmp_path.glob("run-*")
    for file in folder.glob(lacking):
        file.unlink()
    outcome, reports = train(dataset, tmp_path)
    check_equal(outcome, whole)
    assert reports.epochs == [] or reports.epochs[0] == 0  # those of a new experiment, whose callbacks are new


@pytest.mark.whole
def test_trials_are_told_to_end_as_often_as_it_takes(ray_session, whole, tmp_path, monkeypatch):
    """As by spot machines that are taken back: no restart that a killed worker may cost is used up."""
    monkeypatch.setattr(experiment, "MAX_FAILURES", 1)

    def tell_twice(reports):
        for _ in range(2):
            told = reports.pids[-1]
            os.kill(told, signal.SIGTERM)
            reports.wait_for(lambda told=told: reports.pids[-1] != told)

    outcome, reports = train(formulas(tmp_path), tmp_path, tell_twice)
    assert len({*reports.pids}) == 3
    assert sorted({*reports.epochs}) == list(range(EPOCHS + 1))
    check_equal(outcome, whole)


@pytest.mark.whole
def test_a_disk_that_fills_in_mid_trial_ends_it_with_a_sentence_and_it_goes_on_when_there_is_room(
    ray_session, whole, tmp_path, disk_of, monkeypatch
):
    monkeypatch.setattr(experiment, "MAX_FAILURES", 0)  # each further attempt takes a new worker, and nothing is new
    dataset, disk = formulas(tmp_path), disk_of("40m")
    ballast = disk / "ballast"
    with pytest.raises(StorageError, match=rf"^cannot write {disk}/run-.*/state\.pt: the disk is full[^\n]*$"):
        train(dataset, disk, lambda reports: ballast.write_bytes(bytes(30 << 20)))
    assert not list(disk.rglob(".part-*"))
    ballast.unlink()
    outcome, _ = train(dataset, disk)
    (trial,) = disk.glob("run-*/trial_*")
    told = [event.step for event in EventAccumulator(str(trial)).Reload().Scalars("lr")]
    assert len(told) <= EPOCHS + 3  # the last one twice, and at most one other: it went on
    check_equal(outcome, whole)


OVERFLOWING = """\
import numpy as np
from models.model import Model, ModelConfig, Prediction, fitted_once

class Overflowing:
    def predict_rows(self, rows, which):
        return Prediction(np.full(len(which), np.inf))

def fit(config, rows, part):
    with open({file!r}, "a") as file:
        file.write("started\\n")
    return Overflowing()

MODEL = Model("overflowing", ModelConfig, "compositions", fitted_once(fit), lambda content, device: Overflowing())
"""


def test_a_trial_that_its_model_has_ended_is_started_only_once_more(ray_session, tmp_path):
    """What the model has done it does again; a machine that dies is what trials have their five further tries for."""
    (tmp_path / "overflowing.py").write_text(OVERFLOWING.format(file=str(tmp_path / "starts")))
    chosen = [(FOLD, {"model": str(tmp_path / "overflowing.py")})]
    (outcome,) = train_chosen(
        formulas(tmp_path), chosen, resources=Resources(1, 0, 1), folder=f"{tmp_path}/run", watch=[]
    )
    assert "BadPredictionsError: Overflowing.predict_rows returned values of which" in outcome.error
    assert (tmp_path / "starts").read_text().splitlines() == ["started"] * 2


LINGERING = """\
import time
from dataclasses import replace
from models.crystals.composition.model import COMPOSITION_NETWORK

class Lingering:
    def __init__(self, run):
        self.run = run

    def __getattr__(self, name):
        return getattr(self.run, name)

    def epochs(self):
        try:
            yield from self.run.epochs()
        finally:
            time.sleep(4)

def start(*arguments):
    return Lingering(COMPOSITION_NETWORK.start(*arguments))

MODEL = replace(COMPOSITION_NETWORK, name="lingering", start=start)
"""


class StopsEarly(ray.tune.Callback):
    """Has trials stopped after their first epoch."""

    def on_trial_start(self, iteration, trials, trial, **info):
        trial.stopping_criterion = {"epoch": 1}


def test_a_trial_that_takes_long_to_stand_still_does_not_cost_the_next_one(ray_session, tmp_path):
    """As on a machine that is busy with other things: Ray waits for 2 s by itself, and then fails the next trial."""
    (tmp_path / "lingering.py").write_text(LINGERING)
    chosen = [(FOLD, {**CONFIG, "model": str(tmp_path / "lingering.py"), "seed": seed}) for seed in (0, 1)]
    outcomes = train_chosen(
        formulas(tmp_path), chosen, resources=Resources(1, 0, 1), folder=f"{tmp_path}/run", watch=[StopsEarly()]
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.history[-1]["epoch"] for outcome in outcomes] == [1, 1]


FRAGILE = """\
import os, pathlib, signal
import numpy as np
from models.model import Model, ModelConfig, Prediction, fitted_once

class Ones:
    def predict_rows(self, rows, which):
        return Prediction(np.ones(len(which)))

    def content(self):
        return {{}}

def fit(config, rows, part):
    here = pathlib.Path({folder!r})
    if not (here / "room").exists():
        raise OSError("no room")
    if not (here / "killed").exists():
        (here / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Ones()

MODEL = Model("fragile", ModelConfig, "compositions", fitted_once(fit), lambda content, device: Ones())
"""


@pytest.mark.whole
def test_a_trial_that_had_used_up_its_restarts_has_them_again_when_it_goes_on(ray_session, tmp_path, monkeypatch):
    """An outage that ended it is over; a worker that is killed then costs one of them, and not the trial."""
    monkeypatch.setattr(experiment, "MAX_FAILURES", 1)
    (tmp_path / "fragile.py").write_text(FRAGILE.format(folder=str(tmp_path)))
    dataset, chosen = formulas(tmp_path), [(FOLD, {"model": str(tmp_path / "fragile.py")})]

    def trained():
        (outcome,) = train_chosen(dataset, chosen, resources=Resources(1, 0, 1), folder=f"{tmp_path}/run", watch=[])
        return outcome.error

    assert "OSError: no room" in trained()
    (tmp_path / "room").touch()
    assert trained() is None
    assert (tmp_path / "killed").exists()


@pytest.fixture
def jump(ray_session, tmp_path):
    """Sets time.time() apart by some hours, in this driver, in Ray's own Python processes and in the workers."""
    source = JUMPING.format(file=str(tmp_path / "seconds"))
    (tmp_path / "sitecustomize.py").write_text(source)
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        patch.setattr(time, "time", time.time)  # so that it is put back
        exec(source, {})
        connect()

        def to(hours: float) -> None:
            (tmp_path / "new").write_text(str(hours * 3600))
            (tmp_path / "new").rename(tmp_path / "seconds")

        yield to
        ray.shutdown()
    connect()


@pytest.mark.whole
def test_a_clock_that_jumps_in_mid_trial_changes_nothing(jump, whole, tmp_path):
    def jump_ahead_and_back(reports):
        jump(5)
        reports.wait_for(lambda: 3 in reports.epochs)
        jump(-5)

    outcome, reports = train(formulas(tmp_path), tmp_path, jump_ahead_and_back)
    assert reports.epochs == [*range(EPOCHS + 1), EPOCHS]  # nothing was restarted
    assert all(0 <= epoch["seconds"] < 3600 for epoch in outcome.history)
    check_equal(outcome, whole)


@pytest.fixture(scope="module")
def cluster(ray_session):
    """A head with one CPU, which notices within seconds, and not after a minute, that a node does not answer."""
    ray.shutdown()
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket in it may have 107 characters
    impatient = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 250,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 5,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)  # /tmp/ray may hold the address of another cluster, which this would replace
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": impatient}
        running = Cluster(initialize_head=True, head_node_args=head)
        connect(running.address)
        yield running
        ray.shutdown()
        running.shutdown()
    shutil.rmtree(folder)
    connect()


@pytest.mark.whole
@pytest.mark.parametrize("how", ["lost", *whole_only("cut off")])
def test_a_trial_whose_node_is_gone_goes_on_on_another(cluster, whole, tmp_path, how):
    """One that is cut off is stopped, so that its connections stay open and nothing answers; later it comes back."""
    head_is_taken = placement_group([{"CPU": 1}])
    ray.get(head_is_taken.ready())
    node = cluster.add_node(num_cpus=1)
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    def lose(reports):
        assert psutil.Process(reports.pids[-1]).ppid() == raylet.pid
        remove_placement_group(head_is_taken)
        if how == "lost":
            cluster.remove_node(node, allow_graceful=False)
            return
        stopped = [raylet, *raylet.children(recursive=True)]
        for process in stopped:
            process.suspend()
        reports.wait_for(lambda: reports.pids[-1] != reports.pids[0])
        for process in stopped:
            process.resume()

    outcome, reports = train(formulas(tmp_path), tmp_path, lose)
    check_gone_on_elsewhere(reports)
    check_equal(outcome, whole)
    if how == "cut off":
        raylet.wait(60)  # it ends as soon as it hears that it was given up
