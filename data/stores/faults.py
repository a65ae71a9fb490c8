"""What a store may do wrong: asked again where that may help, and else told in one plain sentence."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
# What fails is tried again until PATIENCE_S have passed; no try is begun later.
PATIENCE_S = 60.0
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_TELL_AFTER_S = 5.0  # of waiting, whoever watches is told why nothing goes on
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a folder that is mounted over a network says while its server or the way to it is away; a disk says EIO, too.
_AWAY = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENOTCONN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOLINK", "ECOMM", "ESHUTDOWN"),
    )
    if hasattr(errno, name)  # some are Linux's alone
)
# Of object stores pyarrow gives no codes, only these words of Amazon's and Google's clients.
_PASSING = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT"
    r"|HTTP status (408|429|5\d\d)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|ABORTED):"
)
_REASONS = {
    r"NO_SUCH_BUCKET|Bucket '\S+' not found|bucket does not exist": "there is no such bucket. Create it, or correct "
    "the address",
    "INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|InvalidToken|ExpiredToken"
    "|UNAUTHENTICATED": "the store does not accept these keys. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "~/.aws/credentials, or GOOGLE_APPLICATION_CREDENTIALS",
    "OAuth2 access token": "no credentials for Google Cloud were found. Run `gcloud auth application-default login`, "
    "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
    "ACCESS_DENIED|PERMISSION_DENIED|HTTP status 40[13]": "access denied. Either there are no credentials (in the "
    "environment, ~/.aws/credentials, or as a role of the machine), or they do not permit to list, read, write and "
    "delete there",
    "resolve host": "its host is not known. Check the address, AWS_ENDPOINT_URL and the network",
    r"curlCode: 7\b|onnection refused": "nothing listens there. Check the address, AWS_ENDPOINT_URL and the network",
    "curlCode: 28|DEADLINE_EXCEEDED": "it does not answer. Check the address, AWS_ENDPOINT_URL and the network",
    _PASSING.pattern: "the store fails again and again. Try later",
}


_once = ContextVar("asked once", default=False)


class StorageError(OSError):
    """A folder that cannot be opened, read or written; the message says which and what to do."""


@contextmanager
def asked_once() -> Iterator[None]:
    """Ask stores once only in the body, for what is worth no wait."""
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def patiently(failure: str, operation: Callable[[], T]) -> T:
    """Do something with a store, again if it fails in a way that may pass.

    Args:
        failure: how a message begins that says that it did not work.
        operation: to do, once or several times.

    Raises:
        StorageError: it does not work; one sentence why.
        OSError: any other reason, such as FileNotFoundError.
    """
    start, wait, is_said = time.monotonic(), _FIRST_WAIT_S, False
    patience = 0.0 if _once.get() else PATIENCE_S
    while True:
        try:
            return operation()
        except StorageError:
            raise
        except OSError as problem:
            spent = time.monotonic() - start
            is_passing = problem.errno in _AWAY or (problem.errno is None and _PASSING.search(str(problem)))
            if not is_passing or spent + wait > patience:
                raise _plain(failure, problem, spent) from problem
            if spent > _TELL_AFTER_S and not is_said:
                is_said = True
                logging.getLogger(__name__).warning("%s yet; trying for another %.0f s", failure, patience - spent)
            time.sleep(wait * random.uniform(0.5, 1))  # not all trials at once
            wait = min(2 * wait, _LONGEST_WAIT_S)


def _plain(failure: str, problem: OSError, spent_s: float) -> OSError:
    """A sentence for what people can mend; else the problem itself."""
    if problem.errno in _FULL:
        return StorageError(
            f"{failure}: the disk is full. Nothing half-written stays; make space, and the same command "
            "(of a sweep: --resume) goes on"
        )
    if problem.errno is not None and problem.errno in _AWAY:
        return StorageError(
            f"{failure} after {spent_s:.0f} s: {os.strerror(problem.errno)}. The disk fails, or the server of a folder "
            "that is mounted from one is away: look at them, and the same command (of a sweep: --resume) goes on"
        )
    if type(problem) is not OSError or problem.errno is not None:  # a store's complaint has neither
        return problem
    text = " ".join(str(problem).split())
    reason = next((reason for pattern, reason in _REASONS.items() if re.search(pattern, text)), None)
    if reason is None:
        return StorageError(f"{failure}: {text}")
    duration = f" after {spent_s:.0f} s" if _PASSING.search(text) else ""
    return StorageError(f"{failure}{duration}: {reason}")
