"""Ray on this machine, or the cluster that a command joins."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray.exceptions import RaySystemError
from ray.job_config import JobConfig

from data.console import say
from data.import_path import environment_of_workers
from data.store_faults import StorageError

_LONGEST_SOCKET = 107  # bytes in the path of one, on Linux


def connect(address: str | None = None) -> None:
    """Join a Ray cluster, or start Ray on this machine; nothing if that has happened already.

    Args:
        address: of a cluster (`auto` on one of its nodes); None starts Ray here.

    Raises:
        RayError, ConnectionError: Ray did not start, or there is none at the address.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep the GPUs' numbers as they are
    # Ray tells at every start that its own processes authenticate to one another; nothing for the user to do.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    runtime_env = {}
    if address:
        # Nodes of a cluster have the project installed, but perhaps not this version of it.
        repository = Path(__file__).resolve().parent.parent
        runtime_env = {"py_modules": [str(repository / package) for package in ("data", "models", "tune")]}
    else:
        _have_a_token()
        _mind_no_proxy()
    # Ray would have its workers look for modules in the working directory and in the script's folder first of all.
    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    # Told that there are no clusters, Ray listens on 127.0.0.1 alone. It has read that from the environment when it was
    # imported, so that to set it there would be too late.
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, address is not None
    told_to_end = signal.getsignal(signal.SIGTERM)
    try:
        with _environment(environment_of_workers()):
            ray.init(
                address=address or "local",  # without an address Ray would join whatever cluster it finds here
                job_config=job,
                runtime_env=runtime_env,
                include_dashboard=False if address is None else None,
                logging_level="warning",
                log_to_driver=False,
                _temp_dir=_temporary_folder() if address is None else None,
            )
    except ValueError as problem:
        raise ConnectionError(f"--address {address}: {problem}") from problem
    except Exception as problem:
        if type(problem) is not Exception:  # which is what Ray raises when its processes take too long to begin
            raise
        raise RaySystemError(f"Ray did not start: {problem}. Where this machine is merely busy, try again") from problem
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
    if callable(told_to_end):  # Ray answers to the signal with a stack trace in C++
        signal.signal(signal.SIGTERM, told_to_end)


def _have_a_token() -> None:
    """Give Ray, whose processes ask one another for a token, one for this session where the home can keep none."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        usable = os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no such home, or none that can be written to
        usable = False
    if not usable:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _mind_no_proxy() -> None:
    """Let Ray's processes on this machine speak to one another past a proxy that the user's other programs need."""
    if any(name.lower().endswith("_proxy") for name in os.environ):
        spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (spared, "127.0.0.1", "localhost")))


def _temporary_folder() -> str | None:
    """Where Ray keeps logs and sockets; None for where it would by itself.

    Raises:
        StorageError: that is too long for sockets, and /tmp cannot be written to.
    """
    folder = get_default_ray_temp_dir()
    socket = f"{folder}/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET:
        return None
    if not os.access("/tmp", os.W_OK):
        raise StorageError(
            f"the path of the temporary folder {folder} is too long for the sockets of Ray, and /tmp cannot be written "
            "to. Set RAY_TMPDIR to a folder whose path has 30 letters or fewer"
        )
    say(f"Ray's sockets cannot be in {folder}, whose path is too long: its logs and sockets go to /tmp/ray")
    return "/tmp/ray"


class _NoFolders(list[str]):
    """A job's folders of modules, to which Ray can add none."""

    def extend(self, folders: Iterable[str]) -> None:
        """Leave the folders out."""


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of the environment while the body runs, and for what it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
