"""cluster.yaml against Ray's own schema, and against what that schema does not look at."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()

# vCPUs and L4s of the machine types that may stand in the file.
MACHINES = {
    "e2-standard-4": (4, 0),
    "e2-standard-8": (8, 0),
    "e2-standard-16": (16, 0),
    "g2-standard-4": (4, 1),
    "g2-standard-8": (8, 1),
    "g2-standard-12": (12, 1),
    "g2-standard-16": (16, 1),
    "g2-standard-24": (24, 2),
    "g2-standard-48": (48, 4),
}
SECRETS = re.compile(
    r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{20}|ya29\."
    r"|(password|passwd|secret|token|private_key|credentials)\w*\s*:\s*\S",
    re.IGNORECASE,
)


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def faults(config: dict[str, Any]) -> list[str]:
    """What Google or Ray would trip over only when the cluster is already being started."""
    found = []
    types = config["available_node_types"]
    head = config["head_node_type"]
    zone = config["provider"]["availability_zone"]
    if not zone.startswith(config["provider"]["region"] + "-"):
        found.append("zone is not of the region")
    if types[head]["resources"].get("GPU") or "guestAccelerators" in types[head]["node_config"]:
        found.append("head has a GPU")
    workers = {name: node for name, node in types.items() if name != head}
    if sum(node["max_workers"] for node in workers.values()) != config["max_workers"]:
        found.append("max_workers of the types do not add up to the global one")
    for name, node in types.items():
        spec = node["node_config"]
        cpus, gpus = MACHINES.get(spec["machineType"], (0, 0))
        if not cpus:
            found.append(f"{name}: unknown machine type")
        if (node["resources"]["CPU"], node["resources"].get("GPU", 0)) != (cpus, gpus):
            found.append(f"{name}: resources are not those of its machine type")
        stated = {(a["acceleratorType"], a["acceleratorCount"]) for a in spec.get("guestAccelerators", [])}
        if stated != ({("nvidia-l4", gpus)} if gpus else set()):
            found.append(f"{name}: accelerators are not those of its machine type")
        scheduling = spec.get("scheduling", {})
        if gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
            found.append(f"{name}: a GPU machine cannot migrate")
        spot = scheduling.get("provisioningModel", "STANDARD") == "SPOT"
        if spot and (name == head or scheduling.get("automaticRestart", True)):
            found.append(f"{name}: spot on the head, or with automatic restart")
        if "instanceTerminationAction" in scheduling and not spot:
            found.append(f"{name}: a termination action is for spot machines")
        disk = spec["disks"][0]["initializeParams"]
        if disk["diskType"] != f"zones/{zone}/diskTypes/pd-balanced":
            found.append(f"{name}: boot disk is not pd-balanced in the zone")
        if disk["sourceImage"] != types[head]["node_config"]["disks"][0]["initializeParams"]["sourceImage"]:
            found.append(f"{name}: another image than the head, so perhaps another Python")
        accounts = [account["email"] for account in spec.get("serviceAccounts", [])]
        project = config["provider"]["project_id"]
        if name != head and accounts != [f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"]:
            found.append(f"{name}: no account of the project, so no bucket")
    return found


def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


def test_no_faults(config):
    assert faults(config) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("max_workers",), 4, "add up"),
        (("provider", "availability_zone"), "europe-west4-a", "region"),
        (("available_node_types", "head", "resources"), {"CPU": 8, "GPU": 1}, "head has a GPU"),
        (("available_node_types", "worker_l4", "resources"), {"CPU": 8, "GPU": 2}, "resources"),
        (("available_node_types", "worker_l4", "node_config", "machineType"), "n1-standard-8", "unknown"),
        (("available_node_types", "worker_l4", "node_config", "guestAccelerators"), [], "accelerators"),
        (("available_node_types", "worker_l4", "node_config", "scheduling"), {}, "migrate"),
        (("available_node_types", "worker_l4", "node_config", "serviceAccounts"), [], "bucket"),
        (("provider", "project_id"), "another", "bucket"),
    ],
)
def test_a_fault_is_found(config, path, value, fault):
    broken = copy.deepcopy(config)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(fault in found for found in faults(broken)), faults(broken)


def test_gpu_workers_come_and_go_and_are_spot(config):
    worker = config["available_node_types"]["worker_l4"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert worker["node_config"]["machineType"] == "g2-standard-8"
    assert worker["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_the_on_demand_line_is_ready(config):
    on_demand = re.search(r"^ *# (scheduling: \{.*STANDARD.*\})$", TEXT, re.MULTILINE)
    assert on_demand
    config["available_node_types"]["worker_l4"]["node_config"] |= yaml.safe_load(on_demand[1])
    assert faults(config) == []
    validate_config(prepare_config(config))


def test_no_credentials():
    assert not SECRETS.search(TEXT)
    assert "gcp_credentials" not in TEXT


@pytest.mark.parametrize("text", ["password: x", "-----BEGIN RSA PRIVATE KEY-----", "gcp_credentials: {a: b}"])
def test_credentials_would_be_found(text):
    assert SECRETS.search(text)


def test_tells_what_to_edit_and_where_results_go():
    assert TEXT.count("my-project-id") == 2
    edited = [line for line in TEXT.splitlines() if "# EDIT" in line]
    named = [line for line in TEXT.splitlines() if re.search(r"my-project-id|us-central1", line)]
    assert edited == named
    assert "gs://BUCKET" in TEXT


def test_mounts_the_code_and_nothing_that_a_sweep_writes(config):
    for remote, local in config["file_mounts"].items():
        assert (ROOT / local).exists()
        assert remote == f"~/matsweep/{local}"
    assert {"data", "models", "tune", "search_spaces"} <= set(config["file_mounts"].values())
    assert {".venv", "ray_results", "__pycache__"} <= set(config["rsync_exclude"])


def test_nodes_install_the_locked_project_and_find_it_first(config):
    assert config["setup_commands"][-1] == "cd ~/matsweep && make setup EXTRAS=gcp"
    assert '"$HOME/matsweep/.venv/bin:$PATH"' in config["setup_commands"][0]


def test_the_dashboard_listens_on_the_head_only(config):
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in TEXT
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
