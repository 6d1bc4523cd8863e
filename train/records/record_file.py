"""A file of records, one JSON object per line: metrics.jsonl, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.json_files import decode_json, read_text
from fluxtalk.errors import ArtifactError, reason

_MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Record:
    """One line of a file of records."""

    line: str
    """Text of the line, without its end."""
    number: int
    """Number of the line, from 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RecordFile:
    """The records of a file in its order."""

    records: tuple[Record, ...]
    torn: bool
    """True if the last line was cut off while it was written; it is not a record."""


def read_records(path: Path) -> RecordFile:
    """Read a file of records; blank lines are skipped.

    Raises:
        ArtifactError: the file is missing, or a whole line is not a JSON object with a ``kind``.
    """
    try:
        *lines, last = read_text(path, _MAX_BYTES).split("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ArtifactError(f"{path} is not a file of records; give a .jsonl file.") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not a text file ({reason(error)}); give a .jsonl file.") from None
    records = [_record(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    torn = False
    if last.strip():
        # The end of line is written last: without it the line may be whole (other writers omit it) or torn.
        try:
            records.append(_record(path, len(lines) + 1, last))
        except ArtifactError:
            torn = True
    return RecordFile(tuple(records), torn)


def _record(path: Path, number: int, line: str) -> Record:
    try:
        values = decode_json(line)
    except ValueError as error:
        raise ArtifactError(
            f"{path} line {number} is not valid JSON ({reason(error)}); mend or remove the line."
        ) from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ArtifactError(
            f'{path} line {number} is not a record: each line is a JSON object with a "kind", such as "train".'
        )
    return Record(line, number, values)
