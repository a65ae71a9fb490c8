"""What comes from outside runs nothing and reads nothing beside it; what goes out tells no secret.

That a model file runs no code is in tests/test_fitted.py.
"""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from data.storage import StorageError, open_folder
from data.tasks import TaskError, open_task
from tune.run_sweep import app
from tune.space import SpaceError, load_space

KEY = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


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
    with pytest.raises(TaskError, match="1 of 2 rows name no CIF or POSCAR file"):
        open_task(str(folder), download_dir=tmp_path)


def test_an_address_with_keys_is_refused_without_telling_them():
    with pytest.raises(StorageError, match="Leave them out") as caught:
        open_folder(f"s3://AKIAIOSFODNN7EXAMPLE:{KEY}@bucket/results")
    assert KEY not in str(caught.value)


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
