"""What every source says while it is read: one report for all that is wrong, and progress where it takes long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from fluxtalk.console import progress
from fluxtalk.errors import DataError

LISTED = 20
"""How many of the things that are wrong a report lists; all are counted."""
_LONG_BYTES = 1_000_000_000
T = TypeVar("T")


def abbreviate(names: Sequence[str]) -> str:
    """The first twenty, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def require_files(what: str, wanted: Sequence[Path], shown: Sequence[str], hint: str) -> None:
    """Refuse a source of which files are missing, all of them in one sentence.

    Args:
        what: the source, as the sentence begins: ``The table pairs.csv``.
        wanted: paths, each once.
        shown: what each of them is called in the source.
        hint: what to do.

    Raises:
        DataError: a path is no file.
    """
    missing = [name for path, name in zip(wanted, shown, strict=True) if not path.is_file()]
    if missing:
        raise DataError(
            f"{what} names {len(missing)} of {len(wanted)} files that do not exist: {abbreviate(missing)}; {hint}."
        )


def with_progress(items: Sequence[T], what: str, unit: str, total_bytes: int) -> Iterable[T]:
    """The items, behind a progress bar where reading them takes more than seconds (above 1 GB)."""
    bar: Iterable[T] = progress(items, what, unit=unit) if total_bytes > _LONG_BYTES else items
    return bar
