"""Ctrl-C and SIGTERM, which `kill`, batch systems and containers send: both end a command in one sentence."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.console import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The command was told to end by a signal."""

    def __init__(self, number: int) -> None:
        """Remember the number of the signal."""
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def interruptible(otherwise: str) -> Iterator[None]:
    """Let a signal end the body, and with it the command: with a sentence, and what it has started is ended, too.

    Args:
        otherwise: how to go on, where no note of the interruption says it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    before = {one: signal.getsignal(one) for one in _SIGNALS}
    for one in _SIGNALS:
        if before[one] != signal.SIG_IGN:  # as in the background
            signal.signal(one, _interrupt)
    try:
        yield
    except KeyboardInterrupt as end:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        say(f"interrupted: {' '.join(getattr(end, '__notes__', [])) or otherwise}")
        sys.exit(end.exit_code if isinstance(end, Interrupted) else 130)
    finally:
        if signal.getsignal(signal.SIGTERM) is _interrupt:
            for one, handler in before.items():
                signal.signal(one, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    """Raise Interrupted, once: a second signal would cut the end short, and leave tracebacks and processes."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)
