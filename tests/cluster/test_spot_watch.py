"""A spot machine that is taken back: its trials are told, by what the metadata servers of the clouds say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tune.cluster.spot_watch import told_by_amazon, told_by_google

WATCH = Path(__file__).parents[2] / "tune/cluster/spot_watch.py"
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]  # every trial that it sees is told
TRIAL = (
    "(exec -a ray::ResourceTrainable.train bash -c \"trap 'echo saved; exit' TERM; while :; do sleep 0.1; done\") &\n"
)


class Google(BaseHTTPRequestHandler):
    notice = False

    def do_GET(self):
        known = self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google"
        self.answer(200 if known else 404, "TRUE" if self.notice else "FALSE")

    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Amazon(Google):
    def do_PUT(self):
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200 if known else 400, "a token")

    def do_GET(self):
        known = self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != "a token":
            self.answer(401, "")
        else:
            self.answer(200 if known and self.notice else 404, '{"action": "terminate"}')


@contextmanager
def serving(kind: type[Google], *, notice: bool) -> Iterator[tuple[str, type[Google]]]:
    """Address of a metadata server, and where the notice is given."""
    own = type(kind.__name__, (kind,), {"notice": notice})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", own
        server.shutdown()


def test_each_clouds_notice_is_read_and_taken_for_no_other():
    for notice in (False, True):
        with serving(Google, notice=notice) as (address, _):
            assert told_by_google(address) == notice
            with pytest.raises(OSError, match=r"404|501"):
                told_by_amazon(address)
        with serving(Amazon, notice=notice) as (address, _):
            with pytest.raises(OSError, match="401"):
                told_by_google(address)
            if notice:
                assert told_by_amazon(address)
            else:
                with pytest.raises(OSError, match="404"):
                    told_by_amazon(address)


def watched(folder: Path, server: str, raylet: str) -> subprocess.Popen:
    """The watch beside a trial and a process that is called as a raylet is, all in a namespace of their own."""
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes is not permitted here")
    for name, text in (("raylet", f"#!/bin/bash\n{raylet}\n"), ("ray", '#!/bin/sh\necho "$1"; exit 1\n')):
        (folder / name).write_text(text)  # the real `ray` would drain whatever Ray runs here
        (folder / name).chmod(0o755)
    (folder / "node").write_text(
        f'{TRIAL}trial=$!\n./raylet &\nsleep 0.5\n"{sys.executable}" "{WATCH}" --server={server}\ncode=$?\n'
        "for _ in {1..100}; do kill -0 $trial || break; sleep 0.1; done 2> /dev/null\n"  # it may take its time to save
        "echo ended $code\nkill -9 $trial\n"
    )
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [*ALONE, "bash", "node"], cwd=folder, env=os.environ | path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.parametrize("cloud", [Google, Amazon])
def test_trials_are_told_when_the_machine_is_taken_back_and_not_before(tmp_path, cloud):
    with serving(cloud, notice=False) as (address, server):
        node = watched(tmp_path, address, "sleep 60")
        with pytest.raises(subprocess.TimeoutExpired):
            node.wait(6)
        server.notice = True
        said = node.communicate(timeout=60)[0]
    assert [line for line in said.splitlines() if line in ("drain-node", "saved", "ended 0")] == [
        "drain-node", "saved", "ended 0"
    ], said  # fmt: skip


@pytest.mark.whole
def test_the_watch_ends_with_its_ray_also_where_there_is_no_cloud(tmp_path):
    said = watched(tmp_path, "http://127.0.0.1:9", "sleep 3").communicate(timeout=60)[0]
    assert [line for line in said.splitlines() if line in ("drain-node", "saved", "ended 0")] == ["ended 0"], said


def test_without_ray_there_is_nothing_to_watch():
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes is not permitted here")
    done = subprocess.run([*ALONE, sys.executable, WATCH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "no Ray runs here: start it first\n")
