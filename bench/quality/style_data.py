"""Data of the probe of drawing style: pairs to train heads on, and held-out pictures whose style is known.

A table of `bench.icons`, in which a thing has pictures in several styles, and cached features of its training split.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.arrays import Integers
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import DataError
from fluxtalk.model.encoders import Features
from fluxtalk.train.features.sources import FeatureSource

MODALITY = "image"
HELD_OUT = 4
"""One of so many things is held out."""
PARTS = 7
"""Averages of a picture's features that heads read, the rows of its grid; a text's is one. With principal components
of them, a head trains in a minute of one core."""
BATCH = 512
"""Items that are read at once."""
_FITTED = 256
"""Pictures that principal components are fitted to."""


class ReducedFeatures:
    """A few averages of each item's features, or principal components of those, in memory. A `FeatureSource`.

    Args:
        source: the features.
        rows: (items,) of the source, in the order in which they are numbered here.
        parts: number of equal runs of features to average; the number of features is a multiple of it, or it is 1.
        mean: (E,), which is subtracted.
        components: (E, reduced); None keeps the averages as they are.
    """

    def __init__(
        self,
        source: FeatureSource,
        rows: Integers,
        parts: int,
        mean: torch.Tensor | None = None,
        components: torch.Tensor | None = None,
    ) -> None:
        batches = (_averages(source, rows[i : i + BATCH], parts) for i in range(0, len(rows), BATCH))
        if mean is None or components is None:
            self._values = torch.cat(list(batches))
        else:
            self._values = torch.cat([(batch - mean) @ components for batch in batches])
        self.dim = self._values.shape[-1]

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: Integers) -> Features:
        """Return the features of some rows and their mask; row -1 has none."""
        known = torch.from_numpy(rows >= 0)
        return Features(self._values[rows], known[:, None].expand(-1, self._values.shape[1]))


class SomeRows:
    """Some rows of a source, numbered anew. A `FeatureSource`."""

    def __init__(self, source: FeatureSource, rows: Integers) -> None:
        self.dim, self._source, self._rows = source.dim, source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Integers) -> Features:
        """Return the features of some rows and their mask; row -1 has none."""
        return self._source.batch(np.where(rows < 0, -1, self._rows[rows]))


@dataclass(frozen=True)
class StyledPictures:
    """Pictures whose style is known."""

    features: FeatureSource
    """As they are cached."""
    things: Integers
    """(pictures,): class number of what a picture shows."""
    styles: NDArray[np.str_]
    """(pictures,): style of each picture."""


@dataclass(frozen=True)
class StyleData:
    """Pairs to train heads on, and held-out pictures to measure."""

    split: Split
    """Pairs of the things to train on, renumbered."""
    sources: Mapping[str, FeatureSource]
    """Features of those pairs."""
    pictures: FeatureSource
    """Features of held-out pictures, as heads read them."""
    held_out: StyledPictures
    """The same pictures, as they are cached."""
    names: Mapping[str, tuple[FeatureSource, Integers]]
    """Modality but pictures to the held-out things' items in it, as heads read them, and their class numbers."""
    seen: StyledPictures
    """The pictures to train on."""


def style_data(split: Split, sources: Mapping[str, FeatureSource], styles: NDArray[np.str_], width: int) -> StyleData:
    """Divide the things, and reduce the pictures' features to principal components of the training pictures.

    Args:
        styles: (pictures,): style of every picture that has features, which may be the first of the split alone.
        width: numbers that a feature vector is reduced to, so that heads train in minutes.
    """
    groups = {m: items.groups for m, items in split.items.items()}
    groups[MODALITY] = groups[MODALITY][: len(styles)]
    whole = int(groups[MODALITY].max())
    train_ids = np.array([i for i in range(whole) if i % HELD_OUT])
    rows = {m: np.flatnonzero(np.isin(g, train_ids)) for m, g in groups.items()}
    held_out = np.flatnonzero((groups[MODALITY] < whole) & ~np.isin(groups[MODALITY], train_ids))
    items = {
        m: Items(list(range(len(r))), np.searchsorted(train_ids, groups[m][r]), np.ones(len(r), dtype=bool))
        for m, r in rows.items()
    }
    ids = tuple(split.ids[i] for i in train_ids)
    source = sources[MODALITY]
    mean, components = _principal_components(source, rows[MODALITY], width)
    texts = {m: ReducedFeatures(s, rows[m], 1) for m, s in sources.items() if m != MODALITY}
    seen, unseen = (
        StyledPictures(SomeRows(source, r), groups[MODALITY][r], styles[r]) for r in (rows[MODALITY], held_out)
    )
    asked = {m: np.flatnonzero(np.isin(groups[m], unseen.things)) for m in texts}
    return StyleData(
        Split("train", ids, items, np.zeros(len(ids), dtype=bool)),
        {MODALITY: ReducedFeatures(source, rows[MODALITY], PARTS, mean, components), **texts},
        ReducedFeatures(source, held_out, PARTS, mean, components),
        unseen,
        {m: (ReducedFeatures(sources[m], r, 1), groups[m][r]) for m, r in asked.items()},
        seen,
    )


def _averages(source: FeatureSource, rows: Integers, parts: int) -> torch.Tensor:
    """Average each item's features in equal runs: (rows, parts, E)."""
    features, mask = source.batch(rows)
    if parts == 1:
        total = (features * mask[..., None]).sum(dim=1, keepdim=True)
        return total / mask.sum(dim=1).clamp_min(1)[:, None, None]
    return features.reshape(len(features), parts, -1, features.shape[-1]).mean(dim=2)


def _principal_components(source: FeatureSource, rows: Integers, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = np.random.default_rng(0).permutation(rows)[:_FITTED]
    vectors = _averages(source, np.sort(drawn), PARTS).flatten(0, 1)
    mean = vectors.mean(dim=0)
    _, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
    return mean, directions[:, -width:]


def read_styles(data: str, pictures: Sequence[Any], column: str = "style") -> NDArray[np.str_]:
    """Read each picture's style from the table that ``data`` names.

    Raises:
        DataError: the table has no such column, or lacks a picture.
    """
    table = Path(data.partition("?")[0])
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0]:
        raise DataError(f"{table} has no column {column!r}; give a table that `python -m bench.icons` wrote.")
    known = {(table.parent / row[MODALITY]).resolve(): row[column] for row in rows}
    try:
        return np.array([known[Path(picture).resolve()] for picture in pictures])
    except KeyError as error:
        raise DataError(f"{table} names no style of {error}.") from None
