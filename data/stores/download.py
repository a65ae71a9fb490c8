"""Fetches one file, resuming and checking it; the file appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import requests
import urllib3
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from data.errors import UserError

_BLOCK_BYTES = 1 << 18


class DownloadError(UserError, RuntimeError):
    """A file could not be fetched; the message names the ways that need no network."""


class _TransientError(Exception):
    """A failure that may pass: no connection, a server error, a transfer cut short."""


class _RefusedError(Exception):
    """An answer that another attempt would not change."""


def download(
    url: str,
    destination: Path,
    sha256: str,
    *,
    attempts: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Make sure that `destination` holds the file with this checksum, fetching it if it does not.

    What has arrived is kept in `destination.part`, and the next attempt, or the next run, resumes there. Of several
    processes that want the file at once, one fetches it and the others wait.

    Args:
        url: where the file is.
        destination: where it goes; folders are made.
        sha256: checksum of the whole file, hexadecimal.
        attempts: how often a connection is tried.
        backoff_s: seconds before the second attempt, doubled before each later one.
        timeout_s: seconds without a byte after which an attempt is given up.

    Returns:
        `destination`.

    Raises:
        DownloadError: the file cannot be fetched or stored, or is not the expected one.
    """
    part = destination.with_name(destination.name + ".part")
    try:
        if destination.is_file() and _sha256(destination) == sha256:
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _alone(destination):
            if destination.is_file() and _sha256(destination) == sha256:  # from the process that was waited for
                return destination
            # A second time from scratch: what was resumed may have been the start of another file.
            for _ in range(2):
                _fetch(url, part, attempts, backoff_s, timeout_s)
                file_sha256 = _sha256(part)
                if file_sha256 == sha256:
                    part.replace(destination)
                    return destination
                part.unlink()
        raise _failure(url, destination, sha256, f"what the server sends has sha256 {file_sha256}, not {sha256}")
    except OSError as error:
        raise _failure(url, destination, sha256, f"it cannot be stored there: {error}") from None
    except _TransientError as error:
        raise _failure(url, destination, sha256, f"{error} (tried {attempts} times)") from None
    except _RefusedError as error:
        raise _failure(url, destination, sha256, str(error)) from None


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    """Hold `destination.lock` while the body runs, for two that append to one part would spoil it."""
    path = destination.with_name(destination.name + ".lock")
    while True:
        with path.open("w") as lock:
            _wait_for(lock, destination)
            if not _is_at(path, lock):  # whoever had it has deleted it, and a third may hold another one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _wait_for(lock: IO[str], destination: Path) -> None:
    """Lock a file, and say so if that takes waiting. A killed process holds it no longer."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        line = f"another process is downloading {destination}: this one waits until it has ended"
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some disks of clusters know no locks: there it goes as it may
        pass


def _failure(url: str, destination: Path, sha256: str, reason: str) -> DownloadError:
    return DownloadError(
        f"could not download {url}: {reason}. Without a network: put the file at {destination} by hand "
        f"(sha256 {sha256}), pass the path of a copy by --task, or use --task demo, which needs no download"
    )


def _fetch(url: str, part: Path, attempts: int, backoff_s: float, timeout_s: float) -> None:
    for attempt in range(attempts):
        try:
            _attempt(url, part, timeout_s)
            return
        except _TransientError:
            if attempt == attempts - 1:
                raise
            time.sleep(backoff_s * 2**attempt)


def _attempt(url: str, part: Path, timeout_s: float) -> None:
    """Append to `part` what it lacks, or write all of it where the server knows no ranges."""
    offset = part.stat().st_size if part.exists() else 0
    # "identity": the checksum is of the file itself, not of one unpacked on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as answer:
            if offset and answer.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing, or the part is of another file: the checksum tells
            if answer.status_code >= 500 or answer.status_code == requests.codes.too_many_requests:
                raise _TransientError(f"the server answers {answer.status_code} {answer.reason}")
            if answer.status_code not in (requests.codes.ok, requests.codes.partial_content):
                raise _RefusedError(f"the server answers {answer.status_code} {answer.reason}")
            if answer.status_code == requests.codes.ok:
                offset = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise _RefusedError(f"the server sends another range, {answer.headers.get('Content-Range')!r}")
            _write(answer, part, offset)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
            raise _RefusedError(str(error)) from None
        raise _TransientError(_innermost(error)) from None


def _write(answer: requests.Response, part: Path, offset: int) -> None:
    length = answer.headers.get("Content-Length", "")
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        part.open("ab" if offset else "wb") as file,
    ):
        total = offset + int(length) if length.isdigit() else None
        bar = progress.add_task(part.stem, total=total, completed=offset)
        for block in answer.raw.stream(_BLOCK_BYTES, decode_content=False):
            file.write(block)
            progress.advance(bar, len(block))


def _innermost(error: BaseException) -> str:
    """The sentence that matters, without the layers of libraries around it."""
    while isinstance(error.args[0] if error.args else None, BaseException):
        error = error.args[0]
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, BaseException) else error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
