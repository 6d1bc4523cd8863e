"""Folders in which files are written before they get their name, and what a killed process leaves of them.

``.NAME.held-1a2b3c4d.tmp`` stands beside NAME while it is written, and is locked by its writer. The system frees the
lock of a process that was killed, so that the next writer there can tell what nobody will finish, and removes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
"""Locks of the system; None on Windows, where age alone tells."""
_HELD = re.compile(r"\..+\.held-[0-9a-f]{8}\.tmp\Z")
_LOCK_SECONDS = 2.0
"""Age from which an unlocked folder is left over: its writer locks it right after it made it."""
_UNLOCKED_SECONDS = 24 * 3600.0
"""The same where locks tell nothing: of versions that did not lock, and on file systems without locks."""
_MOST_CHARACTERS = 50
"""Characters of the name that the folder's name repeats: it may not be longer than 255 bytes."""
_swept: set[str] = set()


def is_unfinished(path: Path) -> bool:
    """Return whether a name is one under which something is written, or was when its process was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, made by the umask and locked; whatever is left of it is removed.

    Args:
        path: what will be made of it, or of something in it. Its parent is made if it is missing.

    Raises:
        OSError: the parent cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = path.parent / f"{_prefix(path)}held-{secrets.token_hex(4)}.tmp"
        try:
            temporary.mkdir()
            break
        except FileExistsError:
            continue
    lock = _lock(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def other_writer(path: Path) -> bool:
    """Return whether somebody is writing ``path`` now; True only where locks tell."""
    found = [other for other in _listed(path.parent) if other.name.startswith(f"{_prefix(path)}held-")]
    return any(_is_locked(other) for other in found)


def file_mode(temporary: Path) -> int:
    """Return the permissions that the umask gives a file in such a folder, which was made by it."""
    return stat.S_IMODE(temporary.stat().st_mode) & 0o666


def sweep(path: Path, again: bool = False) -> None:
    """Remove what killed processes left in the folder of ``path``; each process looks into a folder once.

    Args:
        path: what is about to be written.
        again: look although this process has looked before.
    """
    parent = str(path.parent.absolute())
    if parent in _swept and not again:
        return
    _swept.add(parent)
    for other in _listed(path.parent):
        ours = bool(_HELD.match(other.name))
        old = other.name.startswith(_prefix(path)) and other.name.endswith(".tmp")
        if (ours or old) and _is_left_over(other, ours):
            remove(other)


def remove(path: Path) -> None:
    """Remove an unfinished file or folder; what may not be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name[:_MOST_CHARACTERS]}."


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if is_unfinished(path)]
    except OSError:
        return []


def _is_left_over(path: Path, locked_by_writer: bool) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:  # another process was faster
        return False
    locked = _is_locked(path) if locked_by_writer else None
    return not locked and age > (_UNLOCKED_SECONDS if locked is None else _LOCK_SECONDS)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None where that is not possible."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_locked(folder: Path) -> bool | None:
    """Return whether a process holds the lock of a folder; None where that cannot be told."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(handle)
