"""A real S3 server on loopback (moto), and faults on the way to it: errors, silence, cut connections."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
SILENCE_S = 60.0  # longer than any client of ours waits
STATUS = {"500": "500 Internal Server Error", "503": "503 Service Unavailable", "403": "403 Forbidden"}
CODE = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


@dataclass
class Faults:
    """What goes wrong: `kind` is a status, `silence` or `cut`; `when` gets a method, a path and its count so far."""

    kind: str = "500"
    when: Callable[[str, str, int], bool] | None = None
    seen: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def strike(self, environ: dict[str, Any]) -> bool:
        """Whether this request is one of those that fail."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            self.seen[method] += 1
            fails = self.when is not None and self.when(method, path, self.seen[method])
            self.done[method] += fails
        return fails


@dataclass
class Server:
    """Where it listens, and what is to go wrong on the way."""

    port: int
    faults: Faults = field(default_factory=Faults)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def fail(self, kind: str, when: Callable[[str, str, int], bool]) -> Faults:
        """Let requests fail from now on."""
        self.faults.over.set()
        self.faults = Faults(kind, when)
        return self.faults

    def heal(self) -> None:
        """No more faults."""
        self.faults.over.set()
        self.faults = Faults()


@contextmanager
def s3_server(bucket: str) -> Iterator[Server]:
    """Serve an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)
    # The bucket that a test finds is its own one, whatever another one of this process has left.
    from moto.s3.models import s3_backends

    s3_backends.reset()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        faults = server.faults
        if not faults.strike(environ):
            return moto(environ, start_response)
        if faults.kind == "silence":
            faults.over.wait(SILENCE_S)
        if faults.kind in ("silence", "cut"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        size = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(size)
        start_response(STATUS[faults.kind], [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return [b""]
        return [f"<Error><Code>{CODE[faults.kind]}</Code><Message>injected</Message></Error>".encode()]

    listening = make_server("127.0.0.1", 0, application, threaded=True)
    server = Server(listening.port)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        from pyarrow import fs

        s3 = fs.S3FileSystem(
            access_key="test", secret_key="test", endpoint_override=f"127.0.0.1:{server.port}", scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        )  # fmt: skip
        s3.create_dir(bucket)
        yield server
    finally:
        server.heal()
        listening.shutdown()
        thread.join()
        listening.server_close()
