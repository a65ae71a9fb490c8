"""`ray up` for real: a laptop and three hosts, the shared parts of cluster.yaml, and sweeps that outlive their hosts.

The tests share a cluster, and each goes on where the one before it left it. What cannot be had here is left out of
cluster.yaml: machines of a cloud, its image and drivers, a package index. The hosts see this checkout's environment.
"""

import json
import sys
import time

import pandas as pd
import pytest
import yaml
from machines import REPOSITORY, machines, missing

LACKING = missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

HOSTS = ("head", "first", "second")
SHARED = ("cluster_name", "upscaling_speed", "idle_timeout_minutes", "file_mounts", "rsync_exclude")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
CLUSTER = "/mnt/shared/cluster.yaml"
SPACE = """\
description: small, for tests
num_samples: 3
grace_epochs: {epochs}
parameters:
  freeze_depth: readout
  lr: {{loguniform: [0.0005, 0.01]}}
  epochs: {epochs}
  loss: huber
"""
SSH = ("-i", "/etc/ssh/key", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR")
SWEEP = "--task=demo --ids=/mnt/shared/ids.txt --folds=0 --address=auto --quiet"
SWEEP += " --storage=/mnt/shared/results --cache=/mnt/shared/graphs"


def cluster_file(machines):
    """cluster.yaml with hosts that are there already, and without what cannot be had here."""
    there = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    head, *workers = [machines.address(host) for host in machines.hosts]
    # One CPU each, so that three trials at once need all three hosts.
    starts = {key: [part.replace("ray start", "ray start --num-cpus=1") for part in there[key]] for key in STARTS}
    return {
        **{key: there[key] for key in SHARED},
        **starts,
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "auth": {"ssh_user": "root", "ssh_private_key": "/etc/ssh/key"},
        "setup_commands": [
            there["setup_commands"][0].replace("$HOME/matsweep/.venv", sys.prefix),
            # What `make setup` would do on a node: the packages of ~/matsweep are those that are imported.
            "echo 'export PYTHONPATH=$HOME/matsweep' >> ~/.bashrc",
        ],
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The machines, after `ray up`, when all hosts have joined."""
    with machines(tmp_path_factory.mktemp("cluster") / "machines", HOSTS) as running:
        (running.shared / "cluster.yaml").write_text(yaml.safe_dump(cluster_file(running), sort_keys=False))
        ids = pd.read_parquet(REPOSITORY / "data/demo/demo.parquet", columns=["id"])["id"]
        (running.shared / "ids.txt").write_text("\n".join(ids.iloc[::16]))
        running.run("bash", "-c", "ray get-auth-token --generate > /dev/null")
        running.run("ray", "up", "-y", CLUSTER)
        while f" {len(HOSTS)} local.cluster.node" not in (status := running.run("ray", "exec", CLUSTER, "ray status")):
            assert "no failures" in status or "No cluster status" in status, status  # the latter: Ray is starting
            time.sleep(2)
        yield running


def last_reports(cluster, name):
    """By trial, what Ray's record of a search holds of its last report: host, epoch, epochs since it was moved."""
    records = sorted((cluster.shared / "results" / name / "search_fold_0").glob("experiment_state*.json"))
    if not records:
        return {}
    try:
        trials = json.loads(records[-1].read_text())["trial_data"]
    except json.JSONDecodeError:  # it is being written
        time.sleep(0.1)
        return last_reports(cluster, name)
    reports = {json.loads(fixed)["trial_id"]: json.loads(state)["last_result"] for fixed, state in trials}
    return {trial: report for trial, report in reports.items() if "epoch" in report}


def newest_checkpoint(cluster, name, trial):
    """Its epoch."""
    folder = cluster.shared / "results" / name / "search_fold_0" / f"trial_{trial}"
    return max(int(path.name.rpartition("_")[2]) for path in folder.glob("checkpoint_*"))


def check_results(cluster, name, epochs):
    results = json.loads((cluster.shared / "results" / name / "results.json").read_text())
    assert [trial["epochs_done"] for trial in results["trials"]] == [epochs] * 3
    assert not any("failed" in trial for trial in results["trials"])
    for trial in results["trials"]:
        history = cluster.shared / "results" / name / f"search_fold_0/trial_{trial['trial']}/history_fold_0.csv"
        assert list(pd.read_csv(history)["epoch"]) == list(range(epochs + 1))
    predicted = pd.read_csv(cluster.shared / "results" / name / "seed_0/preds_fold_0.csv")
    assert len(predicted) == results["seeds"][0]["folds"][0]["n_test"] == 12


def test_trials_of_a_submitted_sweep_run_on_every_host(cluster):
    (cluster.shared / "short.yaml").write_text(SPACE.format(epochs=12))
    arguments = ["--space=/mnt/shared/short.yaml", "--name=whole", *SWEEP.split()]
    cluster.run("ray", "submit", CLUSTER, "tune/run_sweep.py", *arguments)
    check_results(cluster, "whole", 12)
    assert {report["hostname"] for report in last_reports(cluster, "whole").values()} == set(HOSTS)


def test_a_sweep_outlives_a_host_that_dies_and_one_that_is_cut_off(cluster, tmp_path):
    epochs, to_lose = 600, {"first", "second"}
    (cluster.shared / "long.yaml").write_text(SPACE.format(epochs=epochs))
    command = f"cd ~/matsweep && python tune/run_sweep.py --space=/mnt/shared/long.yaml --name=lost {SWEEP}"
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        sweep = cluster.start("ray", "exec", CLUSTER, command, output=file)
    trials = {}
    while not trials.keys() >= to_lose:
        assert sweep.poll() is None, f"over before a host was lost: {printed.read_text()}"
        time.sleep(0.5)
        reports = last_reports(cluster, "lost").items()
        trials = {report["hostname"]: trial for trial, report in reports if 5 < report["epoch"] < epochs - 100}
    cluster.kill("first")
    cluster.cut("second")
    lost = time.monotonic()
    reached = {host: newest_checkpoint(cluster, "lost", trials[host]) for host in to_lose}
    assert all(epoch < epochs for epoch in reached.values()), "a trial was faster than this test"
    while sweep.poll() is None:
        time.sleep(0.5)
        for host in to_lose & reached.keys():
            report = last_reports(cluster, "lost")[trials[host]]
            if report["hostname"] == "head":
                redone = reached.pop(host) - (report["epoch"] - report["iterations_since_restore"])
                print(f"{host}: its trial went on after {time.monotonic() - lost:.0f} s, {redone} ended epochs redone")
    assert sweep.returncode == 0, printed.read_text()
    print(f"the sweep ended {time.monotonic() - lost:.0f} s after it lost two of three hosts")
    assert not reached
    check_results(cluster, "lost", epochs)


def test_ray_down_ends_the_head(cluster):
    cluster.run("ray", "down", "-y", CLUSTER)
    running = cluster.run("ssh", *SSH, f"root@{cluster.address('head')}", "ps ax")
    assert "sshd" in running
    assert "raylet" not in running
    assert "gcs_server" not in running
