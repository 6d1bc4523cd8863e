"""Where a data set lies: a name of ``--data``, seen from one folder or another.

A name holds a path, and a path that is relative means nothing elsewhere. So what refers to a data set for later keeps
it twice, as checkpoints and runs do: absolutely, and relative to itself, for when the whole project is moved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fluxtalk.datasets.data_name import GLYPHS, parse_data_name
from fluxtalk.datasets.shards.shards import shard_names
from fluxtalk.errors import BackendError, UsageError


def with_absolute_path(name: str, folder: Path | None = None) -> str:
    """The name with its path absolute; a relative one is taken from ``folder``, by default the working directory.

    Raises:
        UsageError: its query is malformed.
    """
    base = folder or Path()
    return _with_path(name, lambda path: os.path.abspath(base / path))


def with_relative_path(name: str, folder: Path) -> str:
    """The name with its path relative to a folder.

    Raises:
        UsageError: its query is malformed.
    """
    return _with_path(name, lambda path: os.path.relpath(path, folder))


def first_existing(names: Sequence[str]) -> str | None:
    """The first of these names whose table, folder or any of whose shards exists; None where there is none."""
    return next((name for name in names if _is_there(name)), None)


def _with_path(name: str, change: Callable[[str], str]) -> str:
    if name == GLYPHS:
        return name
    parsed = parse_data_name(name)
    path = name if parsed is None else parsed.path
    return change(path) + name.removeprefix(path)


def _is_there(name: str) -> bool:
    if name == GLYPHS:
        return True
    parsed = parse_data_name(name)
    if parsed is None:
        return Path(name).is_dir()
    if parsed.suffix != ".tar":
        return Path(parsed.path).exists()
    try:
        return any(Path(shard).is_file() for shard in shard_names(parsed))
    except (BackendError, UsageError):
        return True  # Whoever reads them says why they cannot be read.
