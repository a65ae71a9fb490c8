"""What a trial saves when it is told to end, by SIGTERM: the state of training, to the batch.

It has the time while the Ray that it belongs to lives: a raylet that ends takes its workers with it at once. So whoever
takes a machine back must tell the trials first, as `cluster.kuberay.yaml` and `tune/cluster/spot_watch.py` do.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyarrow import fs
from ray.tune import Trainable
from ray.tune.trainable import wrap_function

from data.stores.storage import StorageError, open_folder, read_whole, write_whole
from models.model import Run

FILE = "paused.pt"
GRACE_S = 20.0  # for the batch that is being computed


def heeding(trial: Callable[[dict[str, Any]], None]) -> type[Trainable]:
    """A function for Ray Tune, whose worker process saves what `watched` watches when it is told to end."""
    base: Any = wrap_function(trial)

    class Trial(base):
        def setup(self, config: dict[str, Any]) -> None:
            # Here, since only a process's main thread may set this, and the function runs in another.
            _heed_sigterm()
            # The next trial gets this process. Ray fails that one where this one has not stood still within 2 s, as on
            # a machine that is busy with other things.
            os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
            super().setup(config)

    return Trial


class Preemption:
    """A trial that is told to end before it is done: paused, and saved once its thread stands still."""

    current: Preemption | None = None  # of this process

    def __init__(self, run: Run, folder: str) -> None:
        """Watch over a run, of a trial whose folder (path or URI) is given."""
        self.run, self.folder = run, folder
        self.told = threading.Event()
        self.still = threading.Event()

    def epochs(self) -> Iterator[None]:
        """The run's epochs; while the caller reports one, and after the last, the run may be saved as it is."""
        for _ in self.run.epochs():
            if self.told.is_set():
                break
            self.still.set()
            yield
            self.still.clear()
            if self.told.is_set():
                break
        self.still.set()

    def end_if_told(self) -> None:
        """Wait for the end of the process; to return would tell Ray that the trial is done."""
        if self.told.is_set():
            threading.Event().wait()

    def save(self) -> None:
        """Pause the run and write its state; called from another thread than the run's."""
        self.told.set()
        self.run.pause()
        if self.still.wait(GRACE_S):
            content = io.BytesIO()
            torch.save(self.run.state(), content)
            filesystem, path = open_folder(self.folder)
            write_whole(filesystem, f"{path}/{FILE}", content.getvalue())


@contextmanager
def watched(run: Run, folder: str) -> Iterator[Preemption]:
    """While the body runs, SIGTERM pauses the run, saves it in the trial's folder and ends the process."""
    preemption = Preemption.current = Preemption(run, folder)
    try:
        yield preemption
    finally:
        preemption.still.set()  # after an error there is nothing to wait for
        Preemption.current = None


def _heed_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def save_and_end(number: int, frame: Any) -> None:
        preemption = Preemption.current
        if preemption is None:
            if callable(before):  # Ray's own
                before(number, frame)
            return

        def end() -> None:
            try:
                preemption.save()
            finally:
                os._exit(1)  # an exit raised in the main thread can meet Ray where it aborts the process

        threading.Thread(target=end, daemon=True).start()

    if getattr(before, "__name__", "") != save_and_end.__name__:  # a worker serves trial after trial
        signal.signal(signal.SIGTERM, save_and_end)


def load_paused(folder: str, after_epoch: int) -> dict[str, Any] | None:
    """The state that was saved in a trial's folder; None where it is older than Ray's last report, or too much newer.

    Ray must be told of every epoch, so at most one that it does not know can lie in between.

    Args:
        folder: of the trial, path or URI.
        after_epoch: the last epoch that Ray was told of; -1 for none.
    """
    filesystem, path = open_folder(folder)
    state = read_state(filesystem, f"{path}/{FILE}")
    if state is None:
        return None
    last_epoch = state["history"][-1]["epoch"] if state["history"] else -1
    return state if last_epoch in (after_epoch, after_epoch + 1) else None


def read_state(filesystem: fs.FileSystem, file: str) -> dict[str, Any] | None:
    """The state of a run in a file, its tensors on the CPU; None where the file is gone or damaged."""
    try:
        return torch.load(io.BytesIO(read_whole(filesystem, file)), map_location="cpu", weights_only=True)
    except StorageError:  # the store is away, and what it holds may well be whole
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):  # not there, or cut off
        return None
