"""One driver a sweep: a second one of the same name, started while the first runs, is refused."""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tune.options import Folder, SweepError

FILE = "running.json"
BEAT_S = 20.0  # how often a driver says that it is alive
DEAD_AFTER_S = 120.0  # without a beat; of a driver on this machine its process tells at once
UNKNOWN = "unknown"  # when a process began: it is gone, or this system does not tell
SETTLE_S = 0.5  # in which of two that start together the one that wrote first sees the other


@contextmanager
def claimed(folder: Folder) -> Iterator[None]:
    """Hold a sweep's folder while the body runs.

    A driver that was killed leaves its claim behind: on the same machine it counts as gone at once, from another one
    two minutes after its last sign of life.

    Raises:
        SweepError: another driver runs this sweep; the message says where.
    """
    other = folder.read_json(FILE)
    if other is not None and _alive(other):
        raise _refusal(folder, other)
    claim = {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex}
    _beat(folder, claim)
    time.sleep(SETTLE_S)
    now = folder.read_json(FILE)
    if now is not None and now["token"] != claim["token"]:
        raise _refusal(folder, now)
    ended = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(folder, claim, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(FileNotFoundError):
            folder.filesystem.delete_file(f"{folder.path}/{FILE}")


def _keep_beating(folder: Folder, claim: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):  # a store that is away for a moment: the next beat may reach it
            _beat(folder, claim)


def _beat(folder: Folder, claim: dict[str, Any]) -> None:
    folder.write_json(FILE, {**claim, "beat": time.time()})


def _alive(claim: dict[str, Any]) -> bool:
    if claim["host"] == platform.node() and claim["started"] != UNKNOWN:
        return claim["pid"] != os.getpid() and _started(claim["pid"]) == claim["started"]
    return time.time() - claim["beat"] < DEAD_AFTER_S


def _started(pid: int) -> str:
    """When a process began, in the system's own count, so that another one with its number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return UNKNOWN


def _refusal(folder: Folder, claim: dict[str, Any]) -> SweepError:
    return SweepError(
        f"{folder.address} is being run by process {claim['pid']} on {claim['host']}: wait for it, end it, or choose "
        f"another --name. (Was that machine lost? Then the sweep can be resumed {DEAD_AFTER_S:.0f} s after its last "
        "sign of life.)"
    )
