"""Folders of this machine: what `~` means, and where downloads, graphs and kernels go unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from data.stores.faults import StorageError


def expanded(path: str | Path) -> Path:
    """A path with the home for `~` or `~user`; StorageError where the system knows none, or the name is no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise StorageError(f"{str(path)!r}: a name that is not in UTF-8. Rename it, as by `convmv`") from None
    if not str(path).startswith("~"):  # `./~x` too, of which `Path` would leave `~x`
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StorageError(
            f"{path}: this system knows no home of {str(path).split('/', 1)[0]}. Give the path in full, or ./ before "
            "it if that is its name"
        ) from None


def default_cache() -> Path:
    """Where downloads and graphs go unless the user says otherwise; StorageError where that is an address."""
    return _of_this_machine("MATSWEEP_CACHE", os.environ.get("MATSWEEP_CACHE") or "~/.cache/matsweep")


def downloads_folder(option: str | None) -> Path:
    """Where datasets are kept.

    Args:
        option: by `--downloads`; None for a folder in the default cache.

    Raises:
        StorageError: an address, which as a path would be a folder `./gs:/...` here.
    """
    return default_cache() / "downloads" if option is None else _of_this_machine("--downloads", option)


def _of_this_machine(option: str, folder: str) -> Path:
    if "://" in folder:
        raise StorageError(
            f"{option} {folder}: data sets are downloaded to a disk of this machine. Give a folder on it, as a path; "
            "graphs may be elsewhere, by --cache"
        )
    return expanded(folder)
