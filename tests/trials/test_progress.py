"""What a fit says of itself while it reports nothing reaches who waits: in lines, and in the table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

import tune.trials.progress
import tune.trials.terminal
from data.metrics import METRICS
from tune.trials.progress import Progress, progress_of
from tune.trials.terminal import Terminal


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A terminal that asks at every step, and one trial of fold 3 that has begun."""
    monkeypatch.setattr(tune.trials.terminal, "ASK_LINES_S", 0.0)
    terminal = Terminal("training the chosen", 5, METRICS["mae"], str(tmp_path))
    terminal.setup()
    trial = SimpleNamespace(trial_id="one", config={"run": {"fold": 3, "model": "gaussian_process"}})
    terminal.on_trial_start(0, [trial], trial)
    return terminal, trial, Progress(f"{tmp_path}/trial_one")


def test_a_fit_of_minutes_is_heard_of(waiting, capsys):
    terminal, trial, progress = waiting
    terminal.on_step_begin(1, [trial])
    assert "fold 3" not in capsys.readouterr().err  # it has said nothing yet
    progress("likelihood of 800 rows, step 1 of at most 60")
    terminal.on_step_begin(2, [trial])
    assert "fold 3 after 0:00: likelihood of 800 rows, step 1 of at most 60" in " ".join(
        capsys.readouterr().err.split()
    )
    console = Console(width=160)
    with console.capture() as table:
        console.print(terminal)
    assert "likelihood of 800 rows, step 1 of at most 60, 0:0" in table.get()


def test_what_has_reported_says_no_more(waiting, capsys):
    terminal, trial, progress = waiting
    progress("likelihood of 800 rows, step 1 of at most 60")
    result = {"epoch": 1, "val_mae": 0.1, "kept_val_mae": 0.1, "lr": 0.0}
    terminal.on_trial_result(1, [trial], trial, result)
    terminal.on_step_begin(2, [trial])
    assert "likelihood" not in capsys.readouterr().err


def test_a_line_is_written_now_and_then_and_one_that_cannot_be_is_let_go(tmp_path, monkeypatch):
    assert progress_of(str(tmp_path)) == ""
    progress = Progress(str(tmp_path))
    progress("first")
    progress("too soon")
    assert progress_of(str(tmp_path)) == "first"
    monkeypatch.setattr(tune.trials.progress, "EVERY_S", 0.0)
    progress("second")
    assert progress_of(str(tmp_path)) == "second"
    (tmp_path / "file").write_text("")
    Progress(str(tmp_path / "file"))("nowhere to go")


def test_a_trial_that_training_has_not_made_better_says_so(waiting, capsys):
    terminal = waiting[0]
    last = {"epoch": 20, "kept_epoch": 0, "val_mae": 0.0712, "kept_val_mae": 0.0638}
    fields = {"fold": 3, "model": "chgnet", "epochs": 100}
    done = SimpleNamespace(trial_id="one", config={"run": fields}, last_result=last, is_finished=lambda: True)
    terminal.on_trial_complete(3, [done], done)
    line = " ".join(capsys.readouterr().err.split())
    assert "val mae 0.0638 (best 0.0638) before training, 0.0712 after 20 epochs of it, stopped by ASHA" in line
