"""What a data set is to every stage: splits of identified items per modality.

Items that belong together, such as a photograph and its captions, carry the same *id*. Items of one
modality with the same id are alternatives of each other: several positives, never negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import DataError

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Items:
    """The raw inputs of one modality in one split, each of which is encoded once."""

    values: Sequence[Any]
    """Raw inputs as the modality's preprocessing takes them: text, image path or array, features path."""
    groups: NDArray[np.int64]
    """(items,): the index into `Split.ids` that each value belongs to, ascending."""
    counted: NDArray[np.bool_]
    """(items,): whether the value takes part in retrieval scores."""
    labels: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Known factors of the items, for probes: factor name to (items,) class numbers."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Split:
    """One of train, validation and test."""

    name: str
    ids: tuple[str, ...]
    items: Mapping[str, Items]
    """Modality to its items; every id has at least one item in every modality."""
    seen: NDArray[np.bool_]
    """(ids,): whether a counted item is identical, in raw form, to an item of the training split."""

    def __post_init__(self) -> None:
        for modality, items in self.items.items():
            missing = len(self.ids) - len(np.unique(items.groups))
            if missing:
                raise DataError(
                    f"{missing} of {len(self.ids)} ids in the {self.name} split have no {modality}; "
                    "give every id at least one item in every modality."
                )


@dataclass(frozen=True)
class PairDataset:
    """Paired raw data: what `--data` names, read and split."""

    name: str
    """How `--data` names it again."""
    modalities: tuple[str, ...]
    splits: Mapping[str, Split]
    content_hash: str
    """SHA-256 over the raw content and the split; it keys the feature cache."""

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
