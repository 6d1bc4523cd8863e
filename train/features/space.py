"""Space on disk that the caches of a data set need, estimated from a few items before anything is encoded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fluxtalk.artifacts.cache import MANIFEST
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.head.reduction import FeatureReduction
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import cache_key

_SAMPLE = 16
_MARGIN = 1.05
"""Factor on the estimate, for lengths that the sample does not show, and for manifests."""


@dataclass(frozen=True)
class CacheSize:
    """Estimated size of one modality's features over all splits."""

    modality: str
    items: int
    vectors_per_item: float
    dim: int
    bytes_per_number: float
    missing: int
    """Bytes that are not on disk yet."""

    def line(self) -> str:
        """Format the estimate: items x vectors x dimension x bytes."""
        return (
            f"{self.modality} {self.items:,} items x {self.vectors_per_item:.0f} vectors x {self.dim} numbers x "
            f"{self.bytes_per_number:.3g} bytes"
        )


def cache_sizes(
    stage1: Stage1,
    dataset: PairDataset,
    splits: Sequence[str],
    cache_dir: Path,
    options: CacheOptions,
    reductions: Mapping[str, FeatureReduction],
    device: torch.device,
) -> list[CacheSize]:
    """Estimate the caches of some splits, by modality, from at most 16 items of each modality.

    Raises:
        DataError: the encoder fails.
    """
    sizes = []
    for modality in stage1.modalities:
        missing, items = {}, 0
        for split in splits:
            folder = cache_key(stage1, dataset, split, modality, options, reductions.get(modality)).folder(cache_dir)
            count = len(dataset.split(split).items[modality])
            items += count
            if not (folder / MANIFEST).is_file():
                there = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
                missing[split] = (count, there)
        if not missing:
            continue
        first = next(iter(missing))
        encoding = Encoding.of(stage1, dataset.split(first), modality, device, reductions.get(modality))
        vectors, dim = _vectors_per_item(encoding), encoding.reduction.dim
        each = 1 + 4 / dim if options.dtype == "int8" else 2.0
        per_item = vectors * dim * each * _MARGIN
        needed = sum(max(0, int(count * per_item) - there) for count, there in missing.values())
        sizes.append(CacheSize(modality, items, vectors, dim, each, needed))
    return sizes


def require_space(sizes: Sequence[CacheSize], cache_dir: Path, options: CacheOptions) -> None:
    """Refuse to encode what does not fit on the disk of the cache.

    Raises:
        DataError: says what is needed, what is free, and the options that make it smaller.
    """
    missing, free = sum(size.missing for size in sizes), free_space(cache_dir)
    if missing <= free:
        return
    smaller = {
        "--feature-dtype int8 (about half)": options.dtype == "fp16",
        "--feature-pool 2 or more (divides it by that)": options.pool == 1,
        "--feature-pca, such as 128": not options.pca and any(size.dim > 128 for size in sizes),
        "another --cache-dir": True,
    }
    raise DataError(
        f"The features need about {missing / 1e9:.3g} GB more in {cache_dir}, where {free / 1e9:.3g} GB are free: "
        f"{'; '.join(size.line() for size in sizes)}. Free space, or give "
        f"{', or '.join(way for way, offered in smaller.items() if offered)}."
    )


def free_space(folder: Path) -> int:
    """Return the free bytes of the disk that holds a folder, which need not exist yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _vectors_per_item(encoding: Encoding) -> float:
    """Mean number of feature vectors after reduction."""
    count = len(encoding.items)
    rows = sorted(set(np.linspace(0, count - 1, _SAMPLE).astype(int).tolist())) if count else []
    decoded = [(row, array) for row in rows if not isinstance(array := encoding.try_decoding(row), str)]
    counts = [int(features.mask_BL.sum()) / len(part) for part, features in encoding.encode_usable(decoded, {})]
    return float(np.mean(counts)) if counts else 0.0
