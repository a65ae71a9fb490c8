"""Downloads against a real server on this machine: whatever goes wrong, the file is right or absent."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data.stores.download import DownloadError, download

REPOSITORY = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(1_200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def server(
    *behaviours: str, knows_ranges: bool = True, content: bytes = CONTENT, go_on: threading.Event | None = None
) -> Iterator[tuple[str, list[str | None]]]:
    """Serve `content`; each request meets the next behaviour: "cut", a status such as "500", "held" or "whole".

    One that is held gets its second half when `go_on` is set.
    """
    left = list(behaviours)
    ranges: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            ranges.append(asked)
            behaviour = left.pop(0) if left else "whole"
            if behaviour.isdigit():
                self.send_error(int(behaviour))
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and knows_ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = start + (len(content) - start) // 2 if behaviour == "cut" else len(content)
            if behaviour == "held":
                self.wfile.write(content[start : stop // 2])
                go_on.wait(60)
                start = stop // 2
            self.wfile.write(content[start:stop])

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/data.json.gz", ranges
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def fetch(url: str, destination: Path, sha256: str = SHA256, attempts: int = 4) -> Path:
    return download(url, destination, sha256, attempts=attempts, backoff_s=0.01, timeout_s=10)


def test_a_file_arrives_whole_and_is_not_fetched_again(tmp_path):
    destination = tmp_path / "new" / "folders" / "data.json.gz"
    with server() as (url, ranges):
        assert fetch(url, destination) == destination
        assert destination.read_bytes() == CONTENT
        assert fetch(url, destination) == destination
    assert ranges == [None]
    assert [path.name for path in destination.parent.iterdir()] == ["data.json.gz"]


def test_a_cut_transfer_resumes_where_it_stopped(tmp_path):
    with server("cut", "cut") as (url, ranges):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT
    assert ranges == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) * 3 // 4}-"]


def test_a_later_run_resumes_what_an_earlier_one_left(tmp_path):
    destination = tmp_path / "data"
    with server(*["cut"] * 2) as (url, _), pytest.raises(DownloadError, match="tried 2 times"):
        fetch(url, destination, attempts=2)
    assert not destination.exists()
    left = (tmp_path / "data.part").stat().st_size
    with server() as (url, ranges):
        assert fetch(url, destination).read_bytes() == CONTENT
    assert ranges == [f"bytes={left}-"]


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path):
    go_on, destination = threading.Event(), tmp_path / "data"
    (tmp_path / "data.lock").touch()  # of a process that was killed
    with server("held", go_on=go_on) as (url, ranges):
        code = (
            "import pathlib; from data.stores.download import download; "
            f"download({url!r}, pathlib.Path({str(destination)!r}), {SHA256!r})"
        )
        begin = {"args": [sys.executable, "-c", code], "cwd": REPOSITORY, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(**begin) as first:
            while not ranges:
                time.sleep(0.01)
            with subprocess.Popen(**begin) as second:
                said = second.stderr.readline()  # or "", when it has ended
                go_on.set()
                said += second.communicate()[1]
            assert (first.wait(), second.returncode) == (0, 0), first.stderr.read() + said
    assert said == f"another process is downloading {destination}: this one waits until it has ended\n"
    assert ranges == [None]
    assert destination.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_complete_part_needs_no_byte_more(tmp_path):
    (tmp_path / "data.part").write_bytes(CONTENT)
    with server() as (url, _):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start(tmp_path):
    with server("cut", knows_ranges=False) as (url, ranges):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT
    assert len(ranges) == 2


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 7])
def test_a_part_of_another_file_is_thrown_away(tmp_path, size):
    (tmp_path / "data.part").write_bytes(b"x" * size)
    with server() as (url, ranges):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT
    assert ranges == [f"bytes={size}-", None]


def test_a_wrong_file_is_refused_after_a_second_try(tmp_path):
    with server(content=b"not the data") as (url, ranges), pytest.raises(DownloadError, match=SHA256):
        fetch(url, tmp_path / "data")
    assert len(ranges) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_place_is_replaced(tmp_path):
    (tmp_path / "data").write_bytes(CONTENT[:-1])
    with server() as (url, _):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT


def test_a_server_error_is_waited_out_but_a_missing_page_is_not(tmp_path):
    with server("500", "503") as (url, ranges):
        assert fetch(url, tmp_path / "data").read_bytes() == CONTENT
    assert len(ranges) == 3
    with server("404") as (url, ranges), pytest.raises(DownloadError, match="404"):
        fetch(url, tmp_path / "other")
    assert len(ranges) == 1


def test_without_a_server_the_error_names_the_offline_ways(tmp_path):
    with server() as (url, _):
        pass
    with pytest.raises(DownloadError) as caught:
        fetch(url, tmp_path / "data", attempts=2)
    message = str(caught.value)
    for part in (url, str(tmp_path / "data"), SHA256, "--task demo", "by --task", "refused", "tried 2 times"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_addresses_and_folders_that_cannot_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with server() as (url, _), pytest.raises(DownloadError, match="cannot be stored there"):
        fetch(url, tmp_path / "file" / "data")
    with pytest.raises(DownloadError, match="No connection adapters"):
        fetch("nowhere://data", tmp_path / "data")
