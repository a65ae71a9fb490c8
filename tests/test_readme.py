"""The README's commands exist as written: every option, task, space, file and make target it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import data.build_cache
import tune.run_sweep
from data.tasks import task_names
from tune.space import load_space

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "ray_results/README.md", "data/demo/README.md", "cluster.yaml")
COMMANDS = {"tune/run_sweep.py": tune.run_sweep.app, "data/build_cache.py": data.build_cache.app}


def commands():
    """Every `python tune/run_sweep.py ...` and `python data/build_cache.py ...` of the pages."""
    for page in PAGES:
        for line in re.findall(
            r"python ((?:tune/run_sweep|data/build_cache)\.py[^`#\n]*)", (REPOSITORY / page).read_text()
        ):
            yield pytest.param(line.strip(), id=f"{page}: {line.strip()}")


@pytest.mark.parametrize("line", list(commands()))
def test_command_takes_the_options_it_is_shown_with(line):
    script, *arguments = shlex.split(line)
    command = typer.main.get_command(COMMANDS[script])
    if "--help" in arguments:
        return
    given = command.make_context(script, arguments, resilient_parsing=False).params
    assert given.get("task") in (None, *task_names())
    if "space" in given:
        load_space(given["space"])


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
