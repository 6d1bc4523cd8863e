"""Paths of files here, and in object storage through fsspec: ``s3://bucket/name``, ``gs://bucket/name`` and their like.

``file:///name`` is a path here. Keys and endpoints are what each storage's own library takes, from the environment.
"""

from __future__ import annotations

import errno
import glob
import importlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fluxtalk.artifacts.files import atomic_file, write_atomically
from fluxtalk.errors import BackendError, FluxTalkError, UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a drive of Windows
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in object storage, with what the commands need of `pathlib.Path`.

    Every method that reaches the storage raises OSError if it refuses, or cannot be reached.
    """

    protocol: str
    location: str
    """What follows ``://``, without a slash at its end."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.location}"

    @property
    def name(self) -> str:
        """Last part."""
        return self.location.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """End of the name from its last dot, such as ``.csv``."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder, or the bucket."""
        return RemotePath(self.protocol, self.location.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Another file of the same folder."""
        return self.parent / name

    def __truediv__(self, relative: str) -> RemotePath:
        """Resolve a relative path; ``..`` leads no further up than the bucket."""
        parts = self.location.split("/")
        for part in relative.split("/"):
            if part == ".." and len(parts) > 1:
                parts.pop()
            elif part not in ("", ".", ".."):
                parts.append(part)
        return RemotePath(self.protocol, "/".join(parts))

    def is_dir(self) -> bool:
        """Return whether there are files below it."""
        with storage_errors(self):
            system, location = self.system()
            return bool(system.isdir(location))

    def files(self) -> list[RemotePath]:
        """List all files below it, by name."""
        with storage_errors(self):
            system, location = self.system()
            system.invalidate_cache()
            prefix = len(location.rstrip("/"))
            return sorted((self / name[prefix:] for name in system.find(location)), key=str)

    def read_bytes(self, end: int | None = None) -> bytes:
        """Read all bytes, or the first ``end``."""
        with storage_errors(self):
            system, location = self.system()
            return bytes(system.cat_file(location, start=None if end is None else 0, end=end))

    def write_bytes(self, data: bytes) -> None:
        """Write the file at once: a reader sees the old or the new one."""
        with storage_errors(self):
            system, location = self.system()
            system.pipe_file(location, data)

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Open it for reading, in ``r`` or ``rb``."""
        with storage_errors(self):
            system, location = self.system()
            stream = io.BufferedReader(_Stream(system.open(location, "rb"), self), _BUFFER_BYTES)
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding or "utf-8", newline=newline)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        with suppress(*([FileNotFoundError] if missing_ok else [])), storage_errors(self):
            system, location = self.system()
            system.rm_file(location)

    def remove_folder(self) -> None:
        """Remove all files below it; what may not be removed stays."""
        with suppress(OSError), storage_errors(self):
            system, location = self.system()
            system.rm(glob.escape(location), recursive=True)  # which takes patterns

    def system(self) -> tuple[Any, str]:
        """File system of fsspec, and what it calls this path."""
        import fsspec.core

        system, location = fsspec.core.url_to_fs(str(self))
        return system, str(location)


StoredPath = Path | RemotePath


def is_address(text: object) -> bool:
    """Return whether an item or a cell is an address with ``://``, and not a local path."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def stored_path(text: str | Path) -> StoredPath:
    """Read a path or an address.

    Raises:
        UsageError: an address of a kind that is not read.
        BackendError: a library for it is missing.
    """
    found = _ADDRESS.match(text) if isinstance(text, str) else None
    if found is None:
        return Path(text)
    address, protocol = str(text), found[1].lower()
    if protocol == "file":
        return Path(url2pathname(urlsplit(address).path))
    if protocol in ("http", "https"):
        raise UsageError(
            f"{address} is a web address, which is not read; download it, or name a bucket (s3://, gs://)."
        )
    location = address[found.end() :].strip("/")
    if not location:
        raise UsageError(f"{address} names no file; give {protocol}://BUCKET/NAME.")
    _require_library(protocol, address)
    return RemotePath(protocol, location)


def read_files(paths: Sequence[RemotePath]) -> list[bytes | None]:
    """Read whole files, several at a time if their storage can; None stands for a file that does not exist.

    Raises:
        OSError: the storage refuses, or cannot be reached.
    """
    found: list[bytes | None] = []
    for _, group in itertools.groupby(paths, lambda path: path.protocol):
        same = list(group)
        with storage_errors(same[0]):
            system = same[0].system()[0]
            names = [path.system()[1] for path in same]
            # Not `cat`, which takes names with brackets for patterns.
            contents = system.cat_ranges(names, None, None, on_error="return")
        for path, content in zip(same, contents, strict=True):
            with storage_errors(path):
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
            found.append(None if isinstance(content, Exception) else bytes(content))
    return found


def write_file(path: StoredPath, data: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(path, Path):
        write_atomically(path, data)
    else:
        path.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def written_file(path: StoredPath) -> Iterator[IO[bytes]]:
    """Yield a binary file to write, which gets its name when all is written, and is dropped if that fails.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(path, Path):
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            yield file
        return
    with storage_errors(path):
        system, location = path.system()
    writing = True
    try:
        # Bytes go up in parts meanwhile; the storage makes a file of them at the end.
        with system.transaction, io.BufferedWriter(_Stream(system.open(location, "wb"), path), _BUFFER_BYTES) as file:
            yield file
            writing = False
    except Exception as error:
        if writing or isinstance(error, OSError):
            raise
        raise _as_os_error(error, path) from error


@contextmanager
def storage_errors(path: RemotePath) -> Iterator[None]:
    """Raise what a storage's library raises as an OSError that names the path."""
    try:
        yield
    except FluxTalkError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(path):
            raise
        raise _as_os_error(error, path) from error


def _as_os_error(error: Exception, path: RemotePath) -> OSError:
    """Make the OSError, or its subclass, that says what the storage's library said, and of which path."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    code = errno.EACCES if isinstance(error, PermissionError) else errno.EIO
    return OSError(code, f"{type(error).__name__}: {' '.join(str(error).split())}", str(path))


def _require_library(protocol: str, address: str) -> None:
    try:
        fsspec = importlib.import_module("fsspec")
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        needed = f"pip install 'fluxtalk[{extra}]'" if extra else f"fsspec says: {error}"
        raise BackendError(f"{address} needs a library that is not installed: {needed}.") from None
    except ValueError:
        raise UsageError(
            f"{address} is of a kind that fsspec does not know; give a path, or an address such as s3://BUCKET/NAME."
        ) from None


class _Stream(io.RawIOBase):
    """A file of fsspec, whose errors are those of `storage_errors`."""

    def __init__(self, file: Any, path: RemotePath) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return bool(self._file.readable())

    def writable(self) -> bool:
        return bool(self._file.writable())

    def seekable(self) -> bool:
        return bool(self._file.readable())

    def readinto(self, buffer: Any) -> int:
        with storage_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        with storage_errors(self._path):
            self._file.write(bytes(data))
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with storage_errors(self._path):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            super().close()
            with storage_errors(self._path):
                self._file.close()
