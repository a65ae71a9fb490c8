"""Ray on this machine, or the cluster that a command joins."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import ray
from ray.exceptions import RayError, RaySystemError

from data.machine.console import say
from data.machine.import_path import ROOT, environment_of_workers
from data.machine.ray_internals import (
    AUTHENTICATION_LOGGER,
    await_answer,
    is_head,
    job_without_folders,
    listening_here_alone,
    place_of,
    sigterm_as_before,
    temporary_folder,
)
from data.stores.faults import StorageError

_ANSWER_S = 10.0  # in which a cluster's machine must answer
_FEWEST_PROCESSES = 256  # and threads, which Ray needs
_LEAST_ROOM = 16 << 20  # bytes for logs, of which a sweep of two minutes leaves 8 MB
_LONGEST_SOCKET = 107  # bytes in the path of one, on Linux


def connect(address: str | None = None) -> None:
    """Join a Ray cluster, or start Ray on this machine; nothing if that has happened already.

    Args:
        address: of a cluster (`auto` on one of its nodes); None starts Ray here.

    Raises:
        RayError, ConnectionError: Ray did not start, or there is none at the address.
        StorageError: Ray's temporary folder cannot be used, or none that is made here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep the GPUs' numbers as they are
    # Ray tells at every start that its own processes authenticate to one another; nothing for the user to do.
    logging.getLogger(AUTHENTICATION_LOGGER).setLevel(logging.ERROR)
    runtime_env = {}
    if address:
        # Nodes of a cluster have the project installed, but perhaps not this version of it.
        runtime_env = {"py_modules": [f"{ROOT}/{package}" for package in ("data", "models", "tune")]}
        _refuse_silence(address)
    else:
        _refuse_limits()
        _have_a_token()
        _mind_no_proxy()
    try:
        with (
            _environment(environment_of_workers()),
            sigterm_as_before(),
            listening_here_alone(address is None),
        ):
            ray.init(
                address=address or "local",  # without an address Ray would join whatever cluster it finds here
                job_config=job_without_folders(),
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


def end(code: int) -> NoReturn:
    """End this process, which a signal has told to end.

    What it has started of Ray ends with it, and is not spoken to: the signal may have reached that as well, as those of
    batch systems do, and Ray would wait a minute for its answer, or complain with tracebacks that there is none.
    """
    if not is_head():
        sys.exit(code)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _refuse_silence(address: str) -> None:
    """Raise ConnectionError where no Ray is at an address: Ray itself would go on asking for a quarter of an hour."""
    if "://" in address:  # which Ray itself asks for half a minute only
        return
    try:
        place, host, port = place_of(address)
    except (ValueError, OSError) as problem:
        raise ConnectionError(f"--address {address}: {problem}") from problem
    environment_address = os.environ.get("RAY_ADDRESS")
    by = f" (of RAY_ADDRESS, {environment_address})" if address == "auto" and environment_address else ""
    remedy = f"Start the cluster, correct {'or unset RAY_ADDRESS' if by else 'the address'}, or leave out --address"
    try:
        socket.create_connection((host, port), timeout=_ANSWER_S).close()
        await_answer(place)
    except (OSError, RayError) as problem:
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers at {place}{by}: {problem}. {remedy} to run on this machine"
        ) from problem


def _refuse_limits() -> None:
    """Raise where Ray cannot start, and would say that with tracebacks or after half a minute."""
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() and processes != resource.RLIM_INFINITY and processes < _FEWEST_PROCESSES:
        raise RaySystemError(
            f"Ray does not start where one may have {processes} processes and threads. Raise the limit, as by "
            "`ulimit -u 4096`"
        )


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
        exceptions = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (exceptions, "127.0.0.1", "localhost")))


def _temporary_folder() -> str | None:
    """Where Ray keeps logs and sockets; None for where it would by itself.

    Raises:
        StorageError: it cannot be written to, or has no room; or it is too long for sockets, and /tmp is not ours.
    """
    folder = temporary_folder()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        room = shutil.disk_usage(folder).free
    except OSError as problem:
        raise StorageError(
            f"Ray can keep no logs and sockets in the temporary folder {folder}: {problem.strerror}. Set RAY_TMPDIR or "
            "TMPDIR to a folder that is yours to write to"
        ) from problem
    if room < _LEAST_ROOM:
        raise StorageError(
            f"the temporary folder {folder} has {room / 2**20:.1f} MiB left, and Ray keeps its logs and sockets there: "
            f"it takes {_LEAST_ROOM >> 20} at least. Make room, or set RAY_TMPDIR or TMPDIR to a folder on another disk"
        )
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
