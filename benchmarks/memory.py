"""Runs a stage of a benchmark in a process of its own and reads from /proc what it and Ray's workers hold."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray

from data.machine.command_line import errors_of_users
from data.machine.console import console, say

SECONDS_BETWEEN_READINGS = 0.05
SECONDS_BETWEEN_SEARCHES = 0.5  # for workers that Ray started
WORKERS = {"Converter": "converter", "ResourceTrainable": "trial"}  # what Ray calls them in their title
SMAPS = Path("/proc/self/smaps_rollup")

# What a stage tells: the name of the step that begins ("" for none), or facts.
Stage = Callable[[Path], Iterator[str | dict[str, Any]]]


class StageError(RuntimeError):
    """A stage that could not be measured; the message says why."""


@dataclass
class Memory:
    """What a process held when it held most beyond Ray's object store, in bytes.

    Attributes:
        process: `driver`, or the kind of worker and its number.
        beyond_store: resident, without Ray's object store; the code of libraries counts.
        in_store: resident, in Ray's object store.
        pss: resident, each page divided by the number of processes that have it.
        private: resident, in pages that no other process has.
    """

    process: str
    beyond_store: int = 0
    in_store: int = 0
    pss: int = 0
    private: int = 0

    def read(self, pid: int) -> None:
        """Read the memory of a process, and keep it where it is the most so far."""
        held = _bytes(Path(f"/proc/{pid}/status"))
        beyond_store = held.get("RssAnon", 0) + held.get("RssFile", 0)
        if beyond_store <= 1.01 * self.beyond_store:  # the proportional share takes the kernel a while
            return
        shares = _bytes(Path(f"/proc/{pid}/smaps_rollup"))
        if shares:
            self.beyond_store, self.in_store = beyond_store, held["RssShmem"]
            self.pss, self.private = shares["Pss"], shares["Private_Clean"] + shares["Private_Dirty"]


@dataclass
class Step:
    """A step of a stage: its name, the seconds it took, and the memory of its processes, the driver first."""

    name: str
    seconds: float
    processes: list[Memory] = field(default_factory=list)


def watch(stage: Stage, folder: Path) -> tuple[list[Step], dict[str, Any]]:
    """Run a stage on a folder in a process of its own and read its memory all the while.

    Returns:
        The steps, and the facts the stage told.

    Raises:
        StageError: the stage failed, or this is not Linux.
    """
    if not SMAPS.exists():
        raise StageError(f"memory is read from {SMAPS}, which this system does not have: use Linux")
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(stage, folder, theirs))
    process.start()
    theirs.close()
    assert process.pid is not None
    steps: list[Step] = []
    facts: dict[str, Any] = {}
    name, began, searched = "", 0.0, 0.0
    seen: dict[int, Memory] = {}
    workers: dict[int, str] = {}
    earlier: set[int] = set()  # workers of the steps before, which end when they please
    while True:
        if ours.poll(SECONDS_BETWEEN_READINGS):
            try:
                said = ours.recv()
            except EOFError:
                break
            if isinstance(said, StageError):
                raise said
            if isinstance(said, dict):
                facts |= said
                continue
            if said:
                say(said)
            if name:
                steps.append(Step(name, time.perf_counter() - began, list(seen.values())))
            name, began = said, time.perf_counter()
            earlier |= seen.keys()
            seen = {process.pid: Memory("driver")}
        if name:
            if time.perf_counter() - searched > SECONDS_BETWEEN_SEARCHES:
                searched, workers = time.perf_counter(), _workers(process.pid)
            for pid, kind in workers.items():
                if pid in earlier:
                    continue
                number = 1 + sum(memory.process.startswith(kind) for memory in seen.values())
                seen.setdefault(pid, Memory(f"{kind} {number}"))
            for pid, memory in seen.items():
                memory.read(pid)
    process.join()
    if process.exitcode or name:
        raise StageError(f"step {name!r} ended early, with exit code {process.exitcode}")
    return steps, facts


def _run(stage: Stage, folder: Path, connection: Connection) -> None:
    """Run a stage to its end, in the process made for it."""
    console.quiet = True
    try:
        for said in stage(folder):
            connection.send(said)
        connection.send("")
    except (StageError, *errors_of_users()) as problem:
        connection.send(StageError(f"{type(problem).__name__}: {problem}"))
    finally:
        ray.shutdown()


def _workers(driver: int) -> dict[int, str]:
    """Ray's workers below a process that are at work on something of `WORKERS`, by process number."""
    parents: dict[int, int] = {}
    kinds: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            title = (path / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):  # it ended, or belongs to someone else
            continue
        for part, kind in WORKERS.items():
            if title.startswith(f"ray::{part}"):
                kinds[int(path.name)] = kind
    return {pid: kind for pid, kind in kinds.items() if driver in _ancestors(pid, parents)}


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def _bytes(path: Path) -> dict[str, int]:
    """The fields of a file of /proc that are in kB; none where the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(rest.split()[0]) for name, rest in pairs}
