"""A file of records, one JSON object per line: metrics.jsonl, read without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.errors import ArtifactError, reason


@dataclass(frozen=True)
class Record:
    """One line."""

    line: str
    """As it stands in the file, without the line's end."""
    number: int
    """From 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RecordFile:
    """The records of a file in its order."""

    records: tuple[Record, ...]
    torn: bool
    """Whether the last line was cut off while it was written; it is no record."""


def read_records(path: Path) -> RecordFile:
    """Read a file of records; blank lines are skipped.

    Raises:
        ArtifactError: the file is missing, or a whole line is no JSON object with a ``kind``.
    """
    try:
        *lines, last = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ArtifactError(f"{path} is no file of records; give a .jsonl file.") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is no text ({reason(error)}); give a .jsonl file.") from None
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
        values = strict_json(line)
    except ValueError as error:
        raise ArtifactError(f"{path} line {number} is no JSON ({reason(error)}); mend or remove the line.") from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ArtifactError(
            f'{path} line {number} is no record: each line is a JSON object with a "kind", such as "train".'
        )
    return Record(line, number, values)


def strict_json(text: str) -> Any:
    """Decode JSON whose numbers all are finite ones: not NaN, nor 1e999, which is beyond what a float holds.

    Raises:
        ValueError: it is no JSON, or has another number.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_finite_int)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large a number")
    return value


def _finite_int(digits: str) -> int:
    _finite_float(digits)
    return int(digits)
