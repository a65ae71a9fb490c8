"""The folder of a sweep, or of what is made of sweeps: its files, on any storage, and what its name may be."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from data.stores.storage import file_names, open_folder, read_whole, write_whole
from tune.errors import SweepError
from tune.records.going_on import command_to_go_on

if TYPE_CHECKING:
    import pandas as pd

RECORD = "sweep.json"
# Files that are read again, and what each holds; of levers.json each entry.
_HOLDS = {
    RECORD: {"options", "data_sha256"},
    "results.json": {"options", "trials"},
    "running.json": {"host", "pid", "started", "token"},
    "levers.json": {"lever", "values", "difference", "rows"},
    "packing.json": {"share", "probes"},
}
_MADE_AGAIN = ("running.json", "levers.json", "packing.json")  # and so never missed
_NAME = re.compile(r"\w[\w.+= -]*(?<! )")  # nothing that means something to an address, a shell or a terminal


class Folder:
    """The sweep's folder on any storage; files appear whole or not at all."""

    def __init__(self, address: str) -> None:
        """Open a path or URI."""
        self.address = address.rstrip("/")
        self.filesystem, self.path = open_folder(address)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the sweep."""
        data = content.encode() if isinstance(content, str) else content
        write_whole(self.filesystem, f"{self.path}/{name}", data)

    def delete(self, name: str) -> None:
        """Delete a file of the sweep."""
        self.filesystem.delete_file(f"{self.path}/{name}")

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table."""
        self.write(name, table.to_csv(index=False))

    def read_json(self, name: str) -> Any:
        """A JSON file of the sweep; None where there is none, or a damaged one that is made again.

        Raises:
            SweepError: it is damaged.
        """
        try:
            content = json.loads(read_whole(self.filesystem, f"{self.path}/{name}"))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        entries = content if name == "levers.json" and isinstance(content, list) else [content]
        if all(isinstance(entry, dict) and _HOLDS.get(name, set()) <= entry.keys() for entry in entries):
            return content
        if name in _MADE_AGAIN:
            return None
        advice = "delete it, and going on with the sweep makes it again"
        if name == RECORD:
            advice = "put back a copy of it, or begin a new sweep under another --name, for it cannot be made again"
        raise SweepError(f"{self.address}/{name} is damaged: {advice}")

    def write_plain_json(self, name: str, content: Any) -> None:
        """Write a JSON file in which an option that was not given is null."""
        self.write(name, json.dumps(content, indent=1))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file without a null in it.

        Raises:
            ValueError: a value is None or not finite; the message says where.
        """
        _refuse_null(content, name)
        self.write(name, json.dumps(content, indent=1))


def refuse_taken(option: str, name: str, storage: str, *, by_queue: bool = True) -> None:
    """Raise SweepError if the name is none of a folder, or a sweep, an average of sweeps or a queue has it already.

    Args:
        option: that gave the name.
        name: of a folder to be.
        storage: where it is to be.
        by_queue: whether a queue counts, which it does not for the queue itself.
    """
    refuse_name(option, name, storage)
    folder = Folder(f"{storage}/{name}")
    files = file_names(folder.filesystem, folder.path)
    if RECORD in files:
        raise SweepError(
            f"sweep {name!r} exists in {storage}: choose another {option}, or go on with it by "
            f"`{command_to_go_on(storage, name)}`"
        )
    if "results.json" in files:
        raise SweepError(f"{name!r} in {storage} is an average of sweeps: choose another {option}")
    if by_queue and "queue.json" in files:
        raise SweepError(f"{name!r} in {storage} is a queue of experiments: choose another {option}")


def refuse_name(option: str, name: str, storage: str) -> None:
    """Raise SweepError where a name could lead out of the storage, or is not the same in an address."""
    if not _NAME.fullmatch(name):
        raise SweepError(
            f"{option} {name!r}: expected the name of a folder in {storage}: letters, digits, `_`, `-`, `.`, `+`, `=` "
            "and spaces, a letter, a digit or `_` first"
        )


def _refuse_null(value: Any, path: str) -> None:
    """Raise ValueError at the first None or non-finite number inside a JSON-like value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{path} is {value}: results hold no empty value")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_null(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_null(item, f"{path}[{position}]")
