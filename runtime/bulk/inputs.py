"""Raw items from a command line: texts and paths, a folder, a list in a file, or a column of a table."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fluxtalk.artifacts.storage import RemotePath, StoredPath, is_address, read_files, stored_path
from fluxtalk.datasets.reporting import abbreviate
from fluxtalk.datasets.tables.readers import Row, TableFile, first_columns, is_table, malformed_row_error, open_table
from fluxtalk.errors import DataError, InputError, UsageError
from fluxtalk.preprocess import FILE_SUFFIXES
from fluxtalk.preprocess.visible_text import is_visible

_ID = "id"
_MOST_PIPED = 1 << 30
"""Bytes of a list that is kept in memory because it can be read only once."""


class Item(NamedTuple):
    """One raw input."""

    id: str
    """Name: the id in a table; else the text or path as it was given; else the number of the row."""
    value: Any
    """Input of the modality's preprocessing."""


@dataclass(frozen=True)
class UnusableRow:
    """Value of a row that cannot be used, which no preprocessing takes."""

    reason: str


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Raises:
        UsageError: the table has no such column, or it is not clear which.
        InputError: the table cannot be read.
        BackendError: a library that reads it is missing.
    """

    path: StoredPath
    kind: str
    """Kind of the modality's preprocessing."""
    column: str
    id_column: str | None
    skip_empty: bool = False
    """Leave out rows with an empty cell; if False, they are errors."""
    pass_on: bool = False
    """Pass rows that cannot be used on as an `UnusableRow`; if False, they are refused, all in one sentence."""

    @classmethod
    def open(
        cls,
        path: StoredPath,
        kind: str,
        modality: str,
        column: str | None,
        id_column: str | None,
        skip_empty: bool = False,
        pass_on: bool = False,
    ) -> TableColumn:
        """Open a table, and find the named columns; by default the modality's own, and ``id`` if there is one."""
        with _input_errors():
            columns = first_columns(open_table(path))
        name = column if column is not None else modality
        for wanted, option in ((name, "--column"), (id_column, "--id-column")):
            if wanted is not None and wanted not in columns:
                raise UsageError(
                    f"The table {path} has the columns {', '.join(columns) or '(none)'} and no {wanted}; "
                    f"name one with {option}."
                )
        names = id_column or (_ID if _ID in columns and name != _ID else None)
        return cls(path, kind, name, names, skip_empty, pass_on)

    def notes(self) -> tuple[str, ...]:
        """Nothing: a table's rows are all taken, or refused."""
        return ()

    def count(self) -> int:
        """Number of items."""
        with _input_errors():
            stated = None if self.skip_empty else open_table(self.path).count()
        return sum(1 for _ in self) if stated is None else stated

    def __iter__(self) -> Iterator[Item]:
        table = open_table(self.path)
        wanted = {self.column, *([self.id_column] if self.id_column is not None else [])}
        problems: list[str] = []
        with _input_errors():
            for row in table.rows(wanted):
                value = row.cells.get(self.column)
                empty = value is None or (isinstance(value, str) and not is_visible(value))
                if empty and self.skip_empty and not row.problem:
                    continue
                problem = row.problem or (f"no {self.column}" if empty else "")
                if problem and self.pass_on:
                    place = f"{table.row_word} {row.number} of {self.path}"
                    yield Item(place, UnusableRow(f"{place}: {problem}"))
                elif problem:
                    problems.append(self._refusal(table, row) if not problems else f"{row.number} ({problem})")
                elif not problems:
                    yield Item(self._name(row, value), self._resolved(value))
            if problems:
                others = f" {table.row_word.capitalize()}s like it: {abbreviate(problems[1:])}." if problems[1:] else ""
                raise InputError(problems[0] + others)

    def _refusal(self, table: TableFile, row: Row) -> str:
        """Sentence about the first row that cannot be used."""
        if row.problem:
            return str(malformed_row_error(table, row))
        return (
            f"{table.row_word.capitalize()} {row.number} of the table {self.path} has no {self.column}, and every "
            "vector belongs to a row; leave the row out, or such rows with --skip-empty."
        )

    def _name(self, row: Row, value: Any) -> str:
        if self.id_column is not None:
            return str(row.cells.get(self.id_column))
        return value if isinstance(value, str) else str(row.number)

    def _resolved(self, value: Any) -> Any:
        """A cell as preprocessing takes it: paths are relative to the table, addresses are not."""
        is_path = isinstance(value, str) and self.kind != "text" and not is_address(value)
        return str(self.path.parent / value) if is_path else value


def is_stored(item: Item, kind: str) -> bool:
    """Return whether an item is the address of a file, which `with_content` reads.

    Args:
        kind: kind of the modality's preprocessing.
    """
    return kind != "text" and is_address(item.value)


def with_content(items: Sequence[Item]) -> list[Item]:
    """Put the bytes of files in place of their addresses, or an `UnusableRow` if there is no such file.

    Raises:
        BackendError: a library that reaches the storage is missing.
        OSError: the storage refuses, or cannot be reached.
    """
    read: dict[int, Any] = {}
    places: dict[int, RemotePath] = {}
    for position, item in enumerate(items):
        if is_address(item.value):
            try:
                path = stored_path(item.value)
            except UsageError as error:
                read[position] = UnusableRow(str(error))
                continue
            if isinstance(path, RemotePath):
                places[position] = path
            else:
                read[position] = str(path)
    for position, content in zip(places, read_files(list(places.values())), strict=True):
        read[position] = UnusableRow(f"{places[position]} does not exist") if content is None else content
    return [item._replace(value=read.get(position, item.value)) for position, item in enumerate(items)]


@contextmanager
def _input_errors() -> Iterator[None]:
    """Raise the errors of table readers as those of the input that a command was given."""
    try:
        yield
    except DataError as error:
        raise InputError(str(error)) from None


@dataclass(frozen=True)
class ItemList:
    """Items that a command was given, and those of a list file."""

    kind: str
    arguments: Sequence[str]
    list_file: StoredPath | None = None
    piped: str | None = None
    """Text of a list that can be read only once, such as a pipe."""

    @classmethod
    def open(cls, kind: str, arguments: Sequence[str], list_file: StoredPath | None) -> ItemList:
        """Take a list, and read what comes from a pipe: it is asked for more than once.

        Raises:
            InputError: the pipe holds too much, or something else than UTF-8.
        """
        if not isinstance(list_file, Path) or not list_file.exists() or list_file.is_file() or list_file.is_dir():
            return cls(kind, arguments, list_file)
        try:
            with list_file.open("rb") as file:
                content = file.read(_MOST_PIPED + 1)
            if len(content) > _MOST_PIPED:
                raise InputError(
                    f"The list {list_file} is not a file, and has more than {_MOST_PIPED:,} bytes; save it in a file."
                )
            return cls(kind, arguments, list_file, content.decode())
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(list_file, error) from None

    def count(self) -> int:
        """Number of items."""
        return sum(1 for _ in self)

    def notes(self) -> tuple[str, ...]:
        """Make a sentence about each folder's files that are passed over, because they are of another kind."""
        notes = []
        for folder in self.arguments if self.kind != "text" else ():
            path = stored_path(folder)
            others = _files(self.kind, path)[1] if path.is_dir() else []
            if others:
                notes.append(
                    f"{len(others)} files in {folder} do not end like a file of kind {self.kind} and are passed over: "
                    f"{abbreviate(others)}"
                )
        return tuple(notes)

    def __iter__(self) -> Iterator[Item]:
        for argument in self.arguments:
            for value in [argument] if self.kind == "text" else _expand(self.kind, stored_path(argument)):
                yield Item(value, value)
        if self.list_file is None:
            return
        try:
            with self.list_file.open(encoding="utf-8") if self.piped is None else io.StringIO(self.piped) as file:
                for line in file:
                    if line.strip():
                        yield Item(line.strip(), line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.list_file, error) from None


def _unreadable(path: StoredPath, error: Exception) -> InputError:
    return InputError(f"The list {path} cannot be read ({error}); give a UTF-8 file with one item per line.")


Input = TableColumn | ItemList


def open_input(
    kind: str,
    modality: str,
    arguments: Sequence[str],
    input_file: StoredPath | None = None,
    column: str | None = None,
    id_column: str | None = None,
    skip_empty: bool = False,
    pass_on: bool = False,
) -> Input:
    """Open what a command is to embed: an iterable that can be iterated again, and reads items as they are asked for.

    Args:
        kind: kind of the modality's preprocessing: ``text``, ``image``, ``audio`` or ``features``.
        arguments: texts, or paths or addresses in object storage; a folder stands for the files of that kind in it and
            its sub-folders, by name.
        input_file: a table (``.csv``, ``.jsonl``, ``.parquet``), whose paths are relative to it; or a UTF-8 file with
            one more item per line, of which blank lines are skipped.
        column: column of the table to embed; None is the one named as the modality.
        id_column: column of the table with names; None is ``id`` if there is one, else the embedded column.
        skip_empty: leave out the table's rows that have nothing in the column.
        pass_on: pass the table's rows that cannot be used on as an `UnusableRow`.

    Raises:
        UsageError: there is nothing to embed, there are both items and a table, an option needs a table, or the table
            has no such column.
        InputError: later, while items are read: a list, table or row cannot be read, or a folder has no file of that
            kind.
        BackendError: a library that reads the table, or reaches the storage, is missing.
    """
    if input_file is not None and is_table(input_file):
        if arguments:
            raise UsageError(f"Give items or the table {input_file}, not both.")
        return TableColumn.open(input_file, kind, modality, column, id_column, skip_empty, pass_on)
    if column is not None or id_column is not None or skip_empty:
        raise UsageError(
            "--column, --id-column and --skip-empty need a table: give --input a .csv, .jsonl or .parquet file."
        )
    if not arguments and input_file is None:
        raise UsageError("There is nothing to embed: give items, or a list or table with --input.")
    return ItemList.open(kind, arguments, input_file)


def _expand(kind: str, path: StoredPath) -> list[str]:
    if not path.is_dir():
        return [str(path)]
    found, others = _files(kind, path)
    if not found:
        raise InputError(
            f"The folder {path} has no {kind} file ({', '.join(sorted(FILE_SUFFIXES[kind]))}), in its sub-folders "
            f"neither; it has {abbreviate(others) or 'nothing'}."
        )
    return found


def _files(kind: str, folder: StoredPath) -> tuple[list[str], list[str]]:
    """Files of a kind in a folder and its sub-folders, by name, and the others; links to folders are not followed."""
    if isinstance(folder, RemotePath):
        files = [str(file) for file in folder.files()]
    else:
        files = sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    taken = [os.path.splitext(file)[1].lower() in FILE_SUFFIXES[kind] and not _is_hidden(file) for file in files]
    found = [file for file, is_taken in zip(files, taken, strict=True) if is_taken]
    return found, [file for file, is_taken in zip(files, taken, strict=True) if not is_taken]


def _is_hidden(file: str) -> bool:
    """True for what other programs leave, such as the ``._photo.jpg`` of macOS."""
    return os.path.basename(file).startswith(".")
