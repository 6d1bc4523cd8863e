"""Features of items that are made of several encoded parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.model.encoders import Features
from fluxtalk.train.features.sources import FeatureSource


class JoinedFeatures:
    """Features of items whose parts were encoded one by one: those of the parts, one after the other.

    Args:
        parts: features of every part.
        members: rows of ``parts`` that make up each item.
    """

    def __init__(self, parts: FeatureSource, members: Sequence[Sequence[int]]) -> None:
        self.dim = parts.dim
        self._parts = parts
        self._members = [np.asarray(rows, dtype=np.int64) for rows in members]

    def __len__(self) -> int:
        return len(self._members)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `fluxtalk.train.features.sources.FeatureSource.batch`."""
        members = [self._members[row] if row >= 0 else np.empty(0, np.int64) for row in rows]
        flat = np.concatenate([*members, np.empty(0, np.int64)])
        if not len(flat):
            return Features(torch.zeros(len(rows), 1, self.dim), torch.zeros(len(rows), 1, dtype=torch.bool))
        features, mask = self._parts.batch(flat)
        item_of_part = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(each) for each in members]))
        lengths = torch.zeros(len(rows), dtype=torch.long).index_add_(0, item_of_part, mask.sum(dim=1))
        filled = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        joined = features.new_zeros(*filled.shape, self.dim)
        joined[filled] = features[mask]
        return Features(joined, filled)


class InMemoryFeatures:
    """Features of another source, read once and kept in half precision."""

    def __init__(self, source: FeatureSource, at_once: int = 512) -> None:
        self.dim = source.dim
        values, lengths = [], []
        for start in range(0, len(source), at_once):
            features, mask = source.batch(np.arange(start, min(len(source), start + at_once)))
            values.append(features[mask].half())
            lengths.append(mask.sum(dim=1))
        self._values = torch.cat(values)
        self._lengths = torch.cat(lengths)
        self._starts = self._lengths.cumsum(0) - self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `fluxtalk.train.features.sources.FeatureSource.batch`."""
        chosen = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        lengths = torch.where(chosen >= 0, self._lengths[chosen], 0)
        filled = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        where = self._starts[chosen][:, None] + torch.arange(filled.shape[1])
        features = torch.zeros(*filled.shape, self.dim)
        features[filled] = self._values[where[filled]].float()
        return Features(features, filled)
