"""Readers of tables, row by row: CSV, JSON Lines and Parquet, for training and for `fluxtalk embed` and `index` alike.

`open_table` chooses the reader by the file's suffix. Rows are read as they are asked for, in bounded memory;
`read_whole` collects them by column.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from fluxtalk.artifacts.storage import StoredPath
from fluxtalk.errors import BackendError, DataError, reason

# csv refuses cells of more than 128 kB, and knows one limit for the whole process. A cell may hold a document: what is
# too long is cut by the encoder's tokenizer.
csv.field_size_limit((1 << 31) - 1)


class Row(NamedTuple):
    """One row of a table."""

    number: int
    """Its position in the file, from 1, in `TableFile.row_word`; a row of several lines has that of its last."""
    cells: Mapping[str, Any]
    """Column to cell, None if it is null. Columns that the row does not have may be absent."""
    problem: str = ""
    """Why it is not a row of the table, if it is not; then it has no cells."""


class TableFile(Protocol):
    """A table on disk; every method opens the file anew.

    Methods raise DataError if the file cannot be read, and BackendError if a library that reads it is missing.
    """

    row_word: ClassVar[str]
    """The unit of `Row.number`: ``line`` or ``row``."""

    @property
    def path(self) -> StoredPath:
        """The file."""

    def header(self) -> list[str] | None:
        """Names of the columns, if the file states them before its rows; None if each row names its own."""

    def rows(self, wanted: Collection[str] | None = None) -> Iterator[Row]:
        """Read row after row.

        Args:
            wanted: columns to read, of which the file may lack some; None is all. Of other columns, cells may be given.
        """

    def count(self) -> int | None:
        """Number of rows, if the file says so; None if they would have to be counted."""


@dataclass(frozen=True)
class CsvFile:
    """UTF-8 CSV with a header."""

    path: StoredPath
    row_word: ClassVar[str] = "line"

    def header(self) -> list[str]:
        """Names in the first record."""
        return next(self._records(), (0, []))[1]

    def rows(self, wanted: Collection[str] | None = None) -> Iterator[Row]:
        """Read records; blank lines are skipped."""
        records = self._records()
        header = next(records, (0, []))[1]
        # Of columns with one name, the first.
        places = {column: header.index(column) for column in header if wanted is None or column in wanted}
        for number, record in records:
            if len(record) == len(header):
                yield Row(number, {column: record[place] for column, place in places.items()})
            elif record:
                yield Row(number, {}, f"{len(record)} cells for {len(header)} columns")

    def count(self) -> int | None:
        """Unknown until all records are read."""
        return None

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Number of the last line and cells of every record, the header first."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                # Not strict, a quotation mark that is never closed would swallow the rest of the table.
                reader = csv.reader(file, strict=True)
                try:
                    for record in reader:
                        yield reader.line_num, record
                except csv.Error as error:
                    raise DataError(
                        f"The table {self.path} is not valid CSV: {error}, in the row that ends at line "
                        f'{reader.line_num}; a quotation mark inside a quoted cell is written twice ("").'
                    ) from None
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error, "a UTF-8 CSV file with a header") from None


@dataclass(frozen=True)
class JsonLinesFile:
    """UTF-8 with one JSON object per line; blank lines are skipped."""

    path: StoredPath
    row_word: ClassVar[str] = "line"

    def header(self) -> None:
        """Stated by each object on its own."""

    def rows(self, wanted: Collection[str] | None = None) -> Iterator[Row]:
        """Read objects, with all of their keys."""
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _parse_object(number, line, wanted)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error, "UTF-8 with one JSON object per line") from None

    def count(self) -> int | None:
        """Unknown until all lines are read."""
        return None


@dataclass(frozen=True)
class ParquetFile:
    """Parquet, read by pyarrow."""

    path: StoredPath
    row_word: ClassVar[str] = "row"

    def header(self) -> list[str]:
        """Names in the schema."""
        with self._open() as file:
            return list(file.schema_arrow.names)

    def rows(self, wanted: Collection[str] | None = None) -> Iterator[Row]:
        """Read batches of 1,024 rows."""
        number = 0
        with self._open() as file:
            names = [c for c in dict.fromkeys(file.schema_arrow.names) if wanted is None or c in wanted]
            for batch in self._batches(file, names):
                columns = {name: batch.column(batch.schema.names.index(name)).to_pylist() for name in names}
                for i in range(batch.num_rows):
                    number += 1
                    yield Row(number, {name: column[i] for name, column in columns.items()})

    def count(self) -> int | None:
        """Number of rows in the metadata."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    def _open(self) -> Any:
        pyarrow = _import_pyarrow(self.path)
        try:
            source = self.path if isinstance(self.path, Path) else self.path.open("rb")
            return pyarrow.parquet.ParquetFile(source)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise _unreadable(self.path, error, "a Parquet file") from None

    def _batches(self, file: Any, names: list[str]) -> Iterator[Any]:
        pyarrow = _import_pyarrow(self.path)
        try:
            yield from file.iter_batches(batch_size=1024, columns=names)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise _unreadable(self.path, error, "a Parquet file") from None


_FORMATS: Mapping[str, Callable[[StoredPath], TableFile]] = {
    ".csv": CsvFile,
    ".jsonl": JsonLinesFile,
    ".parquet": ParquetFile,
}


def is_table(path: StoredPath) -> bool:
    """True for a file with the suffix of a table."""
    return path.suffix.lower() in _FORMATS


def open_table(path: StoredPath) -> TableFile:
    """The reader of a table, by its suffix: ``.csv``, ``.jsonl`` or ``.parquet``. Nothing is read yet."""
    return _FORMATS[path.suffix.lower()](path)


def malformed_row_error(table: TableFile, row: Row) -> DataError:
    """The error of a reader that stops at the first row with a problem."""
    position = f"{table.row_word.capitalize()} {row.number}"
    return DataError(f"{position} of the table {table.path} is malformed ({row.problem}); correct it.")


def first_columns(table: TableFile) -> list[str]:
    """Names of the columns, known without reading the whole file: of JSON Lines, those of the first object.

    Raises:
        DataError: the file cannot be read, or its first line is not a JSON object.
        BackendError: a library that reads it is missing.
    """
    header = table.header()
    if header is not None:
        return header
    for row in table.rows(()):
        if row.problem:
            raise malformed_row_error(table, row)
        return list(row.cells)
    return []


@dataclass(frozen=True)
class WholeTable:
    """A table in memory, by column."""

    columns: Sequence[str]
    """Every column of the file, in its order; of JSON Lines, the keys of all objects."""
    cells: Mapping[str, Sequence[Any]]
    """Column to one cell per row, None if it is null or absent; of the wanted columns that the file has."""
    row_word: str
    """See `TableFile.row_word`."""
    numbers: Sequence[int]
    """`Row.number` of each row."""
    problems: Sequence[tuple[int, str]]
    """`Row.number` and problem of each row that is left out of `cells`."""


def read_whole(table: TableFile, wanted: Collection[str] | None = None) -> WholeTable:
    """Read a table into memory, leaving out rows with a problem.

    Args:
        wanted: as for `TableFile.rows`.

    Raises:
        DataError: the file cannot be read.
        BackendError: a library that reads it is missing.
    """
    header = table.header()
    keys: dict[str, None] = {}
    cells: dict[str, list[Any]] = {}
    numbers: list[int] = []
    problems: list[tuple[int, str]] = []
    for row in table.rows(wanted):
        if row.problem:
            problems.append((row.number, row.problem))
            continue
        if header is None:
            keys.update(dict.fromkeys(row.cells))
        for name, cell in row.cells.items():
            if wanted is None or name in wanted:
                column = cells.setdefault(name, [])
                _pad(column, len(numbers))
                column.append(cell)
        numbers.append(row.number)
    for column in cells.values():
        _pad(column, len(numbers))
    return WholeTable(header if header is not None else list(keys), cells, table.row_word, numbers, problems)


def _pad(column: list[Any], rows: int) -> None:
    """Add the cells of rows that do not have the column."""
    column += [None] * (rows - len(column))


def _parse_object(number: int, line: str, wanted: Collection[str] | None) -> Row:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number, {}, f"not valid JSON: {reason(error)}")
    if not isinstance(cells, dict):
        return Row(number, {}, "not a JSON object")
    if "\\ud" in line.lower():  # the escape of half a character; most are followed by their other half
        for name, cell in cells.items():
            if (wanted is None or name in wanted) and not _is_unicode(cell):
                return Row(number, {}, f"{name} holds a lone surrogate, which is not valid Unicode")
    return Row(number, cells)


def _is_unicode(cell: Any) -> bool:
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return False
    return True


def _import_pyarrow(path: StoredPath) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendError(
            f"The table {path} needs pyarrow to be read: pip install 'fluxtalk[data]', or save it as CSV or JSONL."
        ) from None
    return pyarrow


def _unreadable(path: StoredPath, error: Exception, wanted: str) -> DataError:
    return DataError(f"The table {path} cannot be read ({reason(error)}); it must be {wanted}.")
