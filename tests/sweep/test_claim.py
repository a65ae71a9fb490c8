"""One driver a sweep: the second is refused while the first lives, and not after it was killed."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tune.errors import SweepError
from tune.records.folder import Folder
from tune.sweep import claim
from tune.sweep.claim import FILE, claimed

REPOSITORY = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from tune.sweep import claim
from tune.sweep.claim import claimed
from tune.records.folder import Folder
from tune.errors import SweepError

claim.BEAT_S = 0.5
print("ready", flush=True)
while not Path(sys.argv[2]).exists():  # all begin together
    pass
try:
    with claimed(Folder(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except SweepError as problem:
    print(f"refused: {problem}", flush=True)
"""


def holder(folder: Path, begin: Path, seconds: float = 60) -> subprocess.Popen:
    """A driver that has imported everything, and claims a folder as soon as there is a file to begin by."""
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(begin), str(seconds)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout.readline() == "ready\n"
    return driver


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    first = holder(tmp_path, begin=tmp_path)
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(SweepError, match=f"run by process {first.pid} on {platform.node()}"),
            claimed(Folder(str(tmp_path))),
        ):
            pass
        assert (tmp_path / FILE).exists()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    with claimed(Folder(str(tmp_path))):  # at once: a killed driver is resumed without waiting
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / FILE).exists()


def test_of_several_that_start_together_one_runs(tmp_path):
    begin, folder = tmp_path / "begin", tmp_path / "sweep"
    drivers = [holder(folder, begin, 3) for _ in range(3)]
    begin.touch()
    said = [driver.communicate()[0] for driver in drivers]
    assert sorted(text.split(":")[0].strip() for text in said) == ["held", "refused", "refused"]


def test_a_driver_on_another_machine_lives_while_it_says_so(tmp_path, monkeypatch):
    """Whatever the two clocks say."""
    monkeypatch.setattr(claim, "WATCH_S", 2.0)
    folder = Folder(str(tmp_path))
    elsewhere = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x", "beat": 7}
    folder.write_json(FILE, elsewhere)
    alive = threading.Timer(0.5, folder.write_json, (FILE, elsewhere | {"beat": 8}))
    alive.start()
    with pytest.raises(SweepError, match="process 1 on elsewhere"), claimed(folder):
        pass
    alive.join()
    with claimed(folder):  # no more beats
        assert folder.read_json(FILE)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("other", "at_once"),
    [({}, True), ({"boot": "another"}, False), ({"pid_namespace": "pid:[1]"}, False), ({"boot": claim.UNKNOWN}, False)],
)
def test_a_process_is_known_to_be_gone_on_its_own_machine_alone(tmp_path, monkeypatch, other, at_once):
    """Of containers that are named alike each has processes of its own."""
    monkeypatch.setattr(claim, "WATCH_S", 1.0)
    with claimed(Folder(str(tmp_path))):
        held = Folder(str(tmp_path)).read_json(FILE)
    assert held["boot"] != claim.UNKNOWN
    Folder(str(tmp_path)).write_json(FILE, {**held, "pid": 2**22 + 1, **other})
    began = time.monotonic()
    with claimed(Folder(str(tmp_path))):
        waited = time.monotonic() - began - claim.SETTLE_S
    assert (waited < claim.WATCH_S) == at_once


@pytest.mark.parametrize("content", ["", "{}", '{"host": "x"', "[]"])
def test_a_damaged_claim_counts_as_none(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with claimed(Folder(str(tmp_path))):
        assert Folder(str(tmp_path)).read_json(FILE)["pid"] == os.getpid()


def test_a_driver_that_was_taken_for_dead_ends(tmp_path):
    """A machine that stood still must not write beside the one that has gone on with its sweep."""
    taken = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x", "beat": 0}
    driver = holder(tmp_path, begin=tmp_path, seconds=600)
    assert driver.stdout.readline() == "held\n"
    Folder(str(tmp_path)).write_json(FILE, taken)
    assert driver.wait(timeout=120) == 1
    driver.stdout.close()
    assert json.loads((tmp_path / FILE).read_text()) == taken
