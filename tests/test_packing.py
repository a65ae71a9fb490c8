"""How many trials share a GPU. There is a Ray GPU in these tests and no real one: memory is that of the processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from data.build_cache import default_cache
from data.tasks import open_task
from tune.dataset import load_dataset
from tune.packing import Probe, probe, share
from tune.space import SearchSpace

REPOSITORY = Path(__file__).resolve().parent.parent
GB = 10**9


@pytest.mark.parametrize(
    ("used", "trials"), [(1.0, 19), (4.0, 4), (7.0, 2), (11.0, 1), (30.0, 1)]
)  # of 24 GB with a margin
def test_as_many_trials_as_memory_holds(used, trials):
    given = share([Probe({}, int(used * GB), 24 * GB)])
    assert int(1 / given) == trials
    assert given * 1000 == pytest.approx(round(given * 1000))


def test_the_most_demanding_depth_decides():
    probes = [Probe({"freeze_depth": "readout"}, GB, 24 * GB), Probe({"freeze_depth": "full"}, 7 * GB, 24 * GB)]
    assert share(probes) == 0.5


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
    assert done.stderr.strip().splitlines()[-1].startswith(("NoGPUError", "RayTaskError")), done.stderr
