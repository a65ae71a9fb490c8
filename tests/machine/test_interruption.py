"""What ends a command by a signal: one sentence, at once, whatever else the signal has reached."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SLEEPING = """
import time
from data.machine.interruption import interruptible
with interruptible('the same command goes on'):
    try:
        print('ready', flush=True)
        time.sleep(100)
    finally:
        print('ending', flush=True)
        time.sleep(1)
"""
IN_RAY = """
import ray.tune, time
from data.machine.interruption import interruptible
from data.machine.ray_session import connect
ray.tune.register_trainable('a trial', lambda config: None)
with interruptible('the same command goes on'):
    print('ready', flush=True)
    connect()
    print('connected', flush=True)
    time.sleep(100)
"""


def heed_signals() -> None:
    """Let Ctrl-C and SIGHUP reach a program also where the tests run in the background or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def begun(program: str, **streams: int) -> subprocess.Popen:
    """Starts a program in a session of its own, which every signal reaches."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        start_new_session=True,
        text=True,
        preexec_fn=heed_signals,  # noqa: PLW1509 - no threads here
        **({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | streams),
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_ends_a_command_in_a_sentence_and_a_second_one_changes_nothing(number, code):
    with begun(SLEEPING) as process:
        for line in ("ready\n", "ending\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        assert process.stdout.read() == "interrupted: the same command goes on\n"
    assert process.returncode == code


def test_a_terminal_that_is_closed_ends_a_command_although_it_can_say_nothing():
    screen, terminal = pty.openpty()
    with begun(SLEEPING, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        assert os.read(screen, 5) == b"ready"
        os.close(screen)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 129


def test_a_command_whose_end_waits_for_ever_is_ended_with_its_sentence():
    waiting = SLEEPING.replace("sleep(1)", "sleep(1000)").replace(
        "with", "data.machine.interruption.LONGEST_END_S = 1\nwith"
    )
    with begun("import data.machine.interruption" + waiting) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "ending\ninterrupted: the same command goes on\n"
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("to_all", "after_s"),
    [
        pytest.param(False, 0.7, id="while Ray starts"),
        pytest.param(False, None, id="in Ray"),
        pytest.param(True, None, id="Ray's own processes, too, as by a batch system"),
    ],
)
def test_a_signal_ends_a_command_in_a_sentence_while_ray_runs(to_all, after_s):
    with begun(IN_RAY) as process:
        assert process.stdout.readline() == "ready\n"
        if after_s is None:
            assert process.stdout.readline() == "connected\n"
        else:
            time.sleep(after_s)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
        assert process.stdout.read() == "interrupted: the same command goes on\n"
    assert process.returncode == 143
