"""Folders anywhere: a local path, `s3://`, `gs://` or any other address pyarrow or fsspec can open.

Whatever is opened here behaves in the same way: a file appears whole or not at all, a store that fails for a moment is
asked again, and what does not pass ends, after a bounded time, in one plain sentence. Ray Tune gets the same
filesystem for its checkpoints and snapshots.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from data.stores.faults import StorageError, patiently
from data.stores.places import expanded

T = TypeVar("T")
# One request may be silent for ANSWER_S.
CONNECT_S = 5.0
ANSWER_S = 10.0

_ATTEMPTS = 3  # at a local write whose half-done file another process has cleaned up
# A disk with less left counts as full. Filled to the last byte it would take the small files of Ray's snapshot and not
# the large one, and a search would go on from a snapshot that contradicts itself; the logs beside need some, too.
_RESERVE = 16 << 20
_RAY_PART = 64 << 20  # bytes that Ray copies at once: less than that is the end of a file
_OBJECT_STORES = ("s3", "gcs")  # there an object appears when all of it has arrived
_OURS = ("file", "s3", "gs", "gcs")  # schemes that are pyarrow's alone: fsspec's clients know nothing of our time-outs


class WholeFiles(fs.FileSystemHandler):
    """Another filesystem, whose files appear whole or not at all and whose faults that pass are waited out.

    Every method does what that of `pyarrow.fs.FileSystem` with its name does. Errors that a program answers to, such
    as FileNotFoundError, stay what they are; a full disk and all that an object store complains of is a StorageError.
    """

    def __init__(self, plain: fs.FileSystem) -> None:
        """Wrap a filesystem of pyarrow's."""
        self.plain = _bounded(plain)

    def __reduce__(self) -> tuple[Any, ...]:
        return WholeFiles, (self.plain,)  # bounded anew: pyarrow's own pickle forgets how often to try

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WholeFiles) and self.plain.equals(other.plain)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        """As that of the filesystem inside."""
        return self.plain.type_name

    def normalize_path(self, path: str) -> str:
        """The filesystem's own way to write it."""
        return self.plain.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """What is there."""
        return self._tried("read", paths[0], lambda: self.plain.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What is in a folder."""
        return self._tried("list", selector.base_dir, lambda: self.plain.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder; an object store needs none."""
        if self.plain.type_name not in _OBJECT_STORES:
            self._tried("write", path, lambda: self.plain.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        """Delete a folder and all in it."""
        if self.plain.type_name == "gcs":  # it misses the object of the folder itself, which there need not be
            self.delete_dir_contents(path, missing_dir_ok=True)
        else:
            self._gone(path, lambda: self.plain.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        """Empty a folder."""
        self._gone(path, lambda: self.plain.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        """Refused."""
        raise StorageError("not everything that a store holds is deleted at once")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._gone(path, lambda: self.plain.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        """Rename a file or folder."""
        self._tried("write", dest, lambda: self.plain.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        self._tried("write", dest, lambda: self.plain.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """The content of a file, read at once."""
        return pa.BufferReader(self._tried("read", path, lambda: _content(self.plain, path)))

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:  # noqa: ARG002
        """A file that is made, all at once, when it has been written or closed."""
        return pa.PythonFile(_Output(lambda content: self._publish(path, content)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:  # noqa: ARG002
        """Refused: what grows is never whole."""
        raise StorageError(f"{path}: nothing is appended to files that appear whole")

    def _publish(self, path: str, content: bytes) -> None:
        publish = _upload if self.plain.type_name in _OBJECT_STORES else _write_aside
        self._tried("write", path, lambda: publish(self.plain, path, content))

    def _gone(self, path: str, delete: Callable[[], None]) -> None:
        tries = 0

        def once() -> None:
            nonlocal tries
            tries += 1
            try:
                delete()
            except FileNotFoundError:
                if tries == 1:  # else an earlier try did it, and its answer was lost
                    raise

        self._tried("delete", path, once)

    def _tried(self, action: str, path: str, operation: Callable[[], T]) -> T:
        scheme = {"local": "", "gcs": "gs://"}.get(self.plain.type_name, f"{self.plain.type_name}://")
        return patiently(f"cannot {action} {scheme}{path}", operation)


def open_folder(address: str | Path) -> tuple[fs.FileSystem, str]:
    """Filesystem of an address, and the path on it.

    Args:
        address: a local path or a URI such as `s3://bucket/folder` or `gs://bucket/folder`. Names in it are what they
            are: spaces, letters of any language, and `%41` is no `A`.

    Raises:
        StorageError: unknown scheme, a scheme whose package is not installed, or an address with keys, options or `#`
            in it.
    """
    text = str(address)
    if "://" not in text:
        return whole(fs.LocalFileSystem()), str(expanded(text).absolute())
    scheme, _, rest = text.partition("://")
    scheme, (host, slash, names) = scheme.lower(), rest.partition("/")
    before, at, _ = host.rpartition("@")  # of Google's or Azure's stores no secret if it is one word
    if at and (":" in before or scheme.startswith("s3")):
        raise StorageError(
            f"an address of {scheme}:// has keys in it, which would be written into every record of "
            "a sweep. Leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store reads"
        )
    if "?" in text:
        raise StorageError(
            f"the address {text.partition('?')[0]!r} has options behind it, where names of files will be put. Leave "
            "them out and set AWS_ENDPOINT_URL, or what your store reads"
        )
    if "#" in text:  # all behind it would be ignored, and the folders of all sweeps be one
        raise StorageError(
            f"the address {text!r} has a # in it, which ends an address. Give the folder a name without one"
        )
    uri = f"{scheme}://{host}{slash}{quote(names)}"
    try:
        filesystem, path = patiently(f"cannot open {text!r}", lambda: fs.FileSystem.from_uri(uri))
    except (pa.ArrowInvalid, NotImplementedError) as refusal:
        if scheme in _OURS:
            raise StorageError(f"cannot open {text!r}: {refusal}. Correct the address") from refusal
        import fsspec  # schemes pyarrow does not know itself

        try:
            filesystem, path = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as problem:
            raise StorageError(
                f"cannot open {text!r}: {problem}. Use a local path, s3://..., gs://..., "
                "or install the fsspec package of that scheme (extras: pip install -e '.[aws]' or '.[gcp]')"
            ) from problem
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    except StorageError:
        raise
    except OSError as problem:
        raise StorageError(f"cannot open {text!r}: {problem}") from problem
    return whole(filesystem), path.rstrip("/")


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether a filesystem is this machine's own, by path or by an address such as `file:///home/me`."""
    return filesystem.type_name.removeprefix("py::") == "local"


def whole(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same filesystem with the manners of `WholeFiles`."""
    if isinstance(filesystem, fs.PyFileSystem) and isinstance(filesystem.handler, WholeFiles):
        return filesystem
    return fs.PyFileSystem(WholeFiles(filesystem))


def write_whole(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all, and the folder it is in.

    Raises:
        StorageError: the disk is full, or the store refuses or stays away.
        FileNotFoundError: the file written aside vanished before it was renamed, again and again.
    """
    filesystem = whole(filesystem)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    with filesystem.open_output_stream(path, compression=None) as stream:  # whatever its name ends in
        stream.write(content)


def read_whole(filesystem: fs.FileSystem, path: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the store refuses or stays away.
    """
    with whole(filesystem).open_input_stream(path, compression=None) as stream:
        return stream.read()


def file_names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Names of the files right in a folder, sorted; none if there is no such folder."""
    entries = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in entries if info.type == fs.FileType.File)


class _Output:
    """Collects what is written to it and makes a file of it with the last part; dropped before, it leaves nothing.

    With the last part, and not only when it is closed: `pyarrow.fs.copy_files`, with which Ray stores checkpoints, says
    nothing where closing fails (pyarrow 26.0), so that a checkpoint that never arrived would count as stored.
    """

    def __init__(self, publish: Callable[[bytes], None]) -> None:
        self.publish = publish
        self.parts: list[bytes] = []
        self.published = self.closed = False

    def write(self, part: Any) -> int:
        self.parts.append(bytes(part))
        self.published = False
        if len(self.parts[-1]) < _RAY_PART:
            self._publish()
        return len(self.parts[-1])

    def tell(self) -> int:
        return sum(map(len, self.parts))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._publish()

    def _publish(self) -> None:
        if not self.published:
            self.published = True  # also where it fails: it has been tried for long enough
            self.publish(b"".join(self.parts))


def _bounded(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same store with our time-outs, and with no retries of its own: `patiently` does them, for every store alike.

    Left alone, pyarrow tries an S3 server that is silent for minutes, and Google's for 15.
    """
    if filesystem.type_name not in _OBJECT_STORES:
        return filesystem
    make, (options,) = filesystem.__reduce__()
    if filesystem.type_name == "s3":
        limits = {
            "connect_timeout": CONNECT_S,
            "request_timeout": ANSWER_S,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=1),
            "allow_delayed_open": True,  # one request for a small file instead of three
            "background_writes": False,  # copies of many files at once could wait for one another's threads
        }
    else:
        limits = {"retry_time_limit": timedelta(seconds=ANSWER_S)}
    return make({**options, **limits})


def _content(filesystem: fs.FileSystem, path: str) -> pa.Buffer:
    with filesystem.open_input_file(path) as file:
        return file.read_buffer(file.size())  # the size asks an object store once; without one it is asked by the piece


def _put(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path, compression=None) as stream:  # whatever its name ends in
        stream.write(content)


def _upload(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    try:
        _put(filesystem, path, content)
    except FileNotFoundError as problem:  # all that has to be there before; Google's client says no more than "404"
        raise OSError(f"Bucket '{path.partition('/')[0]}' not found") from problem


def _write_aside(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write beside, then rename."""
    folder, local = path.rsplit("/", 1)[0], filesystem.type_name == "local"
    if local and shutil.disk_usage(folder).free < _RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    for attempt in range(1, _ATTEMPTS + 1):
        aside = f"{folder}/.part-{uuid.uuid4().hex}"
        try:
            _put(filesystem, aside, content)
            if local:
                _to_disk(aside)  # else a power cut could leave the new name and nothing in it
            filesystem.move(aside, path)
            break
        except FileNotFoundError:  # a second build of the same cache took it for a dead one's leftover
            if attempt == _ATTEMPTS:
                raise
        except OSError:
            with suppress(OSError):  # half of it would fill a full disk for good
                filesystem.delete_file(aside)
            raise
    if local:
        with suppress(OSError):  # some network disks cannot do this to a folder; the file is there
            _to_disk(folder)


def _to_disk(path: str) -> None:
    """Wait until a file's content, or a folder's names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
