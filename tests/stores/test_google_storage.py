"""Storage on Google's side: the same manners as everywhere else. A whole sweep there is in test_storage.py."""

from __future__ import annotations

import os

import pytest
from gs_server import gs_server
from pyarrow import fs

from data.stores import faults as store_faults
from data.stores import storage
from data.stores.storage import StorageError, file_names, open_folder, read_whole, write_whole

BUCKET = "gs://anonymous@bucket"


@pytest.fixture(scope="module")
def server():
    """A server with a bucket, for this process and those it starts."""
    with gs_server("bucket") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def healthy(server):
    """Before every test."""
    server.fail_every.value = server.failed.value = 0


def test_what_is_written_is_read_through_faults(server):
    """Every fourth request fails."""
    filesystem, path = open_folder(f"{BUCKET}/through")
    content = os.urandom(9_000_000)  # Google's client sends it in parts
    server.fail_every.value = 4
    write_whole(filesystem, f"{path}/deep/large", content)
    write_whole(filesystem, f"{path}/deep/small", b"first")
    write_whole(filesystem, f"{path}/deep/small", b"second")
    write_whole(filesystem, f"{path}/deep/empty", b"")
    assert file_names(filesystem, f"{path}/deep") == ["empty", "large", "small"]
    assert read_whole(filesystem, f"{path}/deep/large") == content
    assert read_whole(filesystem, f"{path}/deep/small") == b"second"
    assert read_whole(filesystem, f"{path}/deep/empty") == b""
    assert server.failed.value >= 3


@pytest.mark.parametrize("name", ["of today", "größer", "a%41", "100 %", "a+b=c"])
def test_a_name_in_a_bucket_means_itself(name):
    filesystem, path = open_folder(f"{BUCKET}/named/{name}")
    assert path == f"bucket/named/{name}"
    write_whole(filesystem, f"{path}/a", name.encode())
    assert read_whole(filesystem, f"{path}/a") == name.encode()
    around, above = open_folder(f"{BUCKET}/named")
    assert f"{path}/a" in [info.path for info in around.get_file_info(fs.FileSelector(above, recursive=True))]


def test_a_checkpoint_is_copied_and_deleted_as_ray_does(tmp_path, server):
    """There is no object for the folder itself, which Google's client asks for when it deletes one."""
    (tmp_path / "state.pt").write_bytes(os.urandom(50_000))
    filesystem, path = open_folder(f"{BUCKET}/trial/checkpoint_000000")
    fs.copy_files(str(tmp_path), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
    write_whole(filesystem, "bucket/trial/checkpoint_000001/state.pt", b"the next one")
    assert filesystem.get_file_info(path).type == fs.FileType.Directory
    filesystem.delete_dir(path)
    assert filesystem.get_file_info(path).type == fs.FileType.NotFound
    assert file_names(filesystem, "bucket/trial/checkpoint_000001") == ["state.pt"]


def test_what_is_not_there_is_told_from_a_store_that_is_away(server, monkeypatch):
    monkeypatch.setattr(store_faults, "PATIENCE_S", 2)
    monkeypatch.setattr(storage, "ANSWER_S", 1)
    filesystem, path = open_folder(f"{BUCKET}/away")
    assert file_names(filesystem, path) == []
    with pytest.raises(FileNotFoundError):
        read_whole(filesystem, f"{path}/nothing")
    with pytest.raises(FileNotFoundError):
        filesystem.delete_file(f"{path}/nothing")
    other, there = open_folder("gs://anonymous@no-such-bucket/results")
    with pytest.raises(StorageError, match=r"cannot write gs://no-such-bucket/results/a: there is no such bucket"):
        write_whole(other, f"{there}/a", b"x")
    server.fail_every.value = 1
    for operation in (lambda: write_whole(filesystem, f"{path}/a", b"x"), lambda: read_whole(filesystem, f"{path}/a")):
        with pytest.raises(StorageError, match=r"gs://bucket/away/a.*: the store fails again and again"):
            operation()
