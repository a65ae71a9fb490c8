"""Long runs of what may happen to a sweep: `make test-faults`. Short forms of each are in the ordinary tests."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from sweeps import new, outcome, prepare, run, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("MATSWEEP_KILLS", "20"))
_RANDOM = random.Random(0)
MOMENTS = [_RANDOM.uniform(0.02, 0.98) for _ in range(KILLS)]  # as parts of the time that a whole sweep takes
SPACE = """\
num_samples: 5
grace_epochs: 3
parameters:
  freeze_depth: full
  lr: {loguniform: [0.0005, 0.01]}
  epochs: {choice: [6, 9]}
"""
# A time.time() that jumps once a process is 15 s old; put where Python looks for it at every start.
JUMPING = """\
import time
_clock, _began = time.time, time.monotonic()
time.time = lambda: _clock() + ({seconds} if time.monotonic() - _began > 15 else 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A space, ids of the demo, and the caches of all sweeps."""
    return prepare(tmp_path_factory.mktemp("faults"), every=8, small=SPACE)


def of_one_fold(folder: Path, name: str) -> list[str]:
    return [*new(folder, name), "--folds=0"]


def outcome_of(folder: Path, name: str) -> dict:
    return outcome((folder / f"results/{name}/results.json").read_text())


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted sweep, the second one, for which everything is cached; and how long it took."""
    for name in ("first", "whole"):
        began = time.monotonic()
        run(folder, *of_one_fold(folder, name))
    return outcome_of(folder, "whole"), time.monotonic() - began


def redone(folder: Path, name: str) -> int:
    """Reports beyond the first of an epoch, of all trials, by their events; each final training makes one by itself."""
    count = 0
    for trial in (folder / f"results/{name}").glob("*/trial_*"):
        if trial.is_dir():
            events = EventAccumulator(str(trial)).Reload()
            if "lr" in events.Tags()["scalars"]:
                steps = [event.step for event in events.Scalars("lr")]
                count += len(steps) - len(set(steps))
    return count


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_it_ends_the_same(folder, whole, capsys, number):
    expected, seconds = whole
    name, after = f"killed_{number}", MOMENTS[number] * seconds
    driver = start(folder, folder / "log.txt", *of_one_fold(folder, name))
    time.sleep(after)
    there = (folder / f"results/{name}/sweep.json").exists()
    ended = driver.poll() is not None
    driver.kill()  # kill -9
    driver.wait()
    before = len(list((folder / f"results/{name}").glob("*/trial_*/checkpoint_*")))
    run(folder, *([f"--resume={name}"] if there else of_one_fold(folder, name)))
    assert outcome_of(folder, name) == expected, f"killed after {after:.1f} s of {seconds:.1f} s"
    again = redone(folder, name) - redone(folder, "whole")
    assert again <= 1, f"killed after {after:.1f} s: {again} epochs were trained again"
    state = "had ended" if ended else "was running" if there else "had not begun"
    with capsys.disabled():
        print(f"\n  {after:.1f} s of {seconds:.0f} s: {state}, {before} checkpoints there, {again} epochs redone")


@pytest.mark.parametrize("hours", [5, -5])
def test_a_clock_that_jumps_changes_nothing(folder, whole, tmp_path, hours):
    """In the driver, in Ray's own Python processes and in the workers."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING.format(seconds=3600 * hours))
    name = f"jump_{hours}"
    run(folder, *of_one_fold(folder, name), PYTHONPATH=str(tmp_path))
    assert outcome_of(folder, name) == whole[0]
