"""Several nodes: a folder that one of them does not see is refused before anything starts.

The nodes share this machine, in a process and a mount namespace of their own: what one starts ends with it, no other
Ray is met, and a node that does not see a folder is one that has an empty disk mounted over it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from s3_server import s3_server

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """\
set -e
mount -t tmpfs tmpfs /tmp/ray
ray() { "$PYTHON" -m ray.scripts.scripts "$@" > /dev/null 2>&1; }
ray start --head --port=0 --num-cpus=1 --include-dashboard=false $HEAD --block &
until test -s /tmp/ray/ray_current_cluster; do sleep 0.2; done
address=$(cat /tmp/ray/ray_current_cluster)
if test -n "$BLIND"; then
    unshare --mount sh -c 'mount -t tmpfs tmpfs "$BLIND" && exec "$PYTHON" -m ray.scripts.scripts start \
        --address='"$address"' --num-cpus=1 --block > /dev/null 2>&1' &
fi
"$PYTHON" driver.py "$address"
"""
DRIVER = """\
import os, sys, time
import ray
from data.machine.ray_session import connect
from data.machine.ray_internals import has_autoscaler
from tune.cluster.storage_check import check_storage

connect(sys.argv[1])
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not (has_autoscaler() or len([n for n in ray.nodes() if n["Alive"]]) > 1):
    time.sleep(0.2)
for place in os.environ["PLACES"].split():
    try:
        check_storage({"--storage": place, "--cache": os.environ["CACHE"]}, cluster=True)
        print("fine:", place, flush=True)
    except Exception as problem:
        print(type(problem).__name__, problem, flush=True)
"""
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode != 0,
    reason="namespaces are not permitted here",
)


def said(tmp_path, places, *, blind="", head="", more=None):
    """What the check says of each place, asked by a driver beside the head node."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        **(more or {}),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "PLACES": " ".join(map(str, places)),
        "CACHE": str(tmp_path / "cache"),
        "BLIND": str(blind),
        "HEAD": head,
        "RAY_AUTH_MODE": "disabled",
    }
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", SCRIPT],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_a_folder_that_a_node_does_not_see_is_refused_and_shared_ones_pass(tmp_path):
    seen, blind = tmp_path / "seen", tmp_path / "blind"
    seen.mkdir()
    blind.mkdir()
    with s3_server("bucket") as server:
        lines = said(tmp_path, [blind, seen, "s3://bucket/results"], blind=blind, more=server.environment)
    assert lines[0].startswith(f"SweepError --storage {blind}: node ")
    assert "does not see what" in lines[0]
    assert "gs://BUCKET" in lines[0]
    assert lines[1:] == [f"fine: {seen}", "fine: s3://bucket/results"]
    assert not list(tmp_path.rglob(".probe-*"))


def test_a_local_folder_is_refused_where_an_autoscaler_may_add_nodes(tmp_path):
    node = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2}
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "head_resources": {"CPU": 1}},
        "available_node_types": {"head": node | {"max_workers": 0}, "worker": node | {"min_workers": 0}},
        "head_node_type": "head",
        "upscaling_speed": 1,
        "idle_timeout_minutes": 1,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    head = f"--autoscaling-config={tmp_path}/cluster.yaml"
    places = [tmp_path / "results", f"file://{tmp_path}/results"]
    lines = said(tmp_path, places, head=head, more={"RAY_FAKE_CLUSTER": "1"})
    for place, line in zip(places, lines, strict=True):
        assert line.startswith(f"SweepError --storage {place}: it is on a disk of this machine")
