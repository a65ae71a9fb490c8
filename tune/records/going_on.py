"""How a sweep goes on that has ended before its time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.machine.interruption import ways_on
from data.stores.storage import open_folder, read_whole
from tune.arguments import STORAGE


def command_to_go_on(storage: str, name: str, address: str | None = None) -> str:
    """The command that goes on with a sweep, given in this folder.

    Args:
        storage: path or URI that the sweep's folder is in.
        name: of the sweep.
        address: of the cluster it was run on.
    """
    options = ["--resume", name]
    usual = None
    with suppress(OSError):  # the working directory is gone
        usual = str(Path(STORAGE).resolve())
    if storage not in (STORAGE, usual):
        options += ["--storage", storage]
    if address is not None:
        options += ["--address", address]
    return f"python tune/run_sweep.py {shlex.join(options)}"


def how_to_go_on(folder: str) -> str:
    """How a sweep that is not finished goes on."""
    above, _, name = folder.rpartition("/")
    filesystem, path = open_folder(folder)
    if "gate" in json.loads(read_whole(filesystem, f"{path}/sweep.json")):
        return "it belongs to a queue, whose command (tune/run_queue.py) goes on with it"
    return f"go on with `{command_to_go_on(above, name)}`"


@contextmanager
def noted(storage: str, name: str, address: str | None, but_for: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Note on whatever ends the body how the sweep goes on.

    Args:
        storage: path or URI that the sweep's folder is in.
        name: of the sweep.
        address: of its cluster.
        but_for: errors after which it does not.
    """
    way = f"go on with `{command_to_go_on(storage, name, address)}`"
    ways_on.append(way)
    try:
        yield
    except but_for:
        ways_on.remove(way)
        raise
    except BaseException as problem:  # it stays the way on, whatever is still done before the end
        problem.add_note(way)
        raise
    ways_on.remove(way)
