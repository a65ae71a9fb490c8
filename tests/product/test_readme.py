"""What the pages for people name exists: every command, option, task, space, field, file, heading and make target."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import typer.main
from pymatgen.core import Lattice, Structure

import benchmarks.trust
import benchmarks.wild
import data.build_cache
import models.predict
import tune.compare
import tune.ensemble
import tune.leaderboard
import tune.report
import tune.run_queue
import tune.run_sweep
import tune.submit
from data.families import task_names
from data.task import TaskError
from data.tasks import open_task
from models.crystals.rows import CrystalRows
from models.fitted import FittedModel, ModelFileError, load_model
from models.model import TrainingPart
from models.registry import MODELS, open_model
from tune.spaces.queue_file import load_queue
from tune.spaces.space import load_space

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = ("README.md", *sorted(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")))
PAGES = (
    *TEXTS,
    "ray_results/README.md",
    "data/demo/README.md",
    "cluster.yaml",
    "cluster.aws.yaml",
    "cluster.kuberay.yaml",
)
OF_THE_READER = ("neighbours.yaml", "wider.yaml", "my_space.yaml", "my_crystals")  # files that are not ours
README_LINES = 130  # more than a newcomer reads before the first sweep
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


def benchmark(main):
    """The command that a benchmark's function is."""
    app = typer.Typer()
    app.command()(main)
    return app


BENCHMARKS = [benchmark(benchmarks.trust.main), benchmark(benchmarks.wild.main)]


def commands():
    """Every `python tune/run_sweep.py ...` and the like of the pages."""
    for page in PAGES:
        text = re.sub(r"\\\n#? *", "", (REPOSITORY / page).read_text())  # goes on in the next line
        for line in re.findall(r"python ((?:tune|models|data)/\w+\.py[^`#\n]*)", text):
            yield pytest.param(line.strip(), id=f"{page}: {line.strip()}")


def options_of(app):
    """Every option of a command."""
    return {name for option in typer.main.get_command(app).params for name in option.opts if name.startswith("--")}


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize(
    "command",
    ["python tune/run_sweep.py --space head_finetune", "ray up cluster.yaml", "tensorboard --logdir ray_results"],
)
def test_the_readme_starts_a_sweep_a_cluster_and_tensorboard(command):
    assert command in (REPOSITORY / "README.md").read_text()


def questions(index):
    """The question of every page of docs/, as an index gives it."""
    links = r"^\| \[[^]]*\]\((?:docs/)?(\w+\.md)\) \| ([^|]*\?) \|$"
    return dict(re.findall(links, (REPOSITORY / index).read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_every_page_begins_with_the_question_that_the_index_gives(index):
    pages = {page.name: page for page in (REPOSITORY / "docs").glob("*.md") if page.name != "README.md"}
    assert questions(index).keys() == pages.keys()
    for name, question in questions(index).items():
        _, first = pages[name].read_text().split("\n\n", 1)
        assert first.startswith(f"**{question}** "), name


@pytest.mark.parametrize("line", list(commands()))
def test_command_takes_the_options_it_is_shown_with(line):
    script, *arguments = shlex.split(line)
    command = typer.main.get_command(COMMANDS[script])
    if "--help" in arguments:
        return
    given = command.make_context(script, arguments, resilient_parsing=False).params
    assert given.get("task") in (None, *OF_THE_READER, *task_names())
    if "space" in given and given["space"] not in OF_THE_READER:
        load_space(given["space"])
    if "queue" in given:
        load_queue(given["queue"])


@pytest.mark.parametrize("page", TEXTS)
def test_options_that_a_page_names_exist(page):
    options = set().union(*map(options_of, [*COMMANDS.values(), *BENCHMARKS]))
    options |= {"--help", "--logdir"}  # the latter of TensorBoard
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", (REPOSITORY / page).read_text()))
    assert named - options == set()


def test_every_option_of_a_sweep_is_named():
    told = "".join((REPOSITORY / page).read_text() for page in TEXTS)
    assert [name for name in options_of(tune.run_sweep.app) if not re.search(rf"{name}(?![\w-])", told)] == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_a_page_names_exist(page):
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"(?:^|`|&& )make ([a-z-]+)", (REPOSITORY / page).read_text(), flags=re.MULTILINE)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def anchors(page):
    """What a link to a heading of a page has behind its #."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_files_and_headings_that_a_page_names_exist(page):
    here = REPOSITORY / page
    text = here.read_text()
    for name, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        there = here.parent / name if name else here
        assert there.exists(), name
        assert not heading or heading in anchors(there), f"{name}#{heading}"
    for name in re.findall(r"`((?:data|models|tune|tests|benchmarks|docs|search_spaces)/[\w/]+\.\w+)`", text):
        assert (REPOSITORY / name).exists(), name


def test_every_space_and_queue_is_named():
    page = (REPOSITORY / "docs/spaces.md").read_text()
    assert [file.stem for file in (REPOSITORY / "search_spaces").glob("*.yaml") if f"`{file.stem}`" not in page] == []


@pytest.mark.parametrize("page", ["README.md", "docs/spaces.md"])
def test_spaces_and_queues_that_a_page_shows_are_read(page, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / page).read_text(), re.S)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        if "experiments:" in block:
            assert load_queue(str(file)).experiments
        else:
            assert load_space(str(file)).searched


def test_every_room_of_the_code_is_named():
    page = (REPOSITORY / "docs/code.md").read_text()
    rooms = {
        f"{file.parent.relative_to(REPOSITORY).as_posix()}/"
        for room in ("data", "models", "tune")
        for file in (REPOSITORY / room).rglob("*.py")
        if len(file.relative_to(REPOSITORY).parts) <= 4
    }
    assert sorted(room for room in rooms if f"| `{room}` |" not in page) == []


@pytest.mark.parametrize("name", MODELS)
def test_every_field_and_space_of_a_model_is_named(name):
    page = (REPOSITORY / "docs/models.md").read_text()
    fields = open_model(name).config.model_fields
    assert [field for field in fields if field != "seed" and f"`{field}`" not in page] == []
    (spaces,) = re.findall(rf"^\| `{name}`.* \| ([^|]*) \|$", page, flags=re.MULTILINE)
    for space in re.findall(r"`(\w+)`", spaces):
        assert load_space(space).model == name


def test_a_folder_of_ones_own_is_read_as_the_readme_says(tmp_path):
    readme = (REPOSITORY / "README.md").read_text()
    (table,) = re.findall(r"```csv\n(.*?)```", readme, re.S)
    ((task, target),) = re.findall(r"--task (my_\w+) --target (\w+)", readme)
    folder = tmp_path / task
    folder.mkdir()
    (folder / "targets.csv").write_text(table)
    for name in re.findall(r"^(\w+\.cif),", table, flags=re.MULTILINE):
        Structure(Lattice.cubic(3.9), ["Si"], [[0, 0, 0]]).to(folder / name)
    opened, rows = open_task(str(folder), target=target, download_dir=tmp_path)
    assert (opened.target, len(rows)) == (target, table.strip().count("\n"))
    with pytest.raises(TaskError, match="--target"):
        open_task(str(folder), download_dir=tmp_path)


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
    rows = CrystalRows(random.dirichlet(np.full(94, 0.05), 40).astype(np.float32), np.full(40, 3, dtype=np.int32))
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
