"""What comes from outside runs nothing and reads nothing beside it; what goes out tells no secret.

That a model file runs no code is in tests/training/test_fitted.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from data.stores.storage import StorageError, open_folder
from data.task import TaskError
from data.tasks import open_task
from tune.run_sweep import app
from tune.spaces.space import SpaceError, load_space

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
SERVER = """\
import ray, sys
from data.machine.ray_session import connect
connect()
ray.get(ray.remote(lambda: None).remote())  # a worker
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
CLIENT = """\
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(ray.get(ray.remote(num_cpus=0)(lambda: "ran").remote()))
"""


def test_a_space_runs_no_code(tmp_path):
    (tmp_path / "space.yaml").write_text(f"parameters: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    with pytest.raises(SpaceError, match="not YAML"):
        load_space(str(tmp_path / "space.yaml"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.cif", "{folder}/../secret.cif", "/etc/hostname"])
def test_a_table_names_no_file_outside_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.cif").write_text("data_x\n")
    (folder / "inside.cif").write_text("data_x\n")
    (folder / "targets.csv").write_text(f"file,target\ninside.cif,1\n{name.format(folder=folder)},2\n")
    rows = open_task(str(folder), download_dir=tmp_path)[1]
    assert "is in the folder; line 3 of targets.csv names it" in str(list(rows.chunk(0, 2).crystals())[1])


@pytest.mark.parametrize("name", ["inside.cif", "targets.csv", "below"])
def test_a_folder_has_no_link_that_leads_out_of_it(tmp_path, name):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for place in (folder, outside):
        (place / "below").mkdir(parents=True)
        for cif in ("inside.cif", "below/deeper.cif"):
            Structure(Lattice.cubic(3.9), ["Si"], [[0, 0, 0]]).to(place / cif)
        (place / "targets.csv").write_text("file,target\ninside.cif,1\nbelow/deeper.cif,2\n")
    (tmp_path / "link").symlink_to(folder)  # to the folder itself one may lead
    (folder / "again.cif").symlink_to(folder / "inside.cif")  # and so may one inside it
    assert len(open_task(str(tmp_path / "link"), download_dir=tmp_path)[1]) == 2
    (folder / name).rename(tmp_path / "old")
    (folder / name).symlink_to(outside / name)
    if name == "below":  # which is not looked into
        rows = open_task(str(folder), download_dir=tmp_path)[1]
        assert "no structure file 'below/deeper.cif'" in str(list(rows.chunk(0, 2).crystals())[1])
        return
    with pytest.raises(TaskError, match=f"lead out of it by a link: {name}.* -> {outside}"):
        open_task(str(folder), download_dir=tmp_path)


def test_an_address_with_keys_is_refused_without_telling_them():
    with pytest.raises(StorageError, match="Leave them out") as caught:
        open_folder(f"s3://AKIAIOSFODNN7EXAMPLE:{KEY}@bucket/results")
    assert KEY not in str(caught.value)


@pytest.mark.whole
@pytest.mark.usefixtures("ray_session")
def test_no_secret_of_the_environment_is_in_what_a_sweep_leaves(tmp_path):
    (tmp_path / "ridge.csv").write_text(
        "composition,target\n" + "".join(f"Na{n}Cl{m},{n / m}\n" for n in range(1, 9) for m in range(1, 9))
    )
    secrets = {"AWS_SECRET_ACCESS_KEY": KEY, "WANDB_API_KEY": KEY, "MATSWEEP_CACHE": str(tmp_path / "cache")}
    arguments = ["--space=ridge", f"--task={tmp_path}/ridge.csv", f"--storage={tmp_path}/results", "--name=x"]
    done = CliRunner().invoke(app, [*arguments, "--folds=0"], env={**os.environ, **secrets})
    assert done.exit_code == 0, done.output
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert (tmp_path / "results/x/results.json") in left
    assert KEY not in done.output
    assert not [path for path in left if KEY.encode() in path.read_bytes()]


def listeners(pid):
    """Program and address of every TCP port that a process or one of its descendants listens on."""
    found = set()
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        for connection in one.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((one.name(), connection.laddr.ip))
    return found


def test_ray_on_this_machine_is_seen_by_it_alone_and_answers_to_its_token_alone(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def client(home, **more):
        return subprocess.run(
            [sys.executable, "-c", CLIENT, address],
            # One attempt: left alone, a client that was refused asks for 20 seconds more. And at 127.0.0.1, of which a
            # client makes this machine's other address unless it is told that there are no clusters.
            env={
                **environment,
                "HOME": str(home),
                "RAY_NUM_REDIS_GET_RETRIES": "1",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                **more,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=REPOSITORY,
        env={**environment, "HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        address = server.stdout.readline().strip()
        try:
            listening = listeners(server.pid)
            own = client(home, RAY_AUTH_MODE="token")
            given = client(elsewhere, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=(home / ".ray/auth_token").read_text())
            # A client in mode `token` that has none gives up by itself; one that is told to do without asks.
            without = client(elsewhere, RAY_AUTH_MODE="disabled")
            other = client(elsewhere, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
        finally:
            server.stdin.close()
    assert {"gcs_server", "raylet"} <= {program for program, _ in listening}
    assert {place for _, place in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening
    for allowed in (own, given):
        assert allowed.returncode == 0, allowed.stderr
        assert allowed.stdout.strip() == "ran"
    for refused in (without, other):
        assert refused.returncode != 0, refused.stdout
        assert "InvalidAuthToken" in refused.stderr
        assert "ran" not in refused.stdout
