"""Ends a command in one sentence on a signal.

The signals are Ctrl-C, SIGTERM, which `kill`, batch systems and containers send, and the SIGHUP of a terminal that is
closed.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from data.machine.console import say

LONGEST_END_S = 25.0  # batch systems wait 30 s before they kill
ways_on: list[str] = []  # how the command goes on from where it is, the innermost last
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    signals: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
        if not signals:  # a second one would cut the end short, and leave tracebacks and processes
            signals.append(number)
            _have_somewhere_to_write()
            limit = threading.Timer(LONGEST_END_S, _end_anyway, (number, otherwise))
            limit.daemon = True
            limit.start()
            raise KeyboardInterrupt

    for signal_number in _SIGNALS:
        if before[signal_number] != signal.SIG_IGN:  # as in the background
            signal.signal(signal_number, interrupt)
    try:
        yield
    except KeyboardInterrupt as problem:
        say(f"interrupted: {' '.join(getattr(problem, '__notes__', [])) or otherwise}")
        code = 128 + (signals or [signal.SIGINT])[0]
        if "ray" not in sys.modules:  # whose processes would end with this one
            sys.exit(code)
        from data.machine.ray_session import end

        end(code)
    finally:
        if not signals:
            for signal_number, handler in before.items():
                signal.signal(signal_number, handler)


def _end_anyway(number: int, otherwise: str) -> None:
    """End at once what waits for Ray's own processes, which the signal may have ended first; as `kill -9` would."""
    say(f"interrupted: {[otherwise, *ways_on][-1]}")
    os._exit(128 + number)


def _have_somewhere_to_write() -> None:
    """Let what is written to a terminal that is closed go nowhere, where it would be one more error at the end."""
    for stream in (1, 2):
        with suppress(OSError):  # there is no such stream
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
