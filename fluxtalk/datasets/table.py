"""A CSV table of pairs: one row per pair, one column per modality.

::

    image,text,id,split
    photos/1.jpg,a dog on a beach,dog-1,train
    photos/1.jpg,a brown dog runs,dog-1,train
    photos/2.jpg,two cups of tea,tea-2,test

Columns other than ``id`` and ``split`` are modalities. A cell that names an existing kind of file
(image or ``.npy``) is a path relative to the table; anything else is text. Without ``id``, rows that share a
cell belong together. Without ``split``, ids are divided by hash: 80 % train, 10 % validation, 10 % test.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluxtalk.artifacts import hash_file, hash_json
from fluxtalk.config import require_modality_name
from fluxtalk.datasets.pairs import SPLIT_NAMES, Items, PairDataset, Split
from fluxtalk.errors import DataError, UsageError

FILE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy"))
_LISTED = 20

Row = Mapping[str, str]


@dataclass(frozen=True)
class _Table:
    path: Path
    modalities: tuple[str, ...]
    rows: list[dict[str, str]]
    ids: list[str]
    splits: list[str]
    file_columns: frozenset[str]

    def value(self, modality: str, cell: str) -> str | Path:
        return self.path.parent / cell if modality in self.file_columns else cell


def load(path: Path) -> PairDataset:
    """Read a table of pairs.

    Raises:
        DataError: the file is missing or malformed, has fewer than two modalities, names missing files (all
            are counted, the first 20 listed), has empty cells, or an id stands in two splits.
    """
    rows, modalities, lines = _read(path)
    file_columns = frozenset(m for m in modalities if _is_file_column(m, rows))
    _require_files(path, rows, sorted(file_columns))
    ids = [row["id"] for row in rows] if "id" in rows[0] else _linked_ids(rows, modalities)
    table = _Table(path, modalities, rows, ids, _splits(path, rows, ids, lines), file_columns)
    # What a cell holds, not how it is called: the same picture under two names is the same picture.
    content = {
        (m, cell): hash_file(path.parent / cell) if m in file_columns else cell
        for m in modalities
        for cell in {row[m] for row in rows}
    }
    key = [[table.splits[i], ids[i], *(content[m, row[m]] for m in modalities)] for i, row in enumerate(rows)]
    return PairDataset(
        name=str(path),
        modalities=modalities,
        splits={name: _split(table, name, content) for name in SPLIT_NAMES},
        content_hash=hash_json({"table": key, "modalities": modalities}),
    )


def _read(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...], list[int]]:
    """Rows, modalities, and the line in which each row ends."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            numbered = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except FileNotFoundError:
        raise DataError(f"The table {path} does not exist; check --data.") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(
            f"The table {path} cannot be read ({error}); it must be a UTF-8 CSV file with a header."
        ) from None
    modalities = tuple(name for name in columns if name not in ("id", "split"))
    if len(modalities) < 2:
        raise DataError(
            f"The table {path} needs at least two modality columns besides id and split; "
            f"its header is {', '.join(columns) or 'empty'}."
        )
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise DataError(f"The table {path} has several columns called {', '.join(repeated)}; give each its own name.")
    try:
        for name in modalities:
            require_modality_name(name)
    except UsageError as error:
        raise DataError(f"The header of the table {path} cannot be used: {error}") from None
    rows, lines = [row for _, row in numbered], [line for line, _ in numbered]
    if not rows:
        raise DataError(f"The table {path} has a header but no rows.")
    for number, row in zip(lines, rows, strict=True):
        # A short row gives None, a long one a None key.
        if None in row or any(value is None or not value.strip() for value in row.values()):
            raise DataError(
                f"The table {path} has an empty or surplus cell in line {number}; each row needs {', '.join(columns)}."
            )
    return rows, modalities, lines


def _is_file_column(modality: str, rows: Sequence[Row]) -> bool:
    """Whether a column holds paths: every cell has a file's suffix."""
    return all(Path(row[modality]).suffix.lower() in FILE_SUFFIXES for row in rows)


def _require_files(path: Path, rows: Sequence[Row], modalities: Sequence[str]) -> None:
    wanted = dict.fromkeys(row[m] for m in modalities for row in rows)
    missing = [name for name in wanted if not (path.parent / name).is_file()]
    if missing:
        listed = ", ".join(missing[:_LISTED]) + (
            f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        )
        raise DataError(
            f"The table {path} names {len(missing)} of {len(wanted)} files that do not exist: {listed}; "
            "paths are relative to the table."
        )


def _linked_ids(rows: Sequence[Row], modalities: Sequence[str]) -> list[str]:
    """One id for all rows that share a cell, directly or through other rows (union-find)."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        for modality in modalities:
            a, b = root(first.setdefault((modality, row[modality]), i)), root(i)
            parent[max(a, b)] = min(a, b)
    return [str(root(i)) for i in range(len(rows))]


def _splits(path: Path, rows: Sequence[Row], ids: Sequence[str], lines: Sequence[int]) -> list[str]:
    if "split" not in rows[0]:
        return [_split_by_hash(i) for i in ids]
    home: dict[str, str] = {}
    for number, row, id_ in zip(lines, rows, ids, strict=True):
        split = row["split"]
        if split not in SPLIT_NAMES:
            raise DataError(
                f"The table {path} has split {split!r} in line {number}; it is one of {', '.join(SPLIT_NAMES)}."
            )
        if home.setdefault(id_, split) != split:
            raise DataError(
                f"The table {path} has id {id_!r} in {home[id_]} and in {split} (line {number}); "
                "an id belongs to one split."
            )
    return [row["split"] for row in rows]


def _split_by_hash(id_: str) -> str:
    number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big") / 2**32
    return "train" if number < 0.8 else "validation" if number < 0.9 else "test"


def _split(table: _Table, name: str, content: Mapping[tuple[str, str], str]) -> Split:
    chosen = [i for i, split in enumerate(table.splits) if split == name]
    names = tuple(dict.fromkeys(table.ids[i] for i in chosen))
    index = {id_: position for position, id_ in enumerate(names)}
    seen = np.zeros(len(names), dtype=bool)
    items = {}
    for modality in table.modalities:
        # One item per id and distinct cell, in the order of the table: a photograph with five captions is encoded once.
        distinct = dict.fromkeys((index[table.ids[i]], table.rows[i][modality]) for i in chosen)
        cells = sorted(distinct, key=lambda pair: pair[0])
        items[modality] = Items(
            values=[table.value(modality, cell) for _, cell in cells],
            groups=np.array([group for group, _ in cells], dtype=np.int64),
            counted=np.ones(len(cells), dtype=bool),
        )
        trained = {
            content[modality, row[modality]] for row, s in zip(table.rows, table.splits, strict=True) if s == "train"
        }
        for group, cell in cells:
            seen[group] |= content[modality, cell] in trained
    return Split(name, names, items, seen)
