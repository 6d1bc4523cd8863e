"""A table of pairs, as CSV, JSON Lines or Parquet: one row per pair, one column per modality.

::

    image,text,id,split
    photos/1.jpg,a dog on a beach,dog-1,train
    photos/1.jpg,a brown dog runs,dog-1,train
    photos/2.jpg,two cups of tea,tea-2,test

Columns other than ``id`` and ``split`` are modalities, unless the name of the data set says which column is what:
``pairs.parquet?image=photo_path&text=caption&id=photo_id&split=part``. A column whose modality is preprocessed as text
holds text, and one that is preprocessed as anything else holds paths relative to the table; if preprocessing is not
known, a column holds paths if all of its cells end like a file (image, sound or ``.npy``). A row lacks a modality if
its cell is empty, null or shows nothing; an id that is left with a single modality is in no pair, and is passed over
with a note. Without ``id``, rows that share a cell of a modality that is used get one id. Without
``split``, ids are split by hash: 80 % train, 10 % validation, 10 % test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Integers
from fluxtalk.artifacts.files import hash_file, hash_json
from fluxtalk.config import require_modality_name
from fluxtalk.datasets.bad_items import ROW, BadItem
from fluxtalk.datasets.data_name import DataName
from fluxtalk.datasets.outside import outside_notes
from fluxtalk.datasets.pairs import SPLIT_NAMES, PairDataset
from fluxtalk.datasets.reporting import abbreviate, exists, is_file, require_files, with_progress
from fluxtalk.datasets.splits import ItemColumn, gap_notes, make_splits, split_by_hash
from fluxtalk.datasets.tables.linked_rows import Cells, linkage_notes, linked_row_ids
from fluxtalk.datasets.tables.readers import WholeTable, open_table, read_whole
from fluxtalk.errors import DataError, UsageError
from fluxtalk.preprocess import FILE_SUFFIXES
from fluxtalk.preprocess.visible_text import is_visible

_FILE_SUFFIXES = frozenset(suffix for suffixes in FILE_SUFFIXES.values() for suffix in suffixes)


@dataclass(frozen=True)
class _Table:
    """Valid rows, whose cells are text or absent."""

    path: Path
    cells: Mapping[str, Cells]
    """Modality to one cell per row."""
    ids: Sequence[str] | None
    splits: Sequence[str] | None
    positions: Sequence[str]
    """Position of each row in the file: ``line 3``."""


def load(name: DataName, kinds: Mapping[str, str] | None = None, tolerated: float = 0.0) -> PairDataset:
    """Read a table of pairs.

    Args:
        kinds, tolerated: see `fluxtalk.datasets.load_dataset`.

    Raises:
        BackendError: the library that reads the format is missing.
        DataError: the file is missing, lacks a column, more than the tolerated share of its rows are malformed or of
            its files missing, an id is in two splits, or no id has items in two modalities. Rows and files are all
            counted, the first 20 listed.
    """
    table, bad_rows = _read(name, tolerated)
    files = frozenset(m for m, cells in table.cells.items() if _holds_files(cells, (kinds or {}).get(m)))
    _require_cells_files(table, files, tolerated)
    linking = {m: cells for m, cells in table.cells.items() if kinds is None or m in kinds}
    row_ids = table.ids if table.ids is not None else linked_row_ids(linking, len(table.positions))
    split_of = _splits_by_id(table, row_ids)
    content = _content(table, files)
    rows = zip(*([cell and content[m][cell] for cell in cells] for m, cells in table.cells.items()), strict=True)
    key = [[split_of[id_], id_, *row] for id_, row in zip(row_ids, rows, strict=True)]
    index = {id_: position for position, id_ in enumerate(split_of)}
    groups = [index[id_] for id_ in row_ids]
    columns = {m: _column(table, m, m in files, groups, content[m]) for m in table.cells}
    return PairDataset(
        name=name.text,
        modalities=tuple(table.cells),
        splits=make_splits(tuple(split_of), tuple(split_of.values()), columns),
        content_hash=hash_json({"table": key, "modalities": tuple(table.cells)}),
        notes=(
            *gap_notes(name.path, _names(table, row_ids), tuple(split_of), columns),
            *(linkage_notes(linking, len(table.positions)) if table.ids is None else ()),
            *outside_notes(table.path, _file_paths(table, files)),
        ),
        bad_rows=bad_rows,
    )


def _read(name: DataName, tolerated: float) -> tuple[_Table, tuple[BadItem, ...]]:
    """Read the valid rows, and the others as bad ones if they are no more than the tolerated share."""
    path = Path(name.path)
    if not exists(path):
        raise DataError(f"The table {path.absolute()} does not exist; check --data.")
    raw = read_whole(open_table(path), None if name.query is None else set(name.query.values()))
    if not raw.numbers:
        # Without a row there may be no column, so problems of rows are reported first.
        _require_rows(path, raw, raw.problems, "each is an object of columns", 0.0)
        raise DataError(f"The table {path} has no rows.")
    sources = _sources(name, raw)
    cells = {key: raw.cells[column] for key, column in sources.items()}
    modalities = [key for key in sources if key not in ("id", "split")]
    problems = [*raw.problems, *_row_problems(raw.numbers, cells, modalities)]
    hint = f"each has text or nothing in {', '.join(modalities)}"
    hint += "".join(f", and its {key} in {sources[key]}" for key in ("id", "split") if key in sources)
    _require_rows(path, raw, problems, hint, tolerated)
    wrong = {number for number, _ in problems}
    valid = [i for i, number in enumerate(raw.numbers) if number not in wrong]
    table = _Table(
        path,
        {m: [None if _is_empty(cells[m][i]) else cells[m][i] for i in valid] for m in modalities},
        [str(cells["id"][i]) for i in valid] if "id" in cells else None,
        [cells["split"][i] for i in valid] if "split" in cells else None,
        [f"{raw.row_word} {raw.numbers[i]}" for i in valid],
    )
    places = [(f"{raw.row_word} {number} of {path}", number, what) for number, what in sorted(problems)]
    return table, tuple(BadItem(place, what, ROW, row=number) for place, number, what in places)


def _sources(name: DataName, raw: WholeTable) -> dict[str, str]:
    """Modalities, ``id`` and ``split``, each to its column."""
    columns = raw.columns
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(
            f"The table {name.path} has several columns called {', '.join(repeated)}; give each its own name."
        )
    sources = dict(name.query) if name.query is not None else {column: column for column in columns}
    missing = sorted({column for column in sources.values() if column not in columns})
    if missing:
        raise DataError(
            f"The table {name.path} has no column {', '.join(missing)}, which --data names; "
            f"it has {', '.join(columns) or 'none'}."
        )
    if len(sources.keys() - {"id", "split"}) < 2:
        raise DataError(
            f"The table {name.path} needs at least two modality columns besides id and split; "
            f"it has {', '.join(sources) or 'none'}."
        )
    try:
        for key in sources:
            require_modality_name(key)
    except UsageError as error:
        raise DataError(
            f"The columns of the table {name.path} cannot all be modalities; say in --data which are, "
            f"as in {Path(name.path).name}?image=COLUMN&text=COLUMN. {error}"
        ) from None
    return sources


def _require_rows(
    path: Path, raw: WholeTable, problems: Sequence[tuple[int, str]], hint: str, tolerated: float
) -> None:
    total = len(raw.numbers) + len(raw.problems)
    if len(problems) > tolerated * total or (problems and len(problems) == total):
        shown = abbreviate([f"{raw.row_word} {number} ({what})" for number, what in sorted(problems)])
        raise DataError(f"The table {path} has {len(problems)} malformed of {total} rows: {shown}; {hint}.")


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not is_visible(cell))


def _row_problems(
    numbers: Sequence[int], cells: Mapping[str, Sequence[Any]], modalities: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """Number and problem of each malformed row."""
    for i, number in enumerate(numbers):
        row = {key: column[i] for key, column in cells.items()}
        wrong = [_cell_problem(key, cell) for key, cell in row.items()]
        if all(_is_empty(row[modality]) for modality in modalities):
            wrong.append("no modality")
        if any(wrong):
            yield number, "; ".join(filter(None, wrong))


def _cell_problem(key: str, cell: Any) -> str:
    """The problem of a cell; empty if it is valid."""
    if _is_empty(cell):
        return f"no {key}" if key in ("id", "split") else ""
    if key == "id" and isinstance(cell, int) and not isinstance(cell, bool):
        return ""
    if not isinstance(cell, str):
        return f"{key} is {type(cell).__name__} and not text"
    if key == "split" and cell not in SPLIT_NAMES:
        return f"split {cell!r} is not one of {', '.join(SPLIT_NAMES)}"
    return ""


def _holds_files(cells: Cells, kind: str | None) -> bool:
    """True for a column of paths: by its preprocessing; if that is None, if it has cells and each ends like a file."""
    if kind is not None:
        return kind != "text"
    present = {cell for cell in cells if cell is not None}
    return bool(present) and all(Path(cell).suffix.lower() in _FILE_SUFFIXES for cell in present)


def _require_cells_files(table: _Table, files: frozenset[str], tolerated: float) -> None:
    wanted = list(dict.fromkeys(cell for m in sorted(files) for cell in table.cells[m] if cell is not None))
    paths = [table.path.parent / cell for cell in wanted]
    require_files(f"The table {table.path}", paths, wanted, "paths are relative to the table", tolerated)


def _file_paths(table: _Table, files: frozenset[str]) -> set[Path]:
    return {table.path.parent / cell for m in files for cell in table.cells[m] if cell is not None}


def _splits_by_id(table: _Table, row_ids: Sequence[str]) -> dict[str, str]:
    """Split of every id, in the order in which the ids first occur."""
    split_of: dict[str, str] = {}
    if table.splits is None:
        return {id_: split_by_hash(id_) for id_ in row_ids}
    strays = []
    for id_, split, position in zip(row_ids, table.splits, table.positions, strict=True):
        home = split_of.setdefault(id_, split)
        if home != split:
            what = f"id {id_!r}" if table.ids is not None else "linked to earlier rows"
            strays.append(f"{position} ({what}, in {home} and in {split})")
    if strays:
        raise DataError(
            f"The table {table.path} has {len(strays)} rows whose id is in another split already: "
            f"{abbreviate(strays)}; an id belongs to one split."
        )
    return split_of


def _names(table: _Table, row_ids: Sequence[str]) -> list[str]:
    """Name of every id as its user knows it, in the order in which the ids first occur: its first row's place."""
    first: dict[str, str] = {}
    for id_, position in zip(row_ids, table.positions, strict=True):
        first.setdefault(id_, position)
    return [position if table.ids is None else f"{id_!r} ({position})" for id_, position in first.items()]


def _content(table: _Table, files: frozenset[str]) -> dict[str, dict[str, str]]:
    """Modality to cell to content, of files the hash: one picture under two names is one picture."""
    distinct = {m: dict.fromkeys(cell for cell in cells if cell is not None) for m, cells in table.cells.items()}
    paths = list(dict.fromkeys(table.path.parent / cell for m in files for cell in distinct[m]))
    present = [path for path in paths if is_file(path)]
    total = sum(path.stat().st_size for path in present)
    hashes = {path: hash_file(path) for path in with_progress(present, f"hashing {table.path.name}", "file", total)}
    hashes |= {path: f"missing: {path.name}" for path in paths if path not in hashes}
    return {
        m: {cell: hashes[table.path.parent / cell] if m in files else cell for cell in cells}
        for m, cells in distinct.items()
    }


def _column(
    table: _Table, modality: str, is_file: bool, groups: Sequence[int], content: Mapping[str, str]
) -> ItemColumn:
    # One item per id and distinct cell, so that a photograph with five captions is encoded once.
    pairs = zip(groups, table.cells[modality], strict=True)
    distinct = list(dict.fromkeys((group, cell) for group, cell in pairs if cell is not None))
    values = [table.path.parent / cell if is_file else cell for _, cell in distinct]
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(content[cell], len(numbers)) for _, cell in distinct]

    def take(rows: Integers) -> list[str | Path]:
        return [values[row] for row in rows]

    return ItemColumn(
        np.array([group for group, _ in distinct], dtype=np.int64), np.array(codes, dtype=np.uint64), take
    )
