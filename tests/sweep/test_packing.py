"""How many trials share a GPU. There is a Ray GPU in these tests and no real one: memory is that of the processes.

The sweep with `--gpus-per-trial auto` runs as it is, but for four functions of `torch.cuda` and for its model, which
computes on the CPU whatever the device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import tune.sweep.packing
from data.crystals.task_table import DEMO
from data.stores.places import default_cache
from data.tasks import open_task
from models.crystals.chgnet.features import GRAPHS_PER_PASS
from models.crystals.composition.model import COMPOSITION_NETWORK
from models.crystals.rows import CrystalRows
from tune.dataset.dataset import load_dataset
from tune.dataset.trial_fold import TrialFold
from tune.records.folder import Folder
from tune.runs import load_sweep
from tune.spaces.space import SearchSpace
from tune.sweep.packing import Probe, most_demanding, probe, share, share_of_gpu

REPOSITORY = Path(__file__).resolve().parents[2]
GB = 10**9

# A GPU of 24 GB. A row trained on takes 0.5 GB, so 32 take 16; a probe is told of 9, and two trials share it.
FAKE_GPU = """\
import json
import os

import torch

GB, TOTAL = 10**9, 24 * 10**9
limit = TOTAL


def log(**event):
    with open(os.environ["FAKE_GPU_LOG"], "a") as file:
        file.write(json.dumps(event) + "\\n")


def hold(fraction):
    global limit
    limit = fraction * TOTAL
    log(event="held", fraction=fraction)


def mem_get_info():
    log(event="probed")
    return TOTAL - 9 * GB, TOTAL


def take(network, arguments, greedy):
    taken = 13 * GB if greedy else len(arguments[0]) * GB / 2
    if (network.training or greedy) and taken > limit:
        raise torch.OutOfMemoryError("CUDA out of memory, as a test asked for")


def install():
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda device: "fake GPU"
    torch.cuda.set_per_process_memory_fraction = hold
    torch.cuda.mem_get_info = mem_get_info
"""
# Trials wait for one another until two have met, and a little longer for a third that must not come.
MODEL = """\
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_gpu
import ray
from models.crystals.composition.model import COMPOSITION_NETWORK


def start(config, rows, part, device):
    if device == "cuda" and fake_gpu.limit < fake_gpu.TOTAL:
        meet()
    run = COMPOSITION_NETWORK.start(config, rows, part, "cpu")
    run.network.register_forward_pre_hook(partial(fake_gpu.take, greedy=config.head_width == 20))
    return run


def meet():
    here = Path(os.environ["FAKE_GPU_LOG"]).parent
    running = here / f"running-{os.getpid()}"
    running.touch()
    until = time.monotonic() + 20
    while not (here / "met").exists() and time.monotonic() < until:
        if len(list(here.glob("running-*"))) > 1:
            (here / "met").touch()
        time.sleep(0.02)
    time.sleep(0.5)
    at_once = len(list(here.glob("running-*")))
    running.unlink()
    given = ray.get_runtime_context().get_assigned_resources()
    fake_gpu.log(event="trial", at_once=at_once, gpu=given.get("GPU", 0))


MODEL = replace(COMPOSITION_NETWORK, name="fake", start=start)
"""
SPACE = """\
num_samples: 3
grace_epochs: 1
model: {folder}/fake_model.py
parameters:
  head_width: {{choice: [8, 12, 20]}}
  epochs: 2
"""
# Where a trial fails it is not tried again here, which takes half a minute; tests/trials/test_search.py shows it.
SWEEP = """\
import ray, shutil, sys
from pathlib import Path
import tune.trials.experiment
from tune.run_sweep import app

tune.trials.experiment.MAX_FAILURES = 0
storage = sys.argv[1]
ray.init(
    address="local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False,
    runtime_env={"worker_process_setup_hook": "fake_gpu.install"},
)
app([f"--storage={storage}", *sys.argv[2:]], standalone_mode=False)
print("RESUMED", file=sys.stderr)
with open(Path(storage).parent / "log", "a") as log:
    print('{"event": "resumed"}', file=log)
(trained,) = Path(storage).glob("x/evaluate-*")
shutil.rmtree(trained)
app([f"--storage={storage}", "--resume=x"], standalone_mode=False)
"""

QUEUE = """\
baseline: {{model: {folder}/fake_model.py, parameters: {{head_width: 8, epochs: 2}}}}
experiments: {{wider: {{head_width: 12}}}}
"""
RUN_QUEUE = """\
import ray, sys
from tune.run_queue import app

ray.init(
    address="local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False,
    runtime_env={"worker_process_setup_hook": "fake_gpu.install"},
)
app(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.parametrize(
    ("used", "trials"), [(1.0, 19), (4.0, 4), (7.0, 2), (11.0, 1), (30.0, 1)]
)  # of 24 GB with a margin
def test_as_many_trials_as_memory_holds(used, trials):
    given = share([Probe({}, int(used * GB), 24 * GB)])
    assert int(1 / given) == trials
    assert given * 1000 == pytest.approx(round(given * 1000))


def test_trials_are_told_apart_by_what_they_cost_also_where_that_is_the_default():
    searched = SearchSpace(name="x", parameters={"batch_size": {"choice": [4, 16]}, "epochs": 30})
    assert most_demanding(searched) == {("readout",): {"batch_size": 16, "epochs": 30}}


def test_the_most_demanding_depth_decides():
    probes = [Probe({"freeze_depth": "readout"}, GB, 24 * GB), Probe({"freeze_depth": "full"}, 7 * GB, 24 * GB)]
    assert share(probes) == 0.5


def on_fake_gpu(folder: Path, code: str, *arguments: str) -> tuple[list[dict], str]:
    """Run code with a fake GPU, a task and a model of its own; what the GPU and the trials have logged, and stderr."""
    (folder / "fake_gpu.py").write_text(FAKE_GPU)
    (folder / "fake_model.py").write_text(MODEL)
    formulas = [f"Na{n}Cl{m}" for n in range(1, 15) for m in range(1, 15)]
    (folder / "task.csv").write_text(
        "composition,target\n" + "".join(f"{formula},{k % 14 - k / 14}\n" for k, formula in enumerate(formulas))
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, *arguments,
            "--name=x", f"--task={folder}/task.csv", "--folds=0", "--gpus-per-trial=auto",
        ],
        cwd=REPOSITORY,
        env={
            **os.environ, "PYTHONPATH": f"{REPOSITORY}:{folder}", "MATSWEEP_CACHE": f"{folder}/cache",
            "FAKE_GPU_LOG": f"{folder}/log",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()], done.stderr


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A sweep with `--gpus-per-trial auto`, and resumed with its final training gone: its folder, log and output."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "space.yaml").write_text(SPACE.format(folder=folder))
    return folder, *on_fake_gpu(folder, SWEEP, f"{folder}/results", f"--space={folder}/space.yaml")


@pytest.mark.whole
def test_the_share_is_measured_once_and_known_when_a_sweep_goes_on(packed):
    folder, events, output = packed
    known = json.loads((folder / "results/x/packing.json").read_text())
    assert known["share"] == 0.5
    assert [one["used_bytes"] for one in known["probes"]] == [9 * GB]
    assert [event["event"] for event in events].count("probed") == 1
    first, again = output.split("RESUMED")
    assert "9.00 of 24.0 GB" in first
    assert "2 trials share a GPU (--gpus-per-trial 0.5)" in first
    assert "share a GPU" not in again


@pytest.mark.whole
def test_as_many_trials_run_at_once_as_the_share_says_and_each_is_held_to_it(packed):
    """There are processors for three."""
    _, events, _ = packed
    resumed = [event["event"] for event in events].index("resumed")
    for part in (events[:resumed], events[resumed:]):
        trials = [event for event in part if event["event"] == "trial"]
        assert {trial["gpu"] for trial in trials} == {0.5}
        assert {event["fraction"] for event in part if event["event"] == "held"} == {0.5}
    assert max(event["at_once"] for event in events if event["event"] == "trial") == 2


@pytest.mark.slow
def test_the_experiments_of_a_queue_are_packed_too(tmp_path):
    (tmp_path / "queue.yaml").write_text(QUEUE.format(folder=tmp_path))
    events, _ = on_fake_gpu(tmp_path, RUN_QUEUE, f"--storage={tmp_path}", f"--queue={tmp_path}/queue.yaml")
    for name in ("baseline", "wider"):
        assert json.loads((tmp_path / "x" / name / "packing.json").read_text())["share"] == 0.5
    trials = [event for event in events if event["event"] == "trial"]
    assert {trial["gpu"] for trial in trials} == {0.5}


@pytest.mark.whole
def test_where_a_probe_was_too_hopeful_trials_take_more_passes_and_the_sweep_goes_on(packed):
    """What does not fit at all fails for itself; half of a batch is 8 GB, and a share of the GPU 12."""
    folder, _, _ = packed
    sweep = load_sweep(str(folder / "results/x"))
    trials = sweep.trials.set_index("config.head_width")
    assert "OutOfMemoryError: CUDA out of memory" in trials.loc[20, "failed"]
    assert sorted(trials.index[trials["failed"].isna()]) == [8, 12]
    assert sorted(trials.index) == [8, 12, 20]
    trained = sweep.histories[sweep.histories["member"] != "reference"].groupby("epoch")["parts"]
    assert trained.unique().map(list).to_dict() == {0: [1], 1: [2], 2: [2]}
    assert sweep.configs[0]["head_width"] != 20


def test_the_share_is_measured_again_where_another_space_takes_more(tmp_path, monkeypatch):
    asked = []

    def fake_probe(space, _dataset, fold):
        asked.append(fold)
        (config,) = tune.sweep.packing.most_demanding(space).values()
        return [Probe(config, config["batch_size"] * GB // 4, 24 * GB)]

    monkeypatch.setattr(tune.sweep.packing, "probe", fake_probe)
    options, folder = SimpleNamespace(search_folds=[3], folds=[1]), Folder(str(tmp_path))
    small, large = (
        SearchSpace(name="x", parameters={"batch_size": {"choice": sizes}, "lr": {"loguniform": [1e-4, 1e-2]}})
        for sizes in ([8, 16], [8, 32])
    )
    assert share_of_gpu(options, small, None, folder) == 0.25
    assert share_of_gpu(options, small, None, folder) == 0.25
    assert asked == [3]
    assert share_of_gpu(options, large, None, folder) == 0.5
    assert share_of_gpu(options, large, None, folder) == 0.5
    assert asked == [3, 3]


def test_a_probe_predicts_as_many_rows_at_once_as_a_trial(monkeypatch):
    """Of a batch of 2 alone it would not see what judging a trial takes."""
    seen = []

    def start(config, rows, part, device):
        seen.append(part)
        return COMPOSITION_NETWORK.start(config, rows, part, device)

    monkeypatch.setattr(tune.sweep.packing, "open_model", lambda _: replace(COMPOSITION_NETWORK, start=start))
    random = np.random.default_rng(0)
    n_atoms = random.permutation(600).astype(np.int32) + 1
    rows = CrystalRows(random.dirichlet(np.ones(94), 600).astype(np.float32), n_atoms)
    everything = np.arange(600)
    fold = TrialFold(random.random(600), everything[:550], everything[550:], everything[:0])
    tune.sweep.packing._probe(rows, fold, "any", {"batch_size": 2, "width": 8}, DEMO, "cpu")
    (part,) = seen
    largest = everything[:550][np.argsort(-n_atoms[:550])]
    assert part.train.tolist() == largest[:4].tolist()
    assert part.val.tolist() == largest[:GRAPHS_PER_PASS].tolist()


@pytest.mark.usefixtures("ray_session")
def test_every_depth_is_probed_with_its_largest_batch(tmp_path):
    task, rows = open_task("demo", download_dir=default_cache())
    rows = rows.select(list(range(0, len(rows), 16)), "a few")
    parameters = {"freeze_depth": {"choice": ["readout", "full"]}, "batch_size": {"choice": [4, 16]}, "epochs": 30}
    space = SearchSpace(name="x", parameters=parameters)
    dataset = load_dataset(task, rows, space, str(tmp_path), used_folds={0}, seed=0, gpus_per_task=0)
    probes = probe(space, dataset, 0, device="cpu")
    assert [(one.config["freeze_depth"], one.config["batch_size"]) for one in probes] == [("readout", 16), ("full", 16)]
    assert all(100e6 < one.used_bytes < one.total_bytes for one in probes)


@pytest.mark.whole
def test_where_ray_has_a_gpu_and_torch_none_the_sweep_says_so(tmp_path):
    ids = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet", columns=["id"])["id"]
    (tmp_path / "ids.txt").write_text("\n".join(ids.iloc[::16]))
    code = (
        "import ray, sys; from tune.run_sweep import app;"
        "ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False);"
        "app(sys.argv[1:])"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, "--gpus-per-trial=auto", f"--ids={tmp_path}/ids.txt",
            f"--storage={tmp_path}/results",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "MATSWEEP_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "NoGPUError" in done.stderr
    assert "use --gpus-per-trial 0" in done.stderr
    assert done.stderr.strip().splitlines()[-2].startswith(("NoGPUError", "RayTaskError")), done.stderr
