"""Reading a feature cache straight from memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.arrays import Integers
from fluxtalk.artifacts.cache import (
    LENGTHS,
    SCALES,
    VALUES,
    CacheKey,
    CacheShard,
    damaged,
    read_manifest,
    require_key,
    shard_file,
    verify_checksums,
)
from fluxtalk.model.encoders import Features
from fluxtalk.model.process_group import ProcessGroup, SingleProcess

_TORCH_DTYPES = {"fp16": torch.float16, "int8": torch.int8}

_BLOCK_NUMBERS = 2**20
"""Numbers gathered at a time before they become float32: the processor's cache still holds them then."""


class CachedFeatures:
    """Features of a cache folder, gathered from memory maps: nothing is copied beyond the batch.

    A `FeatureSource`. Safe to call from several threads.

    Args:
        folder: a finished cache.
        device: device of the batches.
        key: what the caller needs; None takes whatever the folder holds.
        verify: compare checksums; each process of ``group`` takes its share of the shards.
        rows: (items,): rows of the folder's items that are items here; None takes all.

    Raises:
        ArtifactError: the cache is unfinished or damaged, or was made for something else, which is named.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        key: CacheKey | None = None,
        verify: bool = True,
        group: ProcessGroup | None = None,
        rows: Integers | None = None,
    ) -> None:
        self._rows = rows
        self.manifest = read_manifest(folder)
        if key is not None:
            require_key(folder, self.manifest.key, key)
        if verify:
            group = group or SingleProcess()
            verify_checksums(folder, self.manifest, group.rank, group.size)
        self.dim = self.manifest.dim
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._dtype = _TORCH_DTYPES[self.manifest.key.dtype]
        self._values: list[NDArray[Any]] = []
        self._scales: list[NDArray[np.float32]] = []
        lengths, starts = [], []
        for index, shard in enumerate(self.manifest.shards):
            counts = self._open(folder, index, shard)
            lengths.append(counts)
            starts.append(np.cumsum(counts, dtype=np.int64) - counts)
        # One item more, without any vector: what row -1 finds.
        self._lengths = np.concatenate([*lengths, np.zeros(1, np.int32)]).astype(np.int64)
        self._starts = np.concatenate([*starts, np.zeros(1, np.int64)])

    def __len__(self) -> int:
        return self.manifest.items if self._rows is None else len(self._rows)

    @property
    def longest(self) -> int:
        """Feature vectors of the item that has the most."""
        return int(self._lengths.max(initial=0))

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `FeatureSource.batch`."""
        if self._rows is not None:
            rows = np.where(rows < 0, rows, self._rows[rows])
        lengths = self._lengths[rows]
        width = max(1, int(lengths.max(initial=0)))
        shards, starts = rows // self.manifest.items_per_shard, self._starts[rows]
        where = list(zip(shards.tolist(), starts.tolist(), lengths.tolist(), strict=True))
        features = torch.empty((len(rows), width, self.dim), device=self._device)
        step = max(1, len(rows) if self._on_gpu else _BLOCK_NUMBERS // (width * self.dim))
        for first in range(0, len(rows), step):
            block, target = where[first : first + step], features[first : first + step]
            values = self._gather(self._values, block, (width, self.dim), self._dtype)
            if self._scales:
                scales = self._gather(self._scales, block, (width,), torch.float32)
                torch.mul(values, scales[..., None], out=target)
            else:
                target.copy_(values)
        counts = torch.from_numpy(lengths).to(self._device)
        return Features(features, torch.arange(width, device=self._device) < counts[:, None])

    def _gather(
        self,
        shards: Sequence[NDArray[Any]],
        where: Sequence[tuple[int, int, int]],
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Copy each item's entries into one array, in the type they are stored in: to a GPU, half the transfer."""
        gathered = torch.empty((len(where), *shape), dtype=dtype, pin_memory=self._on_gpu)
        array, width = gathered.numpy(), shape[0]
        for position, (shard, start, length) in enumerate(where):
            if length:
                array[position, :length] = shards[shard][start : start + length]
            if length < width:
                array[position, length:] = 0
        return gathered.to(self._device, non_blocking=self._on_gpu)

    def _open(self, folder: Path, index: int, shard: CacheShard) -> NDArray[np.int32]:
        """Map a shard's vectors and return its lengths."""
        # As plain arrays: slicing a np.memmap costs more than the copy of a short item.
        arrays = {}
        for name in shard.sha256:
            try:
                mapped = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                raise damaged(folder, name) from None
            arrays[name] = np.asarray(mapped)
        try:
            values = arrays[shard_file(index, VALUES)]
            lengths = np.array(arrays[shard_file(index, LENGTHS)])
            whole = values.shape == (shard.vectors, self.dim) and lengths.shape == (shard.items,)
            if self._dtype == torch.int8:
                self._scales.append(arrays[shard_file(index, SCALES)])
                whole = whole and self._scales[-1].shape == (shard.vectors,)
        except KeyError:
            whole = False
        place = (self.manifest.key.hash(), index * self.manifest.items_per_shard)
        if not whole or int(lengths.sum()) != shard.vectors or (shard.key, shard.start) != place:
            raise damaged(folder, f"shard {index}")
        self._values.append(values)
        return lengths
