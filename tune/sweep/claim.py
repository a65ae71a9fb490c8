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

from data.machine.console import say
from data.stores.storage import StorageError
from tune.errors import SweepError
from tune.records.folder import Folder

FILE = "running.json"
BEAT_S = 20.0  # how often a driver says that it is alive
WATCH_S = 70.0  # how long one on another machine is watched for that
UNKNOWN = "unknown"  # when a process began: it is gone; or what this system does not tell
SETTLE_S = 0.5  # in which of two that start together the one that wrote first sees the other


@contextmanager
def claimed(folder: Folder) -> Iterator[None]:
    """Hold a sweep's folder while the body runs.

    A driver that was killed leaves its claim behind. On the same machine it is known to be gone at once. One elsewhere,
    be it in another container or before the machine was started anew, is watched for a sign of life; the clocks of two
    machines, which may differ or jump, are never compared.

    Raises:
        SweepError: another driver runs this sweep; the message says where.
    """
    earlier_claim = folder.read_json(FILE)
    if earlier_claim is not None and _alive(folder, earlier_claim):
        raise _refusal(folder, earlier_claim)
    claim = {**_here(), "pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex}
    _beat(folder, claim, 0)
    time.sleep(SETTLE_S)
    current_claim = folder.read_json(FILE)
    if current_claim is not None and current_claim["token"] != claim["token"]:
        raise _refusal(folder, current_claim)
    end = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(folder, claim, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        with suppress(OSError, StorageError):  # left as a killed driver's is, and why the body ended is what counts
            last_claim = folder.read_json(FILE)
            if last_claim is not None and last_claim["token"] == claim["token"]:
                folder.filesystem.delete_file(f"{folder.path}/{FILE}")


def _keep_beating(folder: Folder, claim: dict[str, Any], end: threading.Event) -> None:
    n_beats = 0
    while not end.wait(BEAT_S):
        with suppress(OSError, StorageError):  # a store that is away for a moment: the next beat may reach it
            current_claim = folder.read_json(FILE)
            if current_claim is not None and current_claim["token"] != claim["token"]:
                # This process had stood still for so long that another one took it for dead.
                say(
                    f"{current_claim['host']}, process {current_claim['pid']}, has taken over {folder.address}: this "
                    "one ends",
                    style="red",
                )
                os._exit(1)  # at once, in whatever thread: it must not write beside the other
            n_beats += 1
            _beat(folder, claim, n_beats)


def _beat(folder: Folder, claim: dict[str, Any], number: int) -> None:
    folder.write_json(FILE, {**claim, "beat": number})


def _alive(folder: Folder, claim: dict[str, Any]) -> bool:
    own_process = _here()
    if UNKNOWN not in (*own_process.values(), claim["started"]) and all(
        claim.get(key) == own_process[key] for key in own_process
    ):
        return claim["pid"] != os.getpid() and _started(claim["pid"]) == claim["started"]
    say(f"{folder.address} was being run on {claim['host']}; waiting up to {WATCH_S:.0f} s for a sign of life")
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(WATCH_S / 100)
        current_claim = folder.read_json(FILE)
        if current_claim is None:
            return False  # it has just ended
        if current_claim != claim:
            return True
    return False


def _here() -> dict[str, str]:
    """Where a process number means this process: containers on two machines may be named alike."""
    boot, space = UNKNOWN, UNKNOWN
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return {"host": platform.node(), "boot": boot, "pid_namespace": space}


def _started(pid: int) -> str:
    """When a process began, in the system's own count, so that another one with its number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return UNKNOWN


def _refusal(folder: Folder, claim: dict[str, Any]) -> SweepError:
    return SweepError(
        f"{folder.address} is being run by process {claim['pid']} on {claim['host']}: wait for it, end it, or choose "
        "another --name"
    )
