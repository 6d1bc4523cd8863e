"""Rows of a table, read as they are asked for: CSV, JSON Lines, Parquet. (`fluxtalk.datasets` reads tables whole.)"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fluxtalk.errors import BackendError, InputError, reason

# A cell may hold a whole document; text is cut to what the encoder takes, wherever it comes from.
csv.field_size_limit((1 << 31) - 1)

Rows = Iterator[tuple[int, list[Any]]]
"""Where a row stands in the file, from 1, and its cells."""


def table_columns(path: Path) -> list[str]:
    """The columns of a table: of the header, the first object, or the schema.

    Raises:
        InputError: the file is missing, cannot be read, or has no row.
        BackendError: a library that reads it is missing.
    """
    return _FORMATS[path.suffix.lower()][0](path)


def iterate_rows(path: Path, columns: Sequence[str]) -> Rows:
    """The cells of these columns, row by row, in bounded memory.

    Raises:
        InputError: the file cannot be read, or a row is malformed; its place is named.
        BackendError: a library that reads it is missing.
    """
    return _FORMATS[path.suffix.lower()][1](path, columns)


def known_rows(path: Path) -> int | None:
    """How many rows a table has, where it says so; None where they would have to be counted.

    Raises:
        InputError: the file cannot be read.
    """
    if path.suffix.lower() != ".parquet":
        return None
    pyarrow = _pyarrow(path)
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, "a Parquet file") from None


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return path.suffix.lower() in _FORMATS


def _csv_columns(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error, "a UTF-8 CSV file with a header") from None


def _csv_rows(path: Path, columns: Sequence[str]) -> Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # A quotation mark that is never closed would swallow the rest of the table.
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            places = [header.index(column) for column in columns]
            for row in reader:
                if row and len(row) != len(header):
                    raise InputError(
                        f"Line {reader.line_num} of {path} has {len(row)} cells for {len(header)} columns; correct it."
                    )
                if row:
                    yield reader.line_num, [row[place] for place in places]
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error, "a UTF-8 CSV file with a header") from None


def _jsonl_columns(path: Path) -> list[str]:
    for _, row in _objects(path):
        return list(row)
    return []


def _jsonl_rows(path: Path, columns: Sequence[str]) -> Rows:
    for number, row in _objects(path):
        yield number, [row.get(column) for column in columns]


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(path, number, line)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "UTF-8 with one JSON object on each line") from None


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Line {number} of {path} is no JSON ({reason(error)}); correct it.") from None
    if not isinstance(row, dict):
        raise InputError(f"Line {number} of {path} is no JSON object; each is one, from column to value.")
    return row


def _parquet_columns(path: Path) -> list[str]:
    pyarrow = _pyarrow(path)
    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, "a Parquet file") from None


def _parquet_rows(path: Path, columns: Sequence[str]) -> Rows:
    pyarrow = _pyarrow(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(columns))):
                cells = [batch.column(batch.schema.names.index(column)).to_pylist() for column in columns]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield number, list(row)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, "a Parquet file") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendError(
            f"{path} needs pyarrow: pip install 'fluxtalk[data]', or use CSV, JSON Lines or .npy."
        ) from None
    return pyarrow


def _unreadable(path: Path, error: Exception, wanted: str) -> InputError:
    return InputError(f"The table {path} cannot be read ({reason(error)}); it must be {wanted}.")


_FORMATS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, Sequence[str]], Rows]]] = {
    ".csv": (_csv_columns, _csv_rows),
    ".jsonl": (_jsonl_columns, _jsonl_rows),
    ".parquet": (_parquet_columns, _parquet_rows),
}
