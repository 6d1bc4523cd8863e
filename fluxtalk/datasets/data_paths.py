"""Paths in names of ``--data``: absolute, relative to a folder, and the first that exists.

A relative path means nothing in another folder. Files that refer to a data set for later, such as checkpoints and runs,
therefore keep its name twice: with the absolute path, and with the path relative to themselves, which still holds after
the whole project was moved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fluxtalk.datasets.data_name import GLYPHS, HUGGING_FACE, parse_data_name
from fluxtalk.datasets.reporting import exists, is_file, is_folder
from fluxtalk.datasets.shards.shards import shard_names
from fluxtalk.errors import BackendError, UsageError


def with_absolute_path(name: str, folder: Path | None = None) -> str:
    """The name with an absolute path.

    Args:
        folder: what a relative path is relative to; None is the working directory.


    Raises:
        UsageError: its query is malformed.
    """
    base = folder or Path()
    return _with_path(name, lambda path: os.path.abspath(base / path))


def with_relative_path(name: str, folder: Path) -> str:
    """The name with a path relative to ``folder``.

    Raises:
        UsageError: its query is malformed.
    """
    return _with_path(name, lambda path: os.path.relpath(path, folder))


def first_existing(names: Sequence[str]) -> str | None:
    """The first name whose table, folder or at least one shard exists; None if no name has."""
    return next((name for name in names if _exists(name)), None)


def _with_path(name: str, change: Callable[[str], str]) -> str:
    if name == GLYPHS:
        return name
    parsed = parse_data_name(name)
    path = name if parsed is None else parsed.path
    before, _, after = name.partition(path)
    return before + change(path) + after


def _exists(name: str) -> bool:
    if name == GLYPHS:
        return True
    parsed = parse_data_name(name)
    if parsed is None or parsed.suffix == HUGGING_FACE:
        return is_folder(Path(name if parsed is None else parsed.path))
    if parsed.suffix != ".tar":
        return exists(Path(parsed.path))
    try:
        return any(is_file(Path(shard)) for shard in shard_names(parsed))
    except (BackendError, UsageError):
        return True  # The reader of the data set reports this error.
