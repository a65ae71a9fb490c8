"""Folders anywhere: a local path, `s3://`, `gs://` or any other address pyarrow or fsspec can open."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

_ATTEMPTS = 3  # at a write whose half-done file another process has cleaned up


class StorageError(RuntimeError):
    """A folder that cannot be opened; the message says which and what to do."""


def open_folder(address: str | Path) -> tuple[fs.FileSystem, str]:
    """Filesystem of an address, and the path on it.

    Args:
        address: a local path or a URI such as `s3://bucket/folder` or `gs://bucket/folder`.

    Raises:
        StorageError: unknown scheme, or a scheme whose package is not installed.
    """
    text = str(address)
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except OSError as problem:
        raise StorageError(f"cannot open {text!r}: {problem}") from problem
    except (pa.ArrowInvalid, NotImplementedError):
        import fsspec  # schemes pyarrow does not know itself

        try:
            filesystem, path = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as problem:
            raise StorageError(
                f"cannot open {text!r}: {problem}. Use a local path, s3://..., gs://..., "
                "or install the fsspec package of that scheme (extras: pip install -e '.[aws]' or '.[gcp]')"
            ) from problem
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    return filesystem, path.rstrip("/")


def write_whole(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all: written aside, then renamed.

    Raises:
        FileNotFoundError: the file written aside vanished before it was renamed, again and again.
    """
    folder = path.rsplit("/", 1)[0]
    filesystem.create_dir(folder, recursive=True)
    for attempt in range(1, _ATTEMPTS + 1):
        aside = f"{folder}/.part-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(aside) as stream:
            stream.write(content)
        try:
            filesystem.move(aside, path)
            break
        except FileNotFoundError:  # a second build of the same cache took it for a dead one's leftover
            if attempt == _ATTEMPTS:
                raise


def read_whole(filesystem: fs.FileSystem, path: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: no such file.
    """
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def file_names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Names of the files right in a folder, sorted; none if there is no such folder."""
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.File)
