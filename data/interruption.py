"""Ends a command in one sentence on Ctrl-C and SIGTERM, which `kill`, batch systems and containers send."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.console import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(otherwise: str) -> Iterator[None]:
    """Let a signal end the body, and with it the command: with a sentence, and what it has started is ended, too.

    Args:
        otherwise: how to go on, where no note of the interruption says it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    before = {signal_number: signal.getsignal(signal_number) for signal_number in _SIGNALS}
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
        if not received:  # a second one would cut the end short, and leave tracebacks and processes
            received.append(number)
            raise KeyboardInterrupt

    for signal_number in _SIGNALS:
        if before[signal_number] != signal.SIG_IGN:  # as in the background
            signal.signal(signal_number, interrupt)
    try:
        yield
    except KeyboardInterrupt as end:
        say(f"interrupted: {' '.join(getattr(end, '__notes__', [])) or otherwise}")
        sys.exit(128 + (received or [signal.SIGINT])[0])
    finally:
        if not received:
            for signal_number, handler in before.items():
                signal.signal(signal_number, handler)
