"""The cluster files against the schemas of Ray and KubeRay, and against what those do not look at."""

import copy
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.run_sweep import app

ROOT = Path(__file__).parents[2]
GOOGLE, AMAZON, KUBERAY = "cluster.yaml", "cluster.aws.yaml", "cluster.kuberay.yaml"
TEXTS = {name: (ROOT / name).read_text() for name in (GOOGLE, AMAZON, KUBERAY)}
every_file = pytest.mark.parametrize("name", TEXTS)
by_ray_up = pytest.mark.parametrize("name", [GOOGLE, AMAZON])

# vCPUs and L4s of the machine types that may stand in a file.
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
    "m6i.xlarge": (4, 0),
    "m6i.2xlarge": (8, 0),
    "m6i.4xlarge": (16, 0),
    "g6.xlarge": (4, 1),
    "g6.2xlarge": (8, 1),
    "g6.4xlarge": (16, 1),
    "g6.12xlarge": (48, 4),
}
# Smaller disks than the images themselves are refused.
MIN_DISK_GB = 100
SECRETS = re.compile(
    r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{20}|ya29\."
    r"|(password|passwd|secret|(?<!auth_)token|private_key|credentials|access_key)\w*\s*:\s*\S",
    re.IGNORECASE,
)


def load(name: str) -> Any:
    """A file for `ray up`, or the documents of the one for KubeRay by their kind."""
    documents = list(yaml.safe_load_all(TEXTS[name]))
    return {document["kind"]: document for document in documents} if name == KUBERAY else documents[0]


def faults(name: str, config: dict[str, Any]) -> list[str]:
    """What a cloud or Ray would trip over only when the cluster is already being started."""
    return list({GOOGLE: google_faults, AMAZON: amazon_faults, KUBERAY: kuberay_faults}[name](config))


def ray_up_faults(config: dict[str, Any], machine_key: str) -> Iterator[str]:
    """Of what both clouds have in common."""
    types = config["available_node_types"]
    head = config["head_node_type"]
    region = config["provider"]["region"]
    if not all(zone.startswith(region) for zone in config["provider"]["availability_zone"].split(",")):
        yield "zone is not of the region"
    if types[head]["resources"].get("GPU"):
        yield "head has a GPU"
    if sum(node["max_workers"] for key, node in types.items() if key != head) != config["max_workers"]:
        yield "max_workers of the types do not add up to the global one"
    for key, node in types.items():
        machine = node["node_config"][machine_key]
        if machine not in MACHINES:
            yield f"{key}: unknown machine type"
        elif (node["resources"]["CPU"], node["resources"].get("GPU", 0)) != MACHINES[machine]:
            yield f"{key}: resources are not those of its machine type"


def google_faults(config: dict[str, Any]) -> Iterator[str]:
    """Of Google Cloud."""
    yield from ray_up_faults(config, "machineType")
    types = config["available_node_types"]
    head = config["head_node_type"]
    zone, project = config["provider"]["availability_zone"], config["provider"]["project_id"]
    for key, node in types.items():
        spec = node["node_config"]
        gpus = MACHINES.get(spec["machineType"], (0, 0))[1]
        stated = {(a["acceleratorType"], a["acceleratorCount"]) for a in spec.get("guestAccelerators", [])}
        if stated != ({("nvidia-l4", gpus)} if gpus else set()):
            yield f"{key}: accelerators are not those of its machine type"
        scheduling = spec.get("scheduling", {})
        if gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
            yield f"{key}: a GPU machine cannot migrate"
        spot = scheduling.get("provisioningModel", "STANDARD") == "SPOT"
        if spot and (key == head or scheduling.get("automaticRestart", True)):
            yield f"{key}: spot on the head, or with automatic restart"
        if "instanceTerminationAction" in scheduling and not spot:
            yield f"{key}: a termination action is for spot machines"
        disk = spec["disks"][0]["initializeParams"]
        if disk["diskType"] != f"zones/{zone}/diskTypes/pd-balanced" or disk["diskSizeGb"] < MIN_DISK_GB:
            yield f"{key}: boot disk is small, or not pd-balanced in the zone"
        if disk["sourceImage"] != types[head]["node_config"]["disks"][0]["initializeParams"]["sourceImage"]:
            yield f"{key}: another image than the head, so perhaps another Python"
        accounts = [account["email"] for account in spec.get("serviceAccounts", [])]
        if key != head and accounts != [f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"]:
            yield f"{key}: no account of the project, so no bucket"


def amazon_faults(config: dict[str, Any]) -> Iterator[str]:
    """Of AWS."""
    yield from ray_up_faults(config, "InstanceType")
    types = config["available_node_types"]
    head = config["head_node_type"]
    if config["provider"].get("cache_stopped_nodes", True):
        yield "machines would be stopped, not ended, and their disks kept"
    if "security_group" in config["provider"]:
        yield "Ray's own security group lets in ssh only"
    for key, node in types.items():
        spec = node["node_config"]
        if key == head and "InstanceMarketOptions" in spec:
            yield f"{key}: spot on the head"
        if spec.get("InstanceMarketOptions", {"MarketType": "spot"}) != {"MarketType": "spot"}:
            yield f"{key}: an unknown market"
        disk = spec["BlockDeviceMappings"][0]
        if disk["DeviceName"] != "/dev/sda1" or disk["Ebs"]["VolumeSize"] < MIN_DISK_GB:
            yield f"{key}: boot disk is small, or not Ubuntu's /dev/sda1"
        if not disk["Ebs"]["DeleteOnTermination"]:
            yield f"{key}: its disk would outlive it"
        if spec["ImageId"] != types[head]["node_config"]["ImageId"]:
            yield f"{key}: another image than the head, so perhaps another Python"
        if not spec["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/"):
            yield f"{key}: an image that grows old, or is of one region only"
        if not spec.get("IamInstanceProfile", {}).get("Name"):
            yield f"{key}: no role, so no bucket"


# Fields of ray.io/v1, and of pods as far as they are used here. An unknown one is dropped without a word.
KUBERAY_FIELDS = {
    "RayCluster": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"},
    "autoscalerOptions": {"upscalingMode", "idleTimeoutSeconds", "resources", "version"},
    "head": {"serviceType", "rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "pod": {"serviceAccountName", "nodeSelector", "tolerations", "terminationGracePeriodSeconds", "containers"},
    "container": {"name", "image", "resources", "lifecycle"},
    "RayJob": {"clusterSelector", "entrypoint"},
}


def kuberay_faults(documents: dict[str, Any]) -> Iterator[str]:
    """Of KubeRay and of GKE."""
    from tune.trials.preemption import GRACE_S  # here, for torch takes seconds to import

    spec = documents["RayCluster"]["spec"]
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    parts = [("RayCluster", spec), ("autoscalerOptions", spec["autoscalerOptions"]), ("head", head)]
    parts += [("RayJob", documents["RayJob"]["spec"]), *(("worker", worker) for worker in workers)]
    pods = [group["template"]["spec"] for group in (head, *workers)]
    parts += [("pod", pod) for pod in pods] + [("container", pod["containers"][0]) for pod in pods]
    for kind, part in parts:
        if part.keys() - KUBERAY_FIELDS[kind]:
            yield f"{kind}: unknown {sorted(part.keys() - KUBERAY_FIELDS[kind])}"
    for kind in ("RayCluster", "RayJob"):
        if documents[kind]["apiVersion"] != "ray.io/v1":
            yield f"{kind}: not ray.io/v1"
    if documents["RayJob"]["spec"]["clusterSelector"] != {
        "ray.io/cluster": documents["RayCluster"]["metadata"]["name"]
    }:
        yield "RayJob: selects another cluster"
    if f"\nray=={spec['rayVersion']}\n" not in (ROOT / "constraints.txt").read_text():
        yield "rayVersion is not that of constraints.txt"
    if head["serviceType"] != "ClusterIP":
        yield "the dashboard is open to the outside"
    if not spec["enableInTreeAutoscaling"]:
        yield "no autoscaling"
    if len({worker["groupName"] for worker in workers}) < len(workers):
        yield "two groups of one name"
    for worker in workers:
        if not 0 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]:
            yield f"{worker['groupName']}: replicas are not between their limits"
        pod = worker["template"]["spec"]
        waits = re.search(r"waited -lt (\d+)", str(pod["containers"][0].get("lifecycle")))
        if not waits or not GRACE_S < int(waits[1]) < pod.get("terminationGracePeriodSeconds", 30):
            yield f"{worker['groupName']}: its trials have no time to save"
        selector = worker["template"]["spec"]["nodeSelector"]
        tolerated = {entry["key"] for entry in worker["template"]["spec"]["tolerations"]}
        if "gke-spot" in str(selector) and "cloud.google.com/gke-spot" not in tolerated:
            yield f"{worker['groupName']}: spot nodes are not tolerated"
        if selector.get("cloud.google.com/gke-accelerator") != "nvidia-l4" or "nvidia.com/gpu" not in tolerated:
            yield f"{worker['groupName']}: would not get to a node with an L4"
    for group, pod in zip(("head", *(worker["groupName"] for worker in workers)), pods, strict=True):
        (container,) = pod["containers"]
        offered = container["resources"]["limits"]
        if container["resources"]["requests"] != offered:
            yield f"{group}: requests and limits differ"
        if offered.get("nvidia.com/gpu", 0) != (group != "head"):
            yield f"{group}: not one GPU a worker and none on the head"
        if container["image"] != pods[0]["containers"][0]["image"]:
            yield f"{group}: another image than the head"
        if pod["serviceAccountName"] != documents["ServiceAccount"]["metadata"]["name"]:
            yield f"{group}: no account of ours, so no bucket"
    for group in (head, *workers):
        if not all(isinstance(value, str) for value in group["rayStartParams"].values()):
            yield "rayStartParams hold text only"


@by_ray_up
def test_ray_accepts_it(name):
    validate_config(prepare_config(load(name)))


@every_file
def test_no_faults(name):
    assert faults(name, load(name)) == []


HEAD, WORKER = ("available_node_types", "head"), ("available_node_types", "worker_l4")
RAY_CLUSTER = ("RayCluster", "spec")
POOL = (*RAY_CLUSTER, "workerGroupSpecs", 0)
CONTAINER = (*POOL, "template", "spec", "containers", 0)
BROKEN = [
    *[
        (name, path, value, fault)
        for name, zone in ((GOOGLE, "europe-west4-a"), (AMAZON, "us-west-2a,eu-west-1a"))
        for path, value, fault in (
            (("max_workers",), 4, "add up"),
            (("provider", "availability_zone"), zone, "region"),
            ((*HEAD, "resources"), {"CPU": 8, "GPU": 1}, "head has a GPU"),
            ((*WORKER, "resources"), {"CPU": 8, "GPU": 2}, "resources"),
        )
    ],
    (GOOGLE, (*WORKER, "node_config", "machineType"), "n1-standard-8", "unknown"),
    (GOOGLE, (*WORKER, "node_config", "guestAccelerators"), [], "accelerators"),
    (GOOGLE, (*WORKER, "node_config", "scheduling"), {}, "migrate"),
    (GOOGLE, (*WORKER, "node_config", "serviceAccounts"), [], "bucket"),
    (GOOGLE, ("provider", "project_id"), "another", "bucket"),
    (AMAZON, (*WORKER, "node_config", "InstanceType"), "g5.xlarge", "unknown"),
    (AMAZON, (*WORKER, "node_config", "ImageId"), "ami-0271ce88f6c03e149", "another image"),
    (AMAZON, (*WORKER, "node_config", "IamInstanceProfile"), {}, "bucket"),
    (AMAZON, (*HEAD, "node_config", "InstanceMarketOptions"), {"MarketType": "spot"}, "spot on the head"),
    (AMAZON, ("provider", "cache_stopped_nodes"), True, "stopped"),
    (KUBERAY, (*RAY_CLUSTER, "rayVersion"), "2.9.0", "constraints"),
    (KUBERAY, (*RAY_CLUSTER, "headGroupSpec", "serviceType"), "LoadBalancer", "open"),
    (KUBERAY, (*POOL, "maxReplica"), 8, "unknown"),
    (KUBERAY, (*POOL, "minReplicas"), 9, "limits"),
    (KUBERAY, (*POOL, "template", "spec", "nodeSelector"), {}, "L4"),
    (KUBERAY, (*POOL, "template", "spec", "tolerations"), [], "spot"),
    (KUBERAY, (*CONTAINER, "resources", "limits"), {"cpu": "6", "memory": "24Gi"}, "GPU"),
    (KUBERAY, (*CONTAINER, "image"), "rayproject/ray", "another image"),
    (KUBERAY, (*POOL, "template", "spec", "serviceAccountName"), "default", "bucket"),
    (KUBERAY, ("RayJob", "spec", "clusterSelector"), {"ray.io/cluster": "x"}, "another cluster"),
    (KUBERAY, (*CONTAINER, "lifecycle"), {}, "time to save"),
    (KUBERAY, (*POOL, "template", "spec", "terminationGracePeriodSeconds"), 20, "time to save"),
]


@pytest.mark.parametrize(("name", "path", "value", "fault"), BROKEN)
def test_a_fault_is_found(name, path, value, fault):
    broken = copy.deepcopy(load(name))
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert any(fault in found for found in faults(name, broken)), faults(name, broken)


@by_ray_up
def test_gpu_workers_come_and_go(name):
    config = load(name)
    worker = config["available_node_types"]["worker_l4"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_kuberay_workers_come_and_go():
    spec = load(KUBERAY)["RayCluster"]["spec"]
    (worker,) = spec["workerGroupSpecs"]
    assert (worker["minReplicas"], worker["maxReplicas"]) == (0, 8)
    assert 0 < spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800


def test_google_workers_are_spot_and_the_on_demand_line_is_ready():
    config = load(GOOGLE)
    spec = config["available_node_types"]["worker_l4"]["node_config"]
    assert spec["machineType"] == "g2-standard-8"
    assert spec["scheduling"]["provisioningModel"] == "SPOT"
    on_demand = re.search(r"^ *# (scheduling: \{.*STANDARD.*\})$", TEXTS[GOOGLE], re.MULTILINE)
    assert on_demand
    spec |= yaml.safe_load(on_demand[1])
    assert faults(GOOGLE, config) == []
    validate_config(prepare_config(config))


def test_amazon_workers_are_spot_and_without_that_line_on_demand():
    config = load(AMAZON)
    spec = config["available_node_types"]["worker_l4"]["node_config"]
    assert spec["InstanceType"] == "g6.xlarge"
    assert spec.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert "      InstanceMarketOptions: {MarketType: spot}\n" in TEXTS[AMAZON]
    assert faults(AMAZON, config) == []
    validate_config(prepare_config(config))


def test_ray_starts_head_and_worker_in_a_model_of_aws(tmp_path, monkeypatch):
    """By Ray's own launcher, whose requests boto3 checks and moto answers."""
    moto = pytest.importorskip("moto", reason="moto plays AWS here")
    boto3 = pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key it makes
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "none")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with moto.mock_aws():
        iam = boto3.client("iam")
        for profile in ("matsweep-head", "matsweep-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        config = bootstrap_aws(prepare_config(load(AMAZON)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for key, profile in (("head", "matsweep-head"), ("worker_l4", "matsweep-worker")):
            node = config["available_node_types"][key]["node_config"]
            (instance,) = provider.create_node(node, {"ray-node-name": key}, 1).values()
            assert instance.iam_instance_profile["Arn"].endswith(profile)
            assert instance.instance_lifecycle == ("spot" if key == "worker_l4" else None)
            assert instance.placement["AvailabilityZone"] in config["provider"]["availability_zone"]
        groups = boto3.client("ec2", "us-west-2").describe_security_groups()["SecurityGroups"]
        (ours,) = [group for group in groups if "ray" in group["GroupName"]]
        from_outside = [(rule["FromPort"], rule["ToPort"]) for rule in ours["IpPermissions"] if rule["IpRanges"]]
        assert from_outside == [(22, 22)]


@every_file
def test_no_credentials(name):
    assert not SECRETS.search(TEXTS[name])
    assert "gcp_credentials" not in TEXTS[name]


@pytest.mark.parametrize(
    "text", ["password: x", "-----BEGIN RSA PRIVATE KEY-----", "gcp_credentials: {a: b}", "aws_secret_access_key: x"]
)
def test_credentials_would_be_found(text):
    assert SECRETS.search(text)


@pytest.mark.parametrize(
    ("name", "marks"), [(GOOGLE, "my-project-id|us-central1"), (AMAZON, "us-west-2"), (KUBERAY, "pkg.dev|entrypoint:")]
)
def test_tells_what_to_edit_and_where_results_go(name, marks):
    edited = [line for line in TEXTS[name].splitlines() if "# EDIT" in line]
    named = [line for line in TEXTS[name].splitlines() if re.search(marks, line)]
    assert edited == named
    assert ("s3://BUCKET" if name == AMAZON else "gs://BUCKET") in TEXTS[name]


def test_google_project_stands_in_two_places():
    assert TEXTS[GOOGLE].count("my-project-id") == 2


@by_ray_up
def test_mounts_the_code_and_nothing_that_a_sweep_writes(name):
    config = load(name)
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    for remote, local in mounts.items():
        assert (ROOT / local).exists()
        assert remote == f"~/matsweep/{local}"
    assert {"data", "models", "tune", "search_spaces"} <= set(mounts.values())
    assert {".venv", "ray_results", "__pycache__"} <= set(config["rsync_exclude"])


def test_the_image_gets_the_same_code():
    copied = re.findall(r"^# +COPY (.*) \S+$", TEXTS[KUBERAY], re.MULTILINE)
    mounted = set(load(GOOGLE)["file_mounts"].values()) - {"~/.ray/auth_token"}
    assert {part for line in copied for part in line.split()} == mounted


@pytest.mark.parametrize(("name", "extra"), [(GOOGLE, "gcp"), (AMAZON, "aws")])
def test_nodes_install_the_locked_project_and_find_it_first(name, extra):
    setup = load(name)["setup_commands"]
    assert setup[-1] == f"cd ~/matsweep && make setup EXTRAS={extra}"
    assert '"$HOME/matsweep/.venv/bin:$PATH" RAY_AUTH_MODE=token' in setup[0]


def test_both_clouds_start_nodes_alike():
    one, other = load(GOOGLE), load(AMAZON)
    parts = "cluster_name max_workers idle_timeout_minutes file_mounts rsync_exclude initialization_commands"
    parts += " worker_setup_commands head_start_ray_commands worker_start_ray_commands"
    assert {part: one[part] for part in parts.split()} == {part: other[part] for part in parts.split()}


@by_ray_up
def test_the_dashboard_listens_on_the_head_only(name):
    start = " ".join(load(name)["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in TEXTS[name]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_the_job_of_kuberay_is_a_sweep_that_its_workers_can_run():
    documents = load(KUBERAY)
    python, script, *arguments = documents["RayJob"]["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/matsweep/tune/run_sweep.py")
    options = typer.main.get_command(app).make_context("run_sweep.py", arguments).params
    assert options["address"] == "auto"
    assert options["storage"].startswith("gs://BUCKET/")
    assert options["cache"].startswith("gs://BUCKET/")
    assert (ROOT / f"search_spaces/{options['space']}.yaml").exists()
    (worker,) = documents["RayCluster"]["spec"]["workerGroupSpecs"]
    offered = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    at_once = int(offered["nvidia.com/gpu"] / float(options["gpus_per_trial"]))
    assert at_once * options["cpus_per_trial"] <= int(offered["cpu"])


def process(title: str, on_sigterm: str) -> str:
    """Of bash, a process in the background with a title as Ray gives it."""
    return f"(exec -a {title} bash -c \"trap '{on_sigterm}' TERM; while :; do sleep 0.1; done\") &\n"


def test_a_worker_of_kuberay_ends_when_its_trials_have_saved(tmp_path):
    """In a namespace of processes of its own: the hook tells every trial that it sees."""
    (worker,) = load(KUBERAY)["RayCluster"]["spec"]["workerGroupSpecs"]
    shell, _, hook = worker["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes is not permitted here")
    trial = process("ray::ResourceTrainable.train", "sleep 3; echo saved; exit")  # so long it takes to save
    (tmp_path / "hook").write_text(hook)
    (tmp_path / "worker").write_text(f"{trial}{process('ray::IDLE', 'echo told')}sleep 1\n{shell} hook\necho ended\n")
    ray = tmp_path / "ray"  # in place of the real one, which would drain whatever Ray runs here
    ray.write_text('#!/bin/sh\necho "$1"; exit 1\n')  # and which may fail
    ray.chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    began = time.monotonic()
    done = subprocess.run(
        [*alone, "bash", "worker"], cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["drain-node", "saved", "ended"]
    assert 4 < time.monotonic() - began < 20
