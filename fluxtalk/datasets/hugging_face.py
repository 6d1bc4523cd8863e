"""Data sets of the Hugging Face library `datasets`, from a folder that `save_to_disk` wrote: one row per pair.

::

    hfds:DIR?image=photo&text=caption&id=photo_id

Without a query, every column of images, sounds, texts or lists of numbers is a modality, and a column ``id`` is the id.
Splits are those of a `DatasetDict` (``train``, ``validation`` or ``val``, ``test``), in each of which rows that share
an item get one id unless a column names it; a single `Dataset` is split by the hash of its ids, as tables are. A row
lacks a modality if its cell is null or a blank text. Items are read from the Arrow files when they are asked for;
pictures and sounds stay files, as they were saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Integers
from fluxtalk.artifacts.files import hash_json
from fluxtalk.config import require_modality_name
from fluxtalk.console import progress
from fluxtalk.datasets.data_name import DataName
from fluxtalk.datasets.pairs import PairDataset
from fluxtalk.datasets.reporting import abbreviate, is_folder
from fluxtalk.datasets.splits import ItemColumn, gap_notes, make_splits, split_by_hash
from fluxtalk.datasets.tables.linked_rows import linkage_notes, linked_row_ids
from fluxtalk.errors import BackendError, DataError, UsageError, reason
from fluxtalk.preprocess.visible_text import is_visible

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""Names of splits, as data sets have them, to ours."""
_BATCH = 256


def load(name: DataName, kinds: Mapping[str, str] | None = None) -> PairDataset:
    """Read a data set in one pass over its rows, which also hashes its items.

    Args:
        kinds: see `fluxtalk.datasets.load_dataset`.

    Raises:
        BackendError: `datasets` is missing.
        UsageError: a key of the query is not a valid modality name.
        DataError: the folder is missing or cannot be read, a split or column is unknown, a modality's column is of
            another type, or an id is in two splits.
    """
    tables = _open(name)
    columns = _columns(name, next(iter(tables.values())))
    modalities = [key for key in columns if key != "id"]
    tables = {split: _undecoded(table, columns) for split, table in tables.items()}
    digests: dict[str, list[str | None]] = {m: [] for m in modalities}
    row_ids: list[str] = []
    split_of: dict[str, str] = {}
    notes: list[str] = []
    for split, table in tables.items():
        cells: dict[str, list[str | None]] = {m: [] for m in modalities}
        named: list[str] = []
        for row in _rows(table, split):
            for modality in modalities:
                cells[modality].append(_digest(row[columns[modality]]))
            if "id" in columns:
                named.append(str(row[columns["id"]]))
        if "id" not in columns:
            linking = {m: found for m, found in cells.items() if kinds is None or m in kinds}
            prefix = f"{split}/" if split else ""
            named = [f"{prefix}{id_}" for id_ in linked_row_ids(linking, len(table))]
            texts = {m: list(table[columns[m]]) for m in linking if _is_text(table.features[columns[m]])}
            notes += linkage_notes(texts, len(table))
        for id_ in named:
            home = split_of.setdefault(id_, split or split_by_hash(id_))
            if split and home != split:
                raise DataError(f"The id {id_!r} of {name.text!r} is in {home} and in {split}; an id has one split.")
        row_ids += named
        for modality, found in cells.items():
            digests[modality] += found
    ids = {id_: position for position, id_ in enumerate(split_of)}
    groups = [ids[id_] for id_ in row_ids]
    made = {m: _column(list(tables.values()), columns[m], groups, digests[m]) for m in modalities}
    key = [[split_of[id_], id_, *cells] for id_, *cells in zip(row_ids, *digests.values(), strict=True)]
    return PairDataset(
        name=name.text,
        modalities=tuple(modalities),
        splits=make_splits(tuple(ids), tuple(split_of.values()), made),
        content_hash=hash_json({"hugging_face": key, "modalities": modalities}),
        notes=(*gap_notes(repr(name.text), tuple(ids), tuple(ids), made), *notes),
    )


class ColumnValues(Sequence[Any]):
    """Cells of a column: text as ``str``, a file as bytes or path, numbers as a float32 array. Can be pickled.

    Args:
        tables: data sets, one after the other.
        column: name of the column.
        rows: (items,) rows over all of them.
    """

    def __init__(self, tables: Sequence[Any], column: str, rows: Integers) -> None:
        self._tables = tables
        self._column = column
        self._rows = rows
        self._ends = np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The value of this item, or another `ColumnValues` for a slice."""
        if isinstance(index, slice):
            return ColumnValues(self._tables, self._column, self._rows[index])
        row = int(self._rows[index])
        table = int(np.searchsorted(self._ends, row, side="right"))
        before = int(self._ends[table - 1]) if table else 0
        return _value(self._tables[table][row - before][self._column])


def _open(name: DataName) -> dict[str, Any]:
    """Open the data sets by our name of their split; a single one has the name ``""``."""
    try:
        import datasets
    except ImportError:
        raise BackendError(f"{name.text!r} needs datasets to be read: pip install 'fluxtalk[datasets]'.") from None
    if not is_folder(Path(name.path)):
        raise DataError(f"There is no folder {name.path}; --data hfds:DIR names one that Dataset.save_to_disk wrote.")
    try:
        opened = datasets.load_from_disk(name.path)
    except Exception as error:  # of many libraries
        raise DataError(f"{name.path} cannot be read as a data set of Hugging Face ({reason(error)}).") from None
    if not isinstance(opened, dict):
        return {"": opened}
    unknown = [split for split in opened if split not in _SPLITS]
    if unknown or len({_SPLITS[split] for split in opened}) < len(opened):
        raise DataError(
            f"{name.path} has the splits {abbreviate(list(map(str, opened)))}; rename them to train, validation and "
            "test, and leave out others, before save_to_disk."
        )
    return {_SPLITS[split]: table for split, table in opened.items()}


def _columns(name: DataName, table: Any) -> dict[str, str]:
    """Modalities, and ``id``, each to its column."""
    features = table.features
    usable = [column for column, feature in features.items() if _is_usable(feature)]
    if name.query is None:
        found = {column: column for column in usable if column != "id"} | ({"id": "id"} if "id" in features else {})
    else:
        found = dict(name.query)
    if "split" in found:
        raise UsageError(f"Splits of {name.text!r} are those that it was saved with; leave split out of --data.")
    listed = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    for key, column in found.items():
        require_modality_name(key)
        if column not in features:
            raise DataError(f"{name.path} has no column {column}; it has {listed}.")
        if key != "id" and column not in usable:
            raise DataError(f"The column {column} of {name.path} is not of images, sounds, texts or numbers: {listed}.")
    if len(found.keys() - {"id"}) < 2:
        raise DataError(
            f"{name.path} needs two columns of modalities; name them, as in ?image=COLUMN&text=COLUMN, of {listed}."
        )
    return found


def _is_usable(feature: Any) -> bool:
    kind = type(feature).__name__
    if kind in ("Image", "Audio"):
        return True
    if kind == "Value":
        return _is_text(feature)
    inner = getattr(feature, "feature", None)
    while inner is not None and not hasattr(inner, "dtype"):
        inner = getattr(inner, "feature", None)
    return "float" in str(getattr(inner if inner is not None else feature, "dtype", ""))


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _undecoded(table: Any, columns: Mapping[str, str]) -> Any:
    """Let pictures and sounds be files: our preprocessing decodes them."""
    import datasets

    table = table.select_columns(list(dict.fromkeys(columns.values())))
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            table = table.cast_column(column, type(feature)(decode=False))
    return table


def _rows(table: Any, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield every row, read in batches."""
    for start in progress(range(0, len(table), _BATCH), f"reading {split or 'rows'}", unit="batch"):
        batch = table[start : start + _BATCH]
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _value(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
    return cell if isinstance(cell, str) else np.asarray(cell, dtype=np.float32)


def _digest(cell: Any) -> str | None:
    """Hash a cell's content; None if there is nothing."""
    if cell is None or (isinstance(cell, str) and not is_visible(cell)):
        return None
    if isinstance(cell, Mapping) and cell["bytes"] is None and not cell["path"]:
        return None
    value = _value(cell)
    if isinstance(value, Path):
        data = value.read_bytes() if value.is_file() else f"missing: {value.name}".encode()
    else:
        data = value.encode() if isinstance(value, str) else bytes(value)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _column(tables: Sequence[Any], column: str, groups: Sequence[int], digests: Sequence[str | None]) -> ItemColumn:
    # One item per id and distinct content, so that a photograph with five captions is encoded once.
    first: dict[tuple[int, str], int] = {}
    for row, (group, digest) in enumerate(zip(groups, digests, strict=True)):
        if digest is not None:
            first.setdefault((group, digest), row)
    rows = np.array(list(first.values()), dtype=np.int64)
    return ItemColumn(
        np.array([group for group, _ in first], dtype=np.int64),
        np.array([int(digest[:16], 16) for _, digest in first], dtype=np.uint64),
        lambda taken: ColumnValues(tables, column, rows[taken]),
    )
