"""Paths of a table that lead out of its folder: read as they are, for the table is the user's own, and said once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def outside_notes(table: Path, files: Iterable[str | Path]) -> tuple[str, ...]:
    """Say how many files of a table are outside its folder: a sentence, or none if there is no such file.

    Args:
        table: the table.
        files: paths of its files, relative to the working directory. Links of their folders are followed.
    """
    home = os.path.realpath(table.parent)
    outside: dict[str, bool] = {}
    total = found = 0
    for file in files:
        folder = os.path.dirname(file)
        if folder not in outside:
            real = os.path.realpath(folder)
            outside[folder] = real != home and not real.startswith(os.path.join(home, ""))
        total += 1
        found += outside[folder]
    if not found:
        return ()
    return (
        f"{found:,} of the {total:,} files that {table.name} names are outside its folder {home}; they are read as "
        "they are: use tables of strangers with care",
    )
