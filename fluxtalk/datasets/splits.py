"""Splits made of all items of a data set, the same way for every source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Booleans, Integers
from fluxtalk.datasets.pairs import SPLIT_NAMES, Items, Split
from fluxtalk.datasets.reporting import abbreviate
from fluxtalk.errors import DataError

_TRAIN_SHARE, _VALIDATION_SHARE = 0.8, 0.1


@dataclass(frozen=True)
class ItemColumn:
    """All items of one modality, before they are split."""

    groups: Integers
    """(items,): index of each item's id among the data set's ids, in any order."""
    fingerprints: NDArray[np.uint64]
    """(items,): hash of the raw content."""
    take: Callable[[Integers], Sequence[Any]]
    """Rows to the values of these items, in this order."""


def split_by_hash(id_: str) -> str:
    """The split of an id, whatever else the data set holds: 80 % train, 10 % validation, 10 % test."""
    number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big") / 2**32
    if number < _TRAIN_SHARE:
        return "train"
    return "validation" if number < _TRAIN_SHARE + _VALIDATION_SHARE else "test"


def make_splits(ids: Sequence[str], split_names: Sequence[str], columns: Mapping[str, ItemColumn]) -> dict[str, Split]:
    """Make every split, of the ids that are in a pair: with items in two modalities or more.

    Args:
        ids: all different, in the order in which the splits list them.
        split_names: split of each id.
        columns: modality to its items, in the order in which the items of one id are listed.

    Raises:
        DataError: see `Split`.
    """
    paired = _paired(ids, columns)
    numbers = np.where(paired, [SPLIT_NAMES.index(name) for name in split_names], -1)
    return {
        name: _split(name, ids, numbers == number, numbers == 0, columns) for number, name in enumerate(SPLIT_NAMES)
    }


def gap_notes(
    data: str, names: Sequence[str], ids: Sequence[str], columns: Mapping[str, ItemColumn]
) -> tuple[str, ...]:
    """Make a sentence about the ids that `make_splits` passes over; none if there is no gap.

    Args:
        data: name of the data set.
        names: each id as people know it.

    Raises:
        DataError: there is nothing but gaps.
    """
    alone = [names[i] for i in np.flatnonzero(~_paired(ids, columns)).tolist()]
    if not alone:
        return ()
    if len(alone) == len(ids):
        raise DataError(
            f"All of the {len(ids)} ids of {data} have items in fewer than two modalities: {abbreviate(alone)}; "
            "items that belong together carry the same id."
        )
    return (
        f"{len(alone)} of {len(ids)} ids have items in fewer than two modalities, are in no pair and therefore "
        f"not used: {abbreviate(alone)}",
    )


def _paired(ids: Sequence[str], columns: Mapping[str, ItemColumn]) -> Booleans:
    present = [np.bincount(column.groups, minlength=len(ids)) > 0 for column in columns.values()]
    paired: Booleans = np.greater_equal(np.sum(present, axis=0, dtype=np.int64), min(2, len(present)))
    return paired


def _split(
    name: str,
    ids: Sequence[str],
    inside: Booleans,
    trained: Booleans,
    columns: Mapping[str, ItemColumn],
) -> Split:
    members = np.flatnonzero(inside)
    position = np.cumsum(inside) - 1
    seen = np.zeros(len(members), dtype=bool)
    items = {}
    for modality, column in columns.items():
        rows = np.flatnonzero(inside[column.groups])
        rows = rows[np.argsort(column.groups[rows], kind="stable")]
        groups = position[column.groups[rows]]
        known = np.isin(column.fingerprints[rows], column.fingerprints[trained[column.groups]])
        seen[groups[known]] = True
        items[modality] = Items(values=column.take(rows), groups=groups, counted=np.ones(len(rows), dtype=bool))
    return Split(name, tuple(ids[i] for i in members.tolist()), items, seen)
