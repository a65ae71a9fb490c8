"""One driver a sweep: the second is refused while the first lives, and not after it was killed."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tune.claim import DEAD_AFTER_S, FILE, claimed
from tune.options import Folder, SweepError

REPOSITORY = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from tune.claim import claimed
from tune.options import Folder, SweepError

while time.time() < float(sys.argv[2]):  # all begin together
    pass
try:
    with claimed(Folder(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except SweepError as problem:
    print(f"refused: {problem}", flush=True)
"""


def holder(folder: Path, begin: float = 0, seconds: float = 60) -> subprocess.Popen:
    arguments = [str(folder), str(begin), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    first = holder(tmp_path)
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
    begin = time.time() + 20  # importing takes a while
    drivers = [holder(tmp_path, begin, 3) for _ in range(3)]
    said = [driver.communicate()[0] for driver in drivers]
    assert sorted(text.split(":")[0].strip() for text in said) == ["held", "refused", "refused"]


@pytest.mark.parametrize(("age", "alive"), [(1, True), (DEAD_AFTER_S + 1, False)])
def test_a_driver_on_another_machine_lives_while_it_says_so(tmp_path, age, alive):
    claim = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x", "beat": time.time() - age}
    (tmp_path / FILE).write_text(json.dumps(claim))
    if not alive:
        with claimed(Folder(str(tmp_path))):
            pass
        return
    with pytest.raises(SweepError, match="process 1 on elsewhere"), claimed(Folder(str(tmp_path))):
        pass
    assert json.loads((tmp_path / FILE).read_text()) == claim
