"""Leaving bad items out of a data set: the same data set for every stage that reads it after they were found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fluxtalk.arrays import Integers
from fluxtalk.artifacts.files import hash_json
from fluxtalk.datasets.bad_items import BadItem
from fluxtalk.datasets.pairs import Items, LeftOut, PairDataset, Split


def leave_out(dataset: PairDataset, bad: Sequence[BadItem]) -> PairDataset:
    """Leave bad items out of every split, and ids that are then in no pair.

    Its content hash says which; without bad items, the data set is returned as it is.

    Args:
        dataset: a data set as it was read.

    Raises:
        DataError: a split keeps ids, and no item of a modality.
    """
    if not bad:
        return dataset
    gone: dict[tuple[str, str], list[int]] = {}
    for item in bad:
        gone.setdefault((item.split, item.modality), []).append(item.row)
    parts = {name: _leave_out(split, gone) for name, split in dataset.splits.items()}
    key = sorted([item.split, item.modality, item.row] for item in bad)
    return dataclasses.replace(
        dataset,
        splits={name: split for name, (split, _) in parts.items()},
        content_hash=hash_json({"data": dataset.content_hash, "left_out": key}),
        left_out=LeftOut(
            dataset,
            tuple(bad),
            {name: rows for name, (_, rows) in parts.items()},
            sum(len(dataset.splits[name].ids) - len(split.ids) for name, (split, _) in parts.items()),
        ),
    )


class _Rows(Sequence[Any]):
    """Rows of other values, each read when it is asked for."""

    def __init__(self, values: Sequence[Any], rows: Integers) -> None:
        self._values = values
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The value of this row, or more of such rows for a slice."""
        if isinstance(index, slice):
            return _Rows(self._values, self._rows[index])
        return self._values[int(self._rows[index])]


def _leave_out(split: Split, gone: Mapping[tuple[str, str], Sequence[int]]) -> tuple[Split, dict[str, Integers]]:
    usable = {}
    for modality, items in split.items.items():
        usable[modality] = np.ones(len(items), dtype=bool)
        usable[modality][gone.get((split.name, modality), [])] = False
    present = np.zeros(len(split.ids), dtype=np.int64)
    for modality, items in split.items.items():
        present += np.bincount(items.groups[usable[modality]], minlength=len(split.ids)) > 0
    paired = present >= min(2, len(split.items))
    position = np.cumsum(paired) - 1
    rows, kept = {}, {}
    for modality, items in split.items.items():
        rows[modality] = chosen = np.flatnonzero(usable[modality] & paired[items.groups])
        kept[modality] = Items(
            values=_Rows(items.values, chosen),
            groups=position[items.groups[chosen]],
            counted=items.counted[chosen],
            labels={name: numbers[chosen] for name, numbers in items.labels.items()},
        )
    ids = tuple(id_ for id_, is_paired in zip(split.ids, paired.tolist(), strict=True) if is_paired)
    return Split(split.name, ids, kept, split.seen[paired]), rows
