"""Storage as a user meets it: whole files, stores that fail and recover, full disks, and what is then said."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from gs_server import gs_server
from marks import whole_only
from pyarrow import fs
from s3_server import s3_server
from sweeps import new, outcome, prepare, run, start
from typer.testing import CliRunner

from data.crystals.graph_cache import graphs_of
from data.crystals.rows import Rows
from data.machine.ray_session import connect
from data.stores import faults as store_faults
from data.stores import storage
from data.stores.storage import StorageError, file_names, open_folder, read_whole, write_whole
from models.crystals.linear import DUMMY, FittedLinear
from models.crystals.reference import Reference
from models.fitted import FittedModel, load_model
from models.predict import app
from tune.cluster import storage_check
from tune.cluster.storage_check import check_storage, on_network
from tune.errors import SweepError
from tune.trials.progress import Progress, progress_of

# Ray leaves sockets and log files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SPACE = """\
description: small, for tests
num_samples: 3
grace_epochs: 4
parameters:
  freeze_depth: readout
  lr: {loguniform: [0.0005, 0.01]}
  epochs: {choice: [10, 20]}
  loss: huber
"""


@pytest.fixture(scope="module")
def bucket():
    """A server with a bucket, for this process and those it starts."""
    with s3_server("bucket") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def server(bucket):
    """The same, healthy before and after."""
    yield bucket
    bucket.heal()


@pytest.fixture
def small_disk(disk_of):
    """A folder on a disk of its own, 17 MB large."""
    return disk_of("17m")


@pytest.fixture
def mounted(tmp_path):
    """A folder that the machine has from a server, as it would have one over NFS: here over SFTP, without a network."""
    server = Path("/usr/lib/openssh/sftp-server")
    if not (shutil.which("sshfs") and server.exists() and Path("/dev/fuse").exists()):
        pytest.skip("needs sshfs, openssh-sftp-server and /dev/fuse")
    served, mount = tmp_path / "served", tmp_path / "mount"
    served.mkdir()
    mount.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serving = subprocess.Popen([server], stdin=theirs, stdout=theirs)
        asking = subprocess.Popen(["sshfs", "-f", "-o", "passive", f":{served}", mount], stdin=ours, stdout=ours)
    deadline = time.monotonic() + 30
    while not mount.is_mount():
        assert asking.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield mount
    subprocess.run(["fusermount3", "-u", mount], check=True)
    assert (asking.wait(30), serving.wait(30)) == (0, 0)


class Failing:
    """The local file system as a mounted folder whose server is away: reads, writes and lists fail, `times` each."""

    def __init__(self, code, times):
        self.plain, self.code, self.times, self.calls = fs.LocalFileSystem(), code, times, Counter()

    def __getattr__(self, name):
        does = getattr(self.plain, name)
        if name not in ("open_input_file", "open_output_stream", "get_file_info", "move", "delete_file"):
            return does

        def perhaps(*arguments, **options):
            self.calls[name] += 1
            if self.calls[name] <= self.times:
                raise OSError(self.code, os.strerror(self.code))
            return does(*arguments, **options)

        return perhaps


def enlarge(disk):
    subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)


@pytest.mark.parametrize("kind", ["500", *whole_only("503", "cut")])
def test_faults_that_pass_are_not_noticed(server, kind):
    """The first two requests of each kind fail."""
    filesystem, path = open_folder(f"s3://bucket/passing-{kind}")
    content = os.urandom(100_000)
    for operation, expected in (
        (lambda: write_whole(filesystem, f"{path}/a", content), None),
        (lambda: read_whole(filesystem, f"{path}/a"), content),
        (lambda: file_names(filesystem, path), ["a"]),
        (lambda: filesystem.delete_file(f"{path}/a"), None),
    ):
        faults = server.fail(kind, lambda method, path, count: count <= 2)
        assert operation() == expected
        assert sum(faults.done.values()) >= 2


@pytest.mark.whole
def test_a_server_that_falls_silent_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_S", 1)
    filesystem, path = open_folder("s3://bucket/silent")
    for operation in (lambda: write_whole(filesystem, f"{path}/a", b"x"), lambda: read_whole(filesystem, f"{path}/a")):
        faults = server.fail("silence", lambda method, path, count: count == 1)
        operation()
        assert sum(faults.done.values()) >= 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", "fails again and again"),
        *whole_only(("silence", "does not answer")),
        ("cut", "fails again and again"),
        ("403", "access denied"),
    ],
)
def test_a_store_that_stays_away_ends_in_a_sentence(server, monkeypatch, kind, expected):
    monkeypatch.setattr(store_faults, "PATIENCE_S", 3)
    monkeypatch.setattr(storage, "ANSWER_S", 1)
    filesystem, path = open_folder("s3://bucket/away")
    server.fail(kind, lambda method, path, count: True)
    for operation in (lambda: write_whole(filesystem, f"{path}/a", b"x"), lambda: read_whole(filesystem, f"{path}/a")):
        with pytest.raises(StorageError, match=f"s3://bucket/away/a.*: .*{expected}") as caught:
            operation()
        assert "\n" not in str(caught.value)
        assert "AWS Error" not in str(caught.value)


AWAY = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ECONNRESET, errno.ENOTCONN]


@pytest.mark.parametrize("code", AWAY, ids=errno.errorcode.get)
def test_a_mounted_folder_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch, code):
    monkeypatch.setattr(store_faults, "_FIRST_WAIT_S", 0.01)
    filesystem = storage.whole(Failing(code, times=2))
    write_whole(filesystem, f"{tmp_path}/a", b"content")
    assert read_whole(filesystem, f"{tmp_path}/a") == b"content"
    assert file_names(filesystem, str(tmp_path)) == ["a"]
    filesystem.delete_file(f"{tmp_path}/a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", AWAY, ids=errno.errorcode.get)
def test_a_mounted_folder_that_stays_away_ends_in_a_sentence(tmp_path, monkeypatch, code):
    monkeypatch.setattr(store_faults, "PATIENCE_S", 0.3)
    filesystem = storage.whole(Failing(code, times=1000))
    for what, operation in (
        ("write", lambda: write_whole(filesystem, f"{tmp_path}/a", b"x")),
        ("read", lambda: read_whole(filesystem, f"{tmp_path}/a")),
    ):
        expected = rf"^cannot {what} {tmp_path}/a after \d+ s: {os.strerror(code)}\. .*server.* is away: look at them"
        with pytest.raises(StorageError, match=expected) as caught:
            operation()
        assert "\n" not in str(caught.value)


def test_what_a_folder_refuses_for_good_is_not_waited_for(tmp_path):
    failing = Failing(errno.EACCES, times=1)
    with pytest.raises(PermissionError):
        read_whole(storage.whole(failing), f"{tmp_path}/a")
    assert failing.calls["open_input_file"] == 1


def test_what_ray_copies_into_a_store_is_there_or_raises(server, monkeypatch, tmp_path):
    """pyarrow.fs.copy_files says nothing where an upload fails when it is closed."""
    monkeypatch.setattr(store_faults, "PATIENCE_S", 2)
    (tmp_path / "state.pt").write_bytes(os.urandom(50_000))
    (tmp_path / "empty").touch()
    filesystem, path = open_folder("s3://bucket/checkpoint")

    def copy():
        fs.copy_files(str(tmp_path), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)

    server.fail("503", lambda method, path, count: method == "PUT")
    with pytest.raises(StorageError, match=r"cannot write s3://bucket/checkpoint/state\.pt"):
        copy()
    server.heal()
    assert "state.pt" not in file_names(filesystem, path)
    copy()
    assert file_names(filesystem, path) == ["empty", "state.pt"]
    assert read_whole(filesystem, f"{path}/state.pt") == (tmp_path / "state.pt").read_bytes()


def test_a_model_in_a_bucket_predicts_into_it(server, tmp_path):
    about = {"task": "made", "target": "gap", "unit": "eV", "labels": "made for a test"}
    constant = FittedLinear(Reference(np.zeros(94), 1.5, 1.0), "regression", "other")
    FittedModel(DUMMY, constant, about).save(tmp_path / "model.pth")
    filesystem, path = open_folder("s3://bucket/models")
    write_whole(filesystem, f"{path}/model_fold_0.pth", (tmp_path / "model.pth").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        shown = CliRunner().invoke(app, ["s3://bucket/models/model_fold_0.pth", "NaCl", "-o", "s3://bucket/out/x.csv"])
    assert shown.exit_code == 0, shown.output
    assert read_whole(filesystem, "bucket/out/x.csv") == b"crystal,formula,prediction\nNaCl,NaCl,1.5\n"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    assert "1 predictions in s3://bucket/out/x.csv" in shown.output


def test_a_model_that_the_store_withholds_is_not_called_damaged(server):
    filesystem, path = open_folder("s3://bucket/withheld")
    write_whole(filesystem, f"{path}/model.pth", os.urandom(100_000))
    server.fail("403", lambda method, path, count: method == "GET")
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/withheld/model\.pth: access denied"):
        load_model("s3://bucket/withheld/model.pth")


@pytest.mark.parametrize(
    "address",
    [
        "s3://me:PASSWORD@bucket/x",
        "s3://PASSWORD@bucket/x",
        "sftp://me:PASSWORD@host/x",
        "abfss://container:PASSWORD@account.dfs.core.windows.net/x",
    ],
)
def test_an_address_with_what_may_be_a_key_is_refused(address):
    with pytest.raises(StorageError, match=r"has keys in it.*Leave them out") as caught:
        open_folder(address)
    assert "PASSWORD" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("gs://anonymous@bucket/x", "bucket/x"),
        ("abfss://container@account.dfs.core.windows.net/x", "container/x"),
        ("gs://bucket/me@home", "bucket/me@home"),
    ],
)
def test_a_name_in_an_address_is_no_key(address, path):
    assert open_folder(address)[1] == path


def test_options_in_an_address_are_refused_with_what_to_set_instead():
    """Behind them the names of files would be put."""
    with pytest.raises(StorageError, match=r"'s3://bucket/x' has options behind it.*AWS_ENDPOINT_URL"):
        open_folder("s3://bucket/x?endpoint_override=localhost:9000&scheme=http")


@pytest.mark.parametrize("address", ["s3://bucket/run#1", "gs://anonymous@bucket/a/run#1/one", "file:///x/run#1"])
def test_a_part_of_an_address_that_would_be_ignored_is_refused(address):
    """The folders of all sweeps and searches behind it would be one."""
    with pytest.raises(StorageError, match=rf"{address}' has a # in it.*without one"):
        open_folder(address)


@pytest.mark.parametrize("name", ["of today", "größer", "a%41", "100 %", "a+b=c"])
def test_a_name_in_a_bucket_means_itself(server, name):
    filesystem, path = open_folder(f"s3://bucket/named/{name}")
    assert path == f"bucket/named/{name}"
    write_whole(filesystem, f"{path}/a", name.encode())
    assert read_whole(filesystem, f"{path}/a") == name.encode()
    around, above = open_folder("s3://bucket/named")
    assert name in [info.base_name for info in around.get_file_info(fs.FileSelector(above))]


@pytest.mark.parametrize("name", ["of today", "größer", "a%41", "run#1"])
def test_a_local_folder_has_the_same_name_as_a_path_and_as_an_address(tmp_path, name):
    write_whole(*open_folder(f"{tmp_path}/{name}/a"), b"x")
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    if "#" not in name:
        assert read_whole(*open_folder(f"file://{tmp_path}/{name}/a")) == b"x"


@pytest.mark.parametrize("address", ["s3://my bucket/x", "gs://bücket/x", "file://host/x", "gs:///x"])
def test_an_address_that_names_no_bucket_is_refused_instead_of_tried_with_another_client(address):
    with pytest.raises(StorageError, match=rf"^cannot open '{address}': .*\. Correct the address$"):
        open_folder(address)


@pytest.fixture
def ray_with_bucket(ray_session, bucket):
    """Ray begun after the server: its processes take the environment as it is when they start."""
    ray.shutdown()
    connect()
    yield
    ray.shutdown()
    connect()


@pytest.fixture
def small_rows(at_hand) -> Rows:
    """Rows of the first 120 structures that are at hand."""
    from model_cases import open_rows

    rows = open_rows(at_hand)[1]
    return rows.select(list(range(120)), "the first 120")


@pytest.mark.usefixtures("ray_with_bucket")
def test_a_cache_is_built_and_read_through_faults(server, small_rows):
    expected, key = graphs_of(small_rows, (6, 3), "s3://bucket/quiet", rows_per_shard=50)
    faults = server.fail("503", lambda method, path, count: count % 3 == 0)
    graphs, same = graphs_of(small_rows, (6, 3), "s3://bucket/troubled", rows_per_shard=50)
    assert same == key
    assert faults.done["PUT"] >= 1
    server.heal()
    filesystem, _ = open_folder("s3://bucket")
    names = file_names(filesystem, f"bucket/troubled/{key}")
    assert names == file_names(filesystem, f"bucket/quiet/{key}")  # the names carry the content's checksum
    assert (graphs.ids, graphs.formulas) == (expected.ids, expected.formulas)


def test_a_disk_that_fills_while_shards_are_written(small_disk, small_rows, ray_session):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_200_000))  # less than the reserve is left
    with pytest.raises(StorageError, match=rf"cannot write {small_disk}/.*shard-.*: the disk is full"):
        graphs_of(small_rows, (6, 3), str(small_disk), rows_per_shard=20)
    assert not [file for file in small_disk.rglob("*") if file.is_file() and file != ballast]
    ballast.unlink()
    stored, key = graphs_of(small_rows, (6, 3), str(small_disk), rows_per_shard=20)
    assert stored.ids == small_rows.ids
    assert not list((small_disk / key).glob(".part-*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small space and 120 ids of the demo."""
    return prepare(tmp_path_factory.mktemp("storage"), every=8, small=SPACE)


def first_time(folder, name):
    return [*new(folder, name), "--folds=0"]


@pytest.fixture(scope="module")
def whole(folder):
    """The outcome of a sweep on a local disk that nothing disturbed."""
    run(folder, *first_time(folder, "whole"))
    return outcome((folder / "results/whole/results.json").read_text())


def begun_in_bucket(folder, name, bucket="s3://bucket"):
    """A sweep that has graphs, checkpoints and results in a bucket, once its first trial is done."""
    log = folder / f"{name}.log"
    places = [f"--storage={bucket}/results", f"--cache={bucket}/graphs"]
    driver = start(folder, log, *first_time(folder, name), *places)
    deadline = time.monotonic() + 300
    while "search fold 0: 1/3" not in log.read_text():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return driver


def killed_and_resumed(folder, name, bucket):
    """Its outcome."""
    driver = begun_in_bucket(folder, name, bucket)
    time.sleep(1.5)  # one snapshot of Ray's
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    filesystem, path = open_folder(f"{bucket}/results/{name}")
    assert "results.json" not in file_names(filesystem, path)
    run(folder, f"--storage={bucket}/results", f"--resume={name}")
    return outcome(read_whole(filesystem, f"{path}/results.json"))


@pytest.mark.faults
def test_killed_and_resumed_in_a_bucket_that_fails_now_and_then(folder, whole, server, capsys):
    """One request in five fails."""
    faults = server.fail("503", lambda method, path, count: count % 5 == 0)
    assert killed_and_resumed(folder, "killed", "s3://bucket") == whole
    assert sum(faults.done.values()) > 50
    with capsys.disabled():
        print(f"\n  {sum(faults.done.values())} of {sum(faults.seen.values())} requests refused")


@pytest.mark.faults
def test_killed_and_resumed_in_a_folder_that_is_mounted_from_elsewhere(folder, whole, mounted):
    assert on_network(str(mounted / "results"))
    assert killed_and_resumed(folder, "killed_at_mount", str(mounted)) == whole
    assert (mounted.parent / "served/results/killed_at_mount/results.json").exists()


@pytest.mark.faults
def test_killed_and_resumed_in_googles_store_that_fails_now_and_then(folder, whole, monkeypatch, capsys):
    """One request in twenty fails, but for uploads: Google's client waits a second and more for each."""
    with gs_server("bucket") as google:
        for key, value in google.environment.items():
            monkeypatch.setenv(key, value)
        google.fail_every.value = 20
        assert killed_and_resumed(folder, "killed_at_google", "gs://anonymous@bucket") == whole
        assert google.failed.value > 5
        with capsys.disabled():
            print(f"\n  {google.failed.value} of {google.requests.value} requests refused, beside uploads")


def test_a_sweep_does_not_wait_for_the_line_that_the_terminal_shows(server):
    folder = "s3://bucket/results/search_fold_0/trial_a"
    Progress(folder)("step 3 of 60")
    assert progress_of(folder) == "step 3 of 60"
    faults = server.fail("503", lambda method, path, count: path.endswith("progress.txt"))
    assert progress_of(folder) == ""
    Progress(folder)("step 4 of 60")
    assert 2 <= sum(faults.done.values()) <= 4


@pytest.mark.faults
def test_a_bucket_that_is_gone_for_longer_than_anyone_waits(folder, whole, server):
    """The sweep ends by itself and says why; when the bucket is back it goes on."""
    driver = begun_in_bucket(folder, "outage")
    server.fail("503", lambda method, path, count: True)
    assert driver.wait(timeout=900) == 1  # six attempts of a trial, each of a minute and a half and more
    said = (folder / "outage.log").read_text()
    assert "Traceback" not in said
    assert "s3://bucket/results/outage" in said.splitlines()[-2]
    assert "the store fails again and again" in said.splitlines()[-2]
    server.heal()
    run(folder, "--storage=s3://bucket/results", "--resume=outage")
    assert outcome(read_whole(*open_folder("s3://bucket/results/outage/results.json"))) == whole


@pytest.mark.faults
def test_a_disk_that_fills_while_checkpoints_are_written(folder, whole, small_disk):
    (small_disk / "ballast").write_bytes(bytes(400_000))
    output = run(folder, *first_time(folder, "full"), f"--storage={small_disk}", expect=1)
    assert f"cannot write {small_disk}/full/" in output
    assert "the disk is full" in output
    assert not list(small_disk.rglob(".part-*"))
    enlarge(small_disk)
    run(folder, f"--storage={small_disk}", "--resume=full")
    assert outcome((small_disk / "full/results.json").read_text()) == whole


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://no-such-bucket/results", "no such bucket"),
        ("s3://bucket/results", "nothing listens there"),
        ("abc://bucket/results", "Protocol not known"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_at_once(folder, server, monkeypatch, place, expected):
    monkeypatch.setattr(store_faults, "PATIENCE_S", 1)
    if "listens" in expected:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=expected) as caught:
        check_storage({"--storage": str(folder), "--cache": place}, cluster=False)
    assert str(caught.value).startswith("--cache: ")
    assert not list(folder.glob(".probe-*"))


@pytest.mark.parametrize("option", ["--storage", "--cache"])
def test_a_folder_that_cannot_be_one_is_refused_with_its_option(tmp_path, option):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/inside"):
        with pytest.raises(StorageError, match=f"^{option} {place}: nothing can be written there") as caught:
            check_storage({option: str(place)}, cluster=False)
        assert "Give a folder that is yours to write to" in str(caught.value)


def test_what_other_nodes_have_left_is_deleted_when_one_fails(tmp_path, ray_session, monkeypatch):
    """Here they are all this machine; each fails, all but the first after it has left an answer, late."""
    came = tmp_path / "came"

    def look(file):
        try:
            came.mkdir()
        except FileExistsError:
            time.sleep(1)
            write_whole(*open_folder(f"{file}-late"), b"x")
            came.with_name("left").touch()
        raise StorageError("refused")

    (node,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [node, node])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "another"))
    monkeypatch.setattr(storage_check, "_look", look)
    with pytest.raises(SweepError, match=r"^--storage .*: node .* cannot use it: refused"):
        check_storage({"--storage": str(tmp_path / "results")}, cluster=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "left").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list((tmp_path / "results").iterdir())


def test_a_folder_on_a_disk_that_is_only_read_is_refused(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=f"^--storage {small_disk}: .*Read-only file system"):
        check_storage({"--storage": str(small_disk)}, cluster=False)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And then its name: a power cut leaves the old file or the new one."""
    (tmp_path / "file").write_bytes(b"old")
    done = []

    def note(descriptor):
        what = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append((what.name if what.is_dir() else what.read_bytes(), (tmp_path / "file").read_bytes()))

    monkeypatch.setattr(os, "fsync", note)
    write_whole(*open_folder(tmp_path / "file"), b"new")
    assert done == [(b"new", b"old"), (tmp_path.name, b"new")]
