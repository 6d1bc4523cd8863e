"""The formats of a table, each met in one function: CSV, JSON Lines, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.errors import BackendError, DataError, reason


@dataclass(frozen=True)
class RawTable:
    """A table as its format gives it."""

    columns: tuple[str, ...]
    """Every column of the file, in its order."""
    cells: Mapping[str, Sequence[Any]]
    """Column to one cell per row, None where there is none; only the columns that were asked for."""
    row_word: str
    """What `numbers` counts: ``line`` or ``row``."""
    numbers: Sequence[int]
    """Where each row stands in the file, from 1; a row of several lines stands where it ends."""
    problems: Sequence[tuple[int, str]]
    """Rows that are no rows of a table, left out of `cells`: where they stand, and what is wrong."""


Reader = Callable[[Path, Collection[str] | None], RawTable]


def read_csv(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Read UTF-8 CSV with a header; see `READERS`."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    problems: list[tuple[int, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # A quotation mark that is never closed would swallow the rest of the table.
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for row in reader:
                if len(row) == len(header):
                    rows.append(row)
                    numbers.append(reader.line_num)
                elif row:
                    problems.append((reader.line_num, f"{len(row)} cells for {len(header)} columns"))
    except csv.Error as error:
        raise DataError(
            f"The table {path} is no valid CSV: {error}, in the row that ends at line {reader.line_num}; a quotation "
            'mark inside a quoted cell is written twice ("").'
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"The table {path} cannot be read ({reason(error)}); it must be a UTF-8 CSV file with a header."
        ) from None
    cells = {column: [row[i] for row in rows] for i, column in enumerate(header) if wanted is None or column in wanted}
    return RawTable(tuple(header), cells, "line", numbers, problems)


def read_jsonl(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Read one JSON object per line; see `READERS`."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    problems: list[tuple[int, str]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.append((number, f"no JSON: {reason(error)}"))
                    continue
                if isinstance(row, dict):
                    rows.append(row)
                    numbers.append(number)
                else:
                    problems.append((number, "no JSON object"))
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"The table {path} cannot be read ({reason(error)}); it must be UTF-8 with one JSON object per line."
        ) from None
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = {column: [row.get(column) for row in rows] for column in columns if wanted is None or column in wanted}
    return RawTable(columns, cells, "line", numbers, problems)


def read_parquet(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Read a Parquet file by pyarrow; see `READERS`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendError(
            f"The table {path} needs pyarrow to be read: pip install 'fluxtalk[data]', or save it as CSV or JSONL."
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
            table = file.read([c for c in dict.fromkeys(columns) if wanted is None or c in wanted])
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"The table {path} cannot be read ({reason(error)}); it must be a Parquet file.") from None
    cells = {name: table.column(i).to_pylist() for i, name in enumerate(table.column_names)}
    return RawTable(columns, cells, "row", range(1, table.num_rows + 1), ())


READERS: Mapping[str, Reader] = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
"""Suffix to reader: path and the columns to read (None: all; a column that the file lacks is left out).

They raise DataError where the file cannot be read, and BackendError where a library is missing.
"""
