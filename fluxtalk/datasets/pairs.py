"""The data set that every stage reads: splits of items with ids, by modality.

Items that belong together, such as a photograph and its captions, carry the same *id*. Items of one
modality with the same id are alternatives of each other: several positives, never negatives. An id may lack
modalities, but never all but one: it would be in no pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluxtalk.arrays import Booleans, Integers
from fluxtalk.datasets.bad_items import BadItem
from fluxtalk.datasets.data_name import HUGGING_FACE
from fluxtalk.errors import DataError

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Items:
    """The raw inputs of one modality in one split, each of which is encoded once."""

    values: Sequence[Any]
    """Raw inputs as the modality's preprocessing takes them: text; an image's path, bytes or array; features'
    path or array. It may read them as they are asked for; it can be pickled and read by several threads."""
    groups: Integers
    """(items,): index into `Split.ids` of each value's id, ascending; an id may have no item."""
    counted: Booleans
    """(items,): whether the value takes part in retrieval scores."""
    labels: Mapping[str, Integers] = field(default_factory=dict)
    """Known factors of the items, for probes: name to (items,) class numbers."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Split:
    """One of train, validation and test.

    Raises:
        DataError: a modality has no item although there are ids, or an id has items in fewer than two modalities.
    """

    name: str
    ids: tuple[str, ...]
    items: Mapping[str, Items]
    """Modality to its items; if there are several modalities, every id has items in at least two."""
    seen: Booleans
    """(ids,): whether a counted item is identical, in raw form, to an item of the training split."""

    def __post_init__(self) -> None:
        if not self.ids:
            return
        for modality, items in self.items.items():
            if not len(items):
                raise DataError(
                    f"The {self.name} split has {len(self.ids)} ids and no {modality} item; "
                    f"give it some, or leave {modality} out of the data set."
                )
        alone = np.flatnonzero(_modalities_per_id(len(self.ids), self.items) < min(2, len(self.items)))
        if len(alone):
            raise DataError(
                f"{len(alone)} of {len(self.ids)} ids in the {self.name} split have items in fewer than two "
                f"modalities, for example {self.ids[alone[0]]!r}, so they are in no pair; "
                "complete them or leave them out."
            )


def _modalities_per_id(ids: int, items: Mapping[str, Items]) -> Integers:
    """Number of modalities in which each id has an item, (ids,)."""
    present = [np.bincount(one.groups, minlength=ids) > 0 for one in items.values()]
    return np.sum(present, axis=0, dtype=np.int64) if present else np.zeros(ids, dtype=np.int64)


@dataclass(frozen=True)
class PairDataset:
    """Paired raw data that `--data` names, read and split."""

    name: str
    """Name by which `--data` reads it again."""
    modalities: tuple[str, ...]
    splits: Mapping[str, Split]
    content_hash: str
    """SHA-256 over the raw content and the split; it keys the feature cache."""
    notes: tuple[str, ...] = ()
    """Sentences about what looks wrong but may be meant, for the caller to print."""
    bad_rows: tuple[BadItem, ...] = ()
    """Rows of a table that could not be read, and that its reader was told to pass over."""
    left_out: LeftOut | None = None
    """What was left out of it; None of a data set as it was read."""

    @property
    def whole(self) -> PairDataset:
        """The data set with the items that were left out: the one that is encoded, whatever is done about them."""
        return self if self.left_out is None else self.left_out.whole

    @property
    def public_name(self) -> str:
        """The name without its folders, for files that are shared."""
        path, mark, columns = self.name.partition("?")
        prefix = HUGGING_FACE if path.startswith(HUGGING_FACE) else ""
        return prefix + path.removeprefix(prefix).rstrip("/").rpartition("/")[2] + mark + columns

    def told(self) -> dict[str, Any]:
        """Describe what was left out, as an entry of every result; empty if nothing was."""
        return {} if self.left_out is None else {"left_out": self.left_out.facts()}

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            DataError: the data set has no such split, or it is empty.
        """
        split = self.splits.get(name)
        if split is None or not split.ids:
            raise DataError(
                f"{self.name} has no {name} items; it has {', '.join(n for n, s in self.splits.items() if s.ids)}."
            )
        return split


@dataclass(frozen=True)
class LeftOut:
    """Items that were left out of a data set because they cannot be used."""

    whole: PairDataset
    """The data set with them."""
    bad: tuple[BadItem, ...]
    rows: Mapping[str, Mapping[str, Integers]]
    """Split to modality to the rows of ``whole`` that were kept, (items,)."""
    ids: int
    """Ids that went with them, because they had items in fewer than two modalities left."""

    def facts(self) -> dict[str, Any]:
        """Describe it for a result, in plain types: bad items by modality, and ids that went with them."""
        return {"items": dict(Counter(item.modality for item in self.bad)), "ids": self.ids}

    def sentence(self) -> str:
        """Describe it for people."""
        items = ", ".join(f"{count} of {modality}" for modality, count in self.facts()["items"].items())
        return f"{len(self.bad)} items that cannot be used are left out ({items}), and {self.ids} ids with them"
