"""The README's commands exist as written: every option, task, space, file and make target it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer.main

import data.build_cache
import models.predict
import tune.compare
import tune.ensemble
import tune.leaderboard
import tune.report
import tune.run_queue
import tune.run_sweep
import tune.submit
from data.tasks import task_names
from models.fitted import FittedModel, ModelFileError, load_model
from models.model import TrainingPart, TrainingRows
from models.registry import open_model
from tune.queue_file import load_queue
from tune.space import load_space

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/models.md",
    "ray_results/README.md",
    "data/demo/README.md",
    "cluster.yaml",
    "cluster.aws.yaml",
)
COMMANDS = {
    "tune/run_sweep.py": tune.run_sweep.app,
    "tune/run_queue.py": tune.run_queue.app,
    "tune/compare.py": tune.compare.app,
    "tune/ensemble.py": tune.ensemble.app,
    "tune/leaderboard.py": tune.leaderboard.app,
    "tune/report.py": tune.report.app,
    "tune/submit.py": tune.submit.app,
    "models/predict.py": models.predict.app,
    "data/build_cache.py": data.build_cache.app,
}


def commands():
    """Every `python tune/run_sweep.py ...` and the like of the pages."""
    for page in PAGES:
        for line in re.findall(r"python ((?:tune|models|data)/\w+\.py[^`#\n]*)", (REPOSITORY / page).read_text()):
            yield pytest.param(line.strip(), id=f"{page}: {line.strip()}")


@pytest.mark.parametrize("line", list(commands()))
def test_command_takes_the_options_it_is_shown_with(line):
    script, *arguments = shlex.split(line)
    command = typer.main.get_command(COMMANDS[script])
    if "--help" in arguments:
        return
    given = command.make_context(script, arguments, resilient_parsing=False).params
    assert given.get("task") in (None, *task_names())
    if "space" in given and given["space"] not in ("neighbours.yaml", "wider.yaml"):  # which the reader writes
        load_space(given["space"])
    if "queue" in given:
        load_queue(given["queue"])


def test_the_commands_of_the_introduction_are_make_targets():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = (REPOSITORY / page).read_text()
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named = re.findall(r"`((?:data|models|tune|tests|benchmarks)/[\w/]+\.\w+)`", text)
    for name in linked:
        assert (REPOSITORY / page).parent.joinpath(name).exists(), name
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_the_model_of_ones_own_that_a_page_shows_works(tmp_path):
    """Written to files as shown, it is fitted, predicts, and is read from its model file; nothing else is needed."""
    code, space, *_ = re.findall(
        r"```(?:python|yaml)\n# \w+\.\w+\n(.*?)```", (REPOSITORY / "docs/models.md").read_text(), re.S
    )
    (tmp_path / "neighbours.py").write_text(code)
    (tmp_path / "neighbours.yaml").write_text(space)
    loaded = load_space(str(tmp_path / "neighbours.yaml"))
    model = open_model(loaded.model)
    random = np.random.default_rng(0)
    rows = TrainingRows(random.dirichlet(np.full(94, 0.05), 40).astype(np.float32), np.full(40, 3, dtype=np.int32))
    targets = rows.fractions[:, :5] @ np.arange(5.0)
    part = TrainingPart(targets, np.arange(30), np.arange(30, 40), "regression", "other")
    run = model.start(model.config(neighbours=2), rows, part, "cpu")
    (fit,) = run.epochs()
    assert fit.train_loss < 1e-6  # each is its own nearest neighbour
    FittedModel(model, run.fitted(), {}).save(tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth", model=str(tmp_path / "neighbours.py"))
    assert again.predict(["NaCl", "Fe2O3"]).shape == (2,)
    with pytest.raises(ModelFileError, match=r"trained with a model of .*neighbours\.py: give that file"):
        load_model(tmp_path / "model.pth")
