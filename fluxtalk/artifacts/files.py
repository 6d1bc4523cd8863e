"""Atomic writes, content hashes, and the identity of an artifact.

Everything that FluxTalk writes goes through here, so that an interrupted program leaves either the old file or the new
one, and a changed file is noticed when it is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.unfinished import file_mode, other_writer, sweep, unfinished_folder

IMPLEMENTATION_VERSION = "1.0"


@dataclass(frozen=True)
class Identity:
    """Maker of an artifact: several implementations can be told apart in one set of logs."""

    experiment_id: str = "cursor_flux_talk_register_tokens"
    implementation: str = "cursor"
    implementation_version: str = IMPLEMENTATION_VERSION
    git_revision: str | None = None

    @property
    def log_prefix(self) -> str:
        """Prefix of log lines: ``[CURSOR]`` for the implementation ``cursor``."""
        return f"[{self.implementation.upper()}]"

    def fields(self) -> dict[str, str | None]:
        """Fields that every result record carries."""
        return {
            "experiment_id": self.experiment_id,
            "implementation": self.implementation,
            "implementation_version": self.implementation_version,
            "git_revision": self.git_revision,
        }


def user_cache_dir() -> Path:
    """The folder for what can be made again: ``FLUXTALK_CACHE_DIR``, else ``~/.cache/fluxtalk``."""
    return Path(os.environ.get("FLUXTALK_CACHE_DIR") or Path.home() / ".cache" / "fluxtalk")


def git_revision(folder: Path | None = None) -> str | None:
    """Commit of the running FluxTalk checkout, with ``+`` if it has changes; None outside a checkout."""
    where = folder or Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        if commit.returncode != 0:
            return None
        status = subprocess.run(
            ["git", "-C", str(where), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def canonical_json(value: Any) -> str:
    """Spell a JSON value for hashing: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_json(value: Any) -> str:
    """SHA-256, in hex, of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NOT_WRITTEN = ("inline_container.cc", "I/O error: ")
"""Words with which PyTorch and safetensors tell of a full disk, in errors that are no `OSError`."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path near ``path``; on success it is synced and renamed over it, else removed.

    The file has the permissions that the umask gives, whatever wrote it.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "There is something else than a file", str(path))
    try:
        sweep(path)
        with unfinished_folder(path) as folder:
            temporary = folder / path.name
            temporary.touch()
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(file_mode(folder))
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise _with_path(error, path) from None
    except Exception as error:
        if any(words in str(error) for words in _NOT_WRITTEN):
            # safetensors tells the system's reason; PyTorch does not.
            told = _OS_ERROR.search(str(error))
            code, why = (
                (int(told[1]), os.strerror(int(told[1]))) if told else (errno.EIO, "It could not be written whole")
            )
            raise OSError(code, why, str(path)) from error
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN, which is not JSON, is refused."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def require_free(path: Path, refuse: Callable[[str], Exception]) -> None:
    """Refuse a folder that is in the way of a new one: one that exists and is not empty.

    Args:
        refuse: makes the exception from a sentence.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise refuse(f"{path} already exists and is not empty; name another place or remove it first.")


@contextmanager
def atomic_folder(path: Path, refuse: Callable[[str], Exception]) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` on success, and is removed on failure.

    Args:
        path: the folder to create; must not exist, or be empty.
        refuse: makes the exception, from a sentence, if the folder exists and is not empty, or another process writes
            it.
    """
    require_free(path, refuse)
    sweep(path, again=True)
    if other_writer(path):
        raise refuse(f"Another process is writing {path}; wait until it ends, or name another place.")
    try:
        with unfinished_folder(path) as temporary:
            yield temporary
            try:
                if path.exists():
                    path.rmdir()
                temporary.replace(path)
            except OSError:
                if not path.exists():
                    raise
                raise refuse(
                    f"{path} was written by another process in the meantime, and stays as that left it; "
                    "name another place."
                ) from None
            _sync_folder(path.parent)
    except OSError as error:
        raise _with_path(error, path) from None


def _with_path(error: OSError, path: Path) -> OSError:
    """Add the path to an error that names none, such as that of a full disk, or the temporary one."""
    if error.filename is None or ".held-" in str(error.filename):
        error.filename = str(path)
    return error


def _sync_folder(folder: Path) -> None:
    """Let a name outlive a power cut, where the system syncs folders; Windows does not even open them."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
