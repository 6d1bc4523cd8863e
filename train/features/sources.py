"""Frozen features for stage 2: encoded once into a cache, or anew in every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.artifacts.cache import CacheKey
from fluxtalk.artifacts.files import hash_json
from fluxtalk.console import Log
from fluxtalk.datasets.pairs import PairDataset
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.process_group import ProcessGroup, SingleProcess
from fluxtalk.train.features.build import build_cache, build_lock
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.fit_reduction import fitted_reductions, reduced_dims
from fluxtalk.train.features.options import CacheOptions

__all__ = [
    "CacheOptions",
    "CachedFeatures",
    "FeatureSource",
    "OnlineFeatures",
    "cache_key",
    "cached_features",
    "feature_sources",
    "fitted_reductions",
    "reduced_dims",
    "whole_cache",
]


class FeatureSource(Protocol):
    """Source of one modality's features of one split."""

    dim: int

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """Return the features of these items, float32, padded with zeros to the longest of them.

        Args:
            rows: (B,) item rows; -1 is an absent item, all of whose row is padding.

        Returns:
            features (B, L, dim) and mask (B, L), with L at least 1.
        """


class OnlineFeatures:
    """Features computed by the frozen encoder whenever they are asked for."""

    def __init__(self, encoding: Encoding) -> None:
        self.dim = encoding.reduction.dim
        self._encoding = encoding
        self._encoder = encoding.encoder

    def __len__(self) -> int:
        return len(self._encoding.items)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `FeatureSource.batch`."""
        device, present = self._encoding.device, np.flatnonzero(rows >= 0)
        if not len(present):
            shape = (len(rows), 1)
            return Features(
                torch.zeros(*shape, self.dim, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
            )
        wanted = rows[present].tolist()
        features, mask = self._encoding.encode([self._encoding.prepare(row) for row in wanted], wanted)
        features = features.masked_fill(~mask[..., None], 0.0)
        if len(present) == len(rows):
            return Features(features, mask)
        where = torch.from_numpy(present).to(device)
        return Features(
            features.new_zeros(len(rows), *features.shape[1:]).index_copy_(0, where, features),
            mask.new_zeros(len(rows), mask.shape[1]).index_copy_(0, where, mask),
        )


def cache_key(
    stage1: Stage1,
    dataset: PairDataset,
    split: str,
    modality: str,
    options: CacheOptions | None = None,
    reduction: FeatureReduction | None = None,
) -> CacheKey:
    """Return the key of the cached features of one split and modality: of all of its items, the bad ones too."""
    part = stage1.modalities[modality]
    return CacheKey(
        encoder=part.content_hash(),
        preprocessing=hash_json(part.preprocess.to_parts()),
        data=dataset.whole.content_hash,
        split=split,
        modality=modality,
        dtype=(options or CacheOptions()).dtype,
        reduction=(reduction or FeatureReduction(ReductionConfig(part.spec.dim))).content_hash(),
    )


def cached_features(
    stage1: Stage1,
    dataset: PairDataset,
    split: str,
    modality: str,
    cache_dir: Path,
    device: torch.device,
    options: CacheOptions | None = None,
    reduction: FeatureReduction | None = None,
    group: ProcessGroup | None = None,
    say: Log = lambda _: None,
) -> CachedFeatures:
    """Open the cached features of one split and modality, encoding them first if they are missing.

    Items that were left out are in the cache, and not in what is returned.

    Args:
        cache_dir: shared by all processes of ``group``.
        options: how they are stored; ``reduction`` has applied its `pca` and `pool` already.
        say: receives a line about every cache that is built.

    Raises:
        DataError: an item that was not left out cannot be encoded; or the encoder fails.
        ArtifactError: the cache is damaged or belongs to something else.
    """
    options, group = options or CacheOptions(), group or SingleProcess()
    opened = whole_cache(stage1, dataset.whole, split, modality, cache_dir, device, options, reduction, group, say)
    rows = None if dataset.left_out is None else dataset.left_out.rows[split][modality]
    used = None if rows is None else set(rows.tolist())
    bad = {row: why for row, why in opened.manifest.bad.items() if used is None or row in used}
    if bad:
        part = dataset.whole.split(split)
        row, why = next(iter(bad.items()))
        id_ = part.ids[int(part.items[modality].groups[row])]
        others = f", nor can {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(
            f"Item {row} of {modality} in the {split} split (id {id_!r}) cannot be encoded: {why}{others}; repair or "
            "remove what cannot be used, or leave it out with --on-bad-item skip."
        )
    if rows is None:
        return opened
    key = cache_key(stage1, dataset, split, modality, options, reduction)
    return CachedFeatures(key.folder(cache_dir), device, key, False, group, rows)


def whole_cache(
    stage1: Stage1,
    dataset: PairDataset,
    split: str,
    modality: str,
    cache_dir: Path,
    device: torch.device,
    options: CacheOptions,
    reduction: FeatureReduction | None,
    group: ProcessGroup,
    say: Log,
) -> CachedFeatures:
    """Open or build a cache as `cached_features` does, with its bad items, which have no vector.

    Raises:
        DataError: the encoder fails.
        ArtifactError: the cache is damaged or belongs to something else.
    """
    key = cache_key(stage1, dataset, split, modality, options, reduction)
    folder = key.folder(cache_dir)
    with build_lock(folder, group, say) as missing:
        if missing:
            encoding = Encoding.of(stage1, dataset.split(split), modality, device, reduction)
            if group.rank == 0:
                say(f"encoding {len(encoding.items):,} {split} items of {modality} once, into {folder}")
            build_cache(encoding, key, folder, group, say)
    # Files that were just written were hashed on the way.
    return CachedFeatures(folder, device, key, options.verify and not missing, group)


def feature_sources(
    stage1: Stage1,
    dataset: PairDataset,
    split: str,
    encode: str,
    cache_dir: Path,
    device: torch.device,
    options: CacheOptions | None = None,
    reductions: Mapping[str, FeatureReduction] | None = None,
    group: ProcessGroup | None = None,
    say: Log = lambda _: None,
) -> dict[str, FeatureSource]:
    """Open the sources of every modality of one split.

    Args:
        encode: ``cache`` or ``online``.
        options: how a cache is stored, and what reduces features; defaults keep them as they are.
        reductions: those of a head that exists already; None fits those of the options.
        group: the processes that build a cache together; all of them must call this then.
        say: receives a line about every cache that is built.

    Raises:
        DataError: an item cannot be encoded, or the split lacks a modality.
        ArtifactError: a cache is damaged or belongs to something else.
    """
    options, group = options or CacheOptions(), group or SingleProcess()
    if reductions is None:
        reductions = fitted_reductions(stage1, dataset, options, cache_dir, device, group)
    if encode == "cache":
        return {
            m: cached_features(stage1, dataset, split, m, cache_dir, device, options, reductions.get(m), group, say)
            for m in stage1.modalities
        }
    return {
        m: OnlineFeatures(Encoding.of(stage1, dataset.split(split), m, device, reductions.get(m)))
        for m in stage1.modalities
    }
