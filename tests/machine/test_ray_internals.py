"""What is used of Ray beside what it publishes is there, and does what it is used for."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler
from sweeps import REPOSITORY

from data.machine.ray_internals import (
    AUTHENTICATION_LOGGER,
    await_answer,
    has_autoscaler,
    is_head,
    most_resources,
    place_of,
    scheduler_of,
    sigterm_as_before,
    temporary_folder,
)

INTERNALS = "data/machine/ray_internals.py"


def run(program: str) -> str:
    """What a program prints that has Ray to itself."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["data", "models", "tune"])
def test_nothing_else_of_the_code_names_what_ray_keeps_to_itself(folder):
    private = re.compile(r"ray(\.\w+)*\._\w+|_local_tuner|_tune_config|_internal_kv")
    for path in (REPOSITORY / folder).rglob("*.py"):
        name = path.relative_to(REPOSITORY).as_posix()
        if name == INTERNALS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.ImportFrom | ast.Import):
                assert not private.search(ast.unparse(node)), f"{name}, line {node.lineno}"


def test_the_temporary_folder_is_where_a_session_is(ray_session):
    assert Path(ray.get_runtime_context().get_session_name()).name
    assert any(Path(temporary_folder()).glob("session_*"))


def test_the_address_of_a_cluster_is_taken_apart_and_answers(ray_session):
    address = ray.get_runtime_context().gcs_address
    place, host, port = place_of(address)
    assert (place, f"{host}:{port}") == (address, address)
    await_answer(place)


def test_this_process_is_the_head_of_what_it_has_started(ray_session):
    assert is_head()
    program = "from data.machine.ray_internals import is_head; print(is_head())"
    assert run(program) == "False\n"


def test_a_cluster_without_an_autoscaler_has_none_and_adds_nothing(ray_session):
    assert not has_autoscaler()
    assert most_resources() == {}


def test_ray_listens_on_this_machine_alone_and_workers_look_into_no_folder_of_the_driver():
    program = """
import os, tempfile
from data.machine.ray_session import connect
connect()
import ray
print(ray.util.get_node_ip_address())
folder = tempfile.mkdtemp()
@ray.remote
def path():
    import sys
    return sys.path
print(os.getcwd() in ray.get(path.remote())[:1])
"""
    assert run(program).split() == ["127.0.0.1", "False"]


def test_sigterm_does_what_it_did_before_ray_was_started():
    program = """
import os, signal, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
from data.machine.ray_session import connect
connect()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
print(heard)
"""
    assert run(program) == "[1]\n"


def test_sigterm_is_let_be_in_a_thread_that_may_not_set_it():
    entered = []

    def enter() -> None:
        with sigterm_as_before():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]


def test_ray_s_line_on_its_own_processes_comes_from_the_logger_that_is_silenced():
    assert logging.getLogger(AUTHENTICATION_LOGGER).name in run(
        "import ray._private.authentication.authentication_token_setup as setup; print(setup.logger.name)"
    )


def test_the_scheduler_of_a_run_is_reached(tmp_path):
    scheduler = FIFOScheduler()
    config = ray.tune.TuneConfig(scheduler=scheduler)
    assert scheduler_of(ray.tune.Tuner(lambda _config: None, tune_config=config)) is scheduler
