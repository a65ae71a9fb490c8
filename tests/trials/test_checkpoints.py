"""A trial goes on from the newest checkpoint that is whole, whatever Ray's record names."""

import pytest
import ray.tune
import torch

from tune.trials.trial import STATE_FILE, is_gone, saved_state


@pytest.fixture
def trial(tmp_path):
    """A trial's folder with checkpoints of epochs 3 to 5."""
    for epoch in (3, 4, 5):
        folder = tmp_path / f"checkpoint_{epoch:06}"
        folder.mkdir()
        torch.save({"epoch": epoch, "weights": torch.ones(1000)}, folder / STATE_FILE)
    return tmp_path


def found(folder, epoch):
    state = saved_state(ray.tune.Checkpoint.from_directory(folder / f"checkpoint_{epoch:06}"))
    return None if state is None else state["epoch"]


def test_the_one_that_is_named_is_taken(trial):
    assert found(trial, 4) == 4


def test_for_one_that_was_deleted_the_newest_stands_in(trial):
    assert found(trial, 1) == 5


@pytest.mark.parametrize("damage", ["empty", "cut", "gone"])
def test_a_damaged_one_costs_what_came_after_the_one_before(trial, damage):
    file = trial / "checkpoint_000005" / STATE_FILE
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-200] if damage == "cut" else b"")
    assert found(trial, 5) == 4


def test_where_none_is_whole_the_trial_begins_anew(trial):
    for file in trial.glob(f"*/{STATE_FILE}"):
        file.write_bytes(b"nothing")
    assert found(trial, 5) is None


def test_one_that_was_deleted_is_known_to_be_gone(trial):
    there, deleted = (ray.tune.Checkpoint.from_directory(trial / f"checkpoint_{k:06}") for k in (4, 1))
    assert [is_gone(there), is_gone(deleted), is_gone(None)] == [False, True, False]


def test_what_stands_in_for_a_deleted_one_is_still_gone(trial):
    """So that Ray restores the trial at all; the newest whole one is taken."""
    (trial / "checkpoint_000001").mkdir()
    (trial / "checkpoint_000001/deleted").touch()
    assert is_gone(ray.tune.Checkpoint.from_directory(trial / "checkpoint_000001"))
    assert found(trial, 1) == 5
