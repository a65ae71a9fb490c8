"""All that is used of Ray beside what it publishes: an upgrade that takes one of these away fails a test of its own.

Written for Ray 2.60. `tests/machine/test_ray_internals.py` has a test for each.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address, extract_ip_port
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get
from ray.job_config import JobConfig

AUTHENTICATION_LOGGER = "ray._private.authentication"


def temporary_folder() -> str:
    """Where Ray keeps logs and sockets by itself."""
    return get_default_ray_temp_dir()


def place_of(address: str) -> tuple[str, str, int]:
    """The address of a cluster's first process, its host and its port; `auto` is looked up.

    Raises:
        ValueError, ConnectionError: there is none.
    """
    place = canonicalize_bootstrap_address(address) or address
    host, port = extract_ip_port(place)
    return place, host, int(port)


def await_answer(place: str) -> None:
    """Wait, 40 s at most, until a cluster's first process answers.

    Raises:
        RayError: it does not.
    """
    GcsClient(address=place)


@contextmanager
def listening_here_alone(alone: bool) -> Iterator[None]:
    """Have Ray, if it is started meanwhile, listen on 127.0.0.1 alone.

    It does where it is told that there are no clusters, which it reads from the environment when it is imported, so
    that to set it there would be too late.
    """
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, not alone
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def job_without_folders() -> JobConfig:
    """A job whose workers look for modules in no folder of the driver's: neither where it works nor its script's."""
    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    return job


def is_head() -> bool:
    """Whether this process has started the Ray that it uses."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Let SIGTERM do what it did before: Ray would end without a word while it starts, and later with a stack in C++.

    The signal waits while Ray connects, which takes a moment and has threads begin that are never to receive it.
    """
    told_to_end = signal.getsignal(signal.SIGTERM)
    if not callable(told_to_end) or threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler, connect_driver = ray._private.utils.set_sigterm_handler, ray._private.worker.connect

    def connect_unheard(*arguments: Any, **options: Any) -> None:
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            connect_driver(*arguments, **options)
        finally:
            signal.signal(signal.SIGTERM, told_to_end)
            signal.pthread_sigmask(signal.SIG_SETMASK, waiting)

    ray._private.utils.set_sigterm_handler = lambda _: None
    ray._private.worker.connect = connect_unheard
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler, ray._private.worker.connect = set_handler, connect_driver


def has_autoscaler() -> bool:
    """Whether the cluster has an autoscaler that may add nodes."""
    if ray._private.state.state.get_cluster_config() is not None:  # autoscaler v2, KubeRay
        return True
    # Autoscaler v1 names the types of its YAML; Ray without an autoscaler names every node after itself.
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    types = report.get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())


def most_resources() -> dict[str, float]:
    """What the cluster would have with all nodes that its autoscaler may add; nothing where it has none."""
    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def scheduler_of(tuner: ray.tune.Tuner) -> Any:
    """The scheduler of a Ray Tune run that was restored, which is one that its record has kept."""
    return tuner._local_tuner._tune_config.scheduler


class _NoFolders(list[str]):
    """A job's folders of modules, to which Ray can add none."""

    def extend(self, folders: Iterable[str]) -> None:
        """Leave the folders out."""
