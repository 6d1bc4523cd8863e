"""Messages of all data set readers: one sentence for everything that is wrong, and progress bars for long reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from fluxtalk.console import progress
from fluxtalk.errors import DataError

LISTED = 20
"""Largest number of problems that a sentence lists; all are counted."""
_LONG_BYTES = 1_000_000_000
T = TypeVar("T")


def abbreviate(names: Sequence[str]) -> str:
    """List the first twenty names and the number of the others."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def is_file(path: Path) -> bool:
    """Return whether a path is a file that can be looked at; False too for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than names are, in a folder that is closed to us, with a null character
        return False


def exists(path: Path) -> bool:
    """Return whether there is a file, a folder or a pipe of that name, as `is_file` does."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, as `is_file` does."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def require_files(what: str, wanted: Sequence[Path], shown: Sequence[str], hint: str, tolerated: float = 0.0) -> None:
    """Refuse a data set if files are missing, all of them in one sentence.

    Args:
        what: subject of the sentence: ``The table pairs.csv``.
        wanted: paths, each once.
        shown: name of each path in the data set.
        hint: what to do.
        tolerated: largest share of them that may be missing.

    Raises:
        DataError: more than that share of the paths are not files.
    """
    missing = [name for path, name in zip(wanted, shown, strict=True) if not is_file(path)]
    if len(missing) > tolerated * len(wanted):
        raise DataError(
            f"{what} names {len(missing)} of {len(wanted)} files that do not exist: {abbreviate(missing)}; {hint}."
        )


def with_progress(items: Sequence[T], what: str, unit: str, total_bytes: int) -> Iterable[T]:
    """Iterate with a progress bar if reading takes more than seconds (above 1 GB)."""
    bar: Iterable[T] = progress(items, what, unit=unit) if total_bytes > _LONG_BYTES else items
    return bar
