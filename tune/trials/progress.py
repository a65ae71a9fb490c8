"""How far a fit has come that reports nothing until it is done: a trial writes it, the terminal reads it.

Ray is told of whole epochs alone. What is fitted at once is one epoch, of minutes where atoms are compared with atoms.
"""

from __future__ import annotations

import time
from contextlib import suppress

from data.stores.faults import asked_once
from data.stores.storage import StorageError, open_folder, read_whole, write_whole

FILE = "progress.txt"  # in a trial's folder
EVERY_S = 2.0  # seconds between two lines


class Progress:
    """Writes the last line that a fit has said of itself into the folder of its trial."""

    def __init__(self, folder: str) -> None:
        """Write nothing yet; the folder is a path or URI."""
        self.folder, self.last = folder, -EVERY_S

    def __call__(self, line: str) -> None:
        """Write a line, unless the one before it is too young; a line that cannot be written is of no importance."""
        if time.monotonic() - self.last < EVERY_S:
            return
        with suppress(OSError, StorageError), asked_once():
            filesystem, path = open_folder(self.folder)
            write_whole(filesystem, f"{path}/{FILE}", line.encode())
        self.last = time.monotonic()


def progress_of(folder: str) -> str:
    """The last line of the trial with that folder; empty where it has said nothing."""
    with suppress(OSError, StorageError), asked_once():  # a sweep does not wait for what the terminal shows
        filesystem, path = open_folder(folder)
        return read_whole(filesystem, f"{path}/{FILE}").decode()
    return ""
