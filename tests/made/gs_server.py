"""A server on loopback that speaks as Google Cloud Storage does (gcp-storage-emulator), and requests that fail."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

# A process of its own: pyarrow waits for the size of a file without letting other threads run.
PROCESSES = multiprocessing.get_context("spawn")


@dataclass
class Server:
    """Where it listens, and what goes wrong: one request in `fail_every` is answered 503, with 0 none.

    Parts of uploads do not fail: the emulator cannot take one a second time.
    """

    port: Synchronized
    fail_every: Synchronized
    requests: Synchronized
    failed: Synchronized

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know; its addresses begin with `gs://anonymous@`."""
        return {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{self.port.value}"}

    def strike(self, method: str) -> bool:
        """Whether this request is one of those that fail."""
        if not self.fail_every.value or method == "PUT":
            return False
        with self.requests:
            self.requests.value += 1
            fails = self.requests.value % self.fail_every.value == 0
        with self.failed:
            self.failed.value += fails
        return fails


class Handler(RequestHandler):
    """The emulator's, that fails now and then."""

    def __init__(self, server: Server, *arguments: object) -> None:
        self.faults = server
        super().__init__(*arguments)

    def parse_request(self) -> bool:
        """Called with every request, before it is answered."""
        if not super().parse_request():
            return False
        if self.faults.strike(self.command):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(503)
            return False
        return True


def serve(server: Server, bucket: str, ready: multiprocessing.synchronize.Event) -> None:
    """Serve an empty bucket until the process is ended."""
    storage = Storage(use_memory_fs=True)
    create_bucket(bucket, storage)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, server, storage))
    server.port.value = listening.server_port
    ready.set()
    listening.serve_forever()


@contextmanager
def gs_server(bucket: str) -> Iterator[Server]:
    """Serve an empty bucket."""
    server = Server(*(PROCESSES.Value("i", 0) for _ in range(4)))
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=serve, args=(server, bucket, ready), daemon=True)
    process.start()
    try:
        assert ready.wait(60), "the emulator did not start"
        yield server
    finally:
        process.kill()
        process.join()
