"""Frozen features on disk: what a cache folder holds, and reading it straight from memory maps.

::

    image-train-3f2a...              modality, split, the start of the key's hash
    ├── manifest.json                key, sizes, checksums; there once everything else is
    ├── pairs.json                   ids of the split, and which of them each item belongs to
    ├── 00000.values.npy             (vectors, dim) float16 or int8: the items' vectors, one item after the other
    ├── 00000.lengths.npy            (items,) int32: vectors of each item
    ├── 00000.scales.npy             (vectors,) float32, with int8 alone
    ├── 00000.json                   the shard's sizes and checksums: a shard without it does not count
    └── 00001...
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.artifacts.files import hash_file, hash_json, write_json
from fluxtalk.config import StrictConfig
from fluxtalk.errors import ArtifactError, UsageError
from fluxtalk.model.encoders import Features
from fluxtalk.model.process_group import OneProcess, World

FORMAT = "fluxtalk.features"
CACHE_SCHEMA = 2
MANIFEST, PAIRS = "manifest.json", "pairs.json"
_TORCH_DTYPES = {"fp16": torch.float16, "int8": torch.int8}

_BLOCK_NUMBERS = 2**20
"""Gathered at a time before they become float32: what the processor's cache still holds then."""


@dataclass(frozen=True)
class CacheKey(StrictConfig):
    """What cached features depend on; another value of any field is another cache."""

    encoder: str
    """`Stage1Modality.content_hash`: weights, architecture and preprocessing."""
    preprocessing: str
    """SHA-256 of the preprocessing alone."""
    data: str
    """`PairDataset.content_hash`."""
    split: str
    modality: str
    dtype: str
    """`CacheOptions.dtype`."""
    reduction: str
    """`FeatureReduction.content_hash`."""

    def hash(self) -> str:
        """SHA-256 over every field and the format."""
        return hash_json({"schema": CACHE_SCHEMA, **self.to_dict()})

    def folder(self, cache_dir: Path) -> Path:
        """Where the cache of this key lies."""
        return features_folder(cache_dir) / f"{self.modality}-{self.split}-{self.hash()[:16]}"

    def differences(self, other: CacheKey) -> list[str]:
        """The names of the fields that differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = [name for name in mine if mine[name] != theirs[name]]
        # The encoder's hash covers its preprocessing: naming both would blame weights that are the same.
        return [name for name in names if not (name == "encoder" and "preprocessing" in names)]


@dataclass(frozen=True)
class Shard(StrictConfig):
    """A run of consecutive items in files of their own."""

    key: str
    """`CacheKey.hash` of the cache it belongs to."""
    start: int
    """The first item's row."""
    items: int
    vectors: int
    sha256: dict[str, str]
    """File name to checksum."""

    def intact(self, folder: Path) -> bool:
        """Whether every file is there, unchanged."""
        return all((folder / n).is_file() and hash_file(folder / n) == h for n, h in self.sha256.items())


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    key: CacheKey
    dim: int
    """Of the stored features, after reduction."""
    items: int
    vectors: int
    items_per_shard: int
    reduction: dict[str, Any]
    """`ReductionConfig`, for people; the key has its hash."""
    pairs_sha256: str
    shards: tuple[Shard, ...]

    def write(self, folder: Path) -> None:
        """Write it atomically, with a hash of itself."""
        content = {"format": FORMAT, "schema_version": CACHE_SCHEMA, **asdict(self)}
        content["shards"] = list(content["shards"])
        write_json(folder / MANIFEST, {**content, "content_hash": hash_json(content)})


def features_folder(cache_dir: Path) -> Path:
    """Where every feature cache and every fitted reduction lies."""
    return cache_dir / "features"


def shard_file(index: int, part: str) -> str:
    """The name of one file of a shard: part is `values.npy`, `lengths.npy`, `scales.npy` or `json`."""
    return f"{index:05d}.{part}"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest; shards are not looked at.

    Raises:
        ArtifactError: it is missing, malformed, changed, or of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is no finished feature cache: it has no {MANIFEST}; build it, or remove it.")
    try:
        content = json.loads(path.read_text())
        schema = content["schema_version"]
        if schema != CACHE_SCHEMA:
            raise ArtifactError(
                f"The feature cache {folder} has schema {schema}; this FluxTalk reads {CACHE_SCHEMA}: "
                "remove it to encode again."
            )
        content_hash = content.pop("content_hash")
        if hash_json(content) != content_hash or content.pop("format") != FORMAT:
            raise damaged(folder, MANIFEST)
        del content["schema_version"]
        key, shards = CacheKey.from_dict(content.pop("key")), content.pop("shards")
        return Manifest(key=key, shards=tuple(Shard.from_dict(shard) for shard in shards), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        raise damaged(folder, MANIFEST) from None


def damaged(folder: Path, what: str) -> ArtifactError:
    """The error of a cache that is not as it was written."""
    return ArtifactError(f"The feature cache {folder} is damaged: {what} was changed; remove it to encode again.")


class CachedFeatures:
    """Features of a cache folder, gathered from memory maps: nothing is copied beyond the batch.

    A `FeatureSource`. Safe to call from several threads.

    Args:
        folder: a finished cache.
        device: where batches go.
        key: what the caller needs; None takes whatever the folder holds.
        verify: compare checksums; each process of ``world`` takes its share of the shards.

    Raises:
        ArtifactError: the cache is unfinished or damaged, or was made for something else, which is named.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        key: CacheKey | None = None,
        verify: bool = True,
        world: World | None = None,
    ) -> None:
        self.manifest = read_manifest(folder)
        _require_key(folder, self.manifest.key, key)
        if verify:
            verify_checksums(folder, self.manifest, world or OneProcess())
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
        return self.manifest.items

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `FeatureSource.batch`."""
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

    def _open(self, folder: Path, index: int, shard: Shard) -> NDArray[np.int32]:
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
            values = arrays[shard_file(index, "values.npy")]
            lengths = np.array(arrays[shard_file(index, "lengths.npy")])
            whole = values.shape == (shard.vectors, self.dim) and lengths.shape == (shard.items,)
            if self._dtype == torch.int8:
                self._scales.append(arrays[shard_file(index, "scales.npy")])
                whole = whole and self._scales[-1].shape == (shard.vectors,)
        except KeyError:
            whole = False
        place = (self.manifest.key.hash(), index * self.manifest.items_per_shard)
        if not whole or int(lengths.sum()) != shard.vectors or (shard.key, shard.start) != place:
            raise damaged(folder, f"shard {index}")
        self._values.append(values)
        return lengths


def verify_checksums(folder: Path, manifest: Manifest, world: World) -> None:
    """Compare every file with its checksum, or this process's share of the shards.

    Raises:
        ArtifactError: a file is missing or was changed.
    """
    if not (folder / PAIRS).is_file() or hash_file(folder / PAIRS) != manifest.pairs_sha256:
        raise damaged(folder, PAIRS)
    for index, shard in enumerate(manifest.shards):
        if index % world.size == world.rank and not shard.intact(folder):
            raise damaged(folder, f"shard {index}")


def _require_key(folder: Path, found: CacheKey, wanted: CacheKey | None) -> None:
    names = wanted.differences(found) if wanted is not None else []
    if names:
        raise ArtifactError(
            f"The feature cache {folder} was made for another {', another '.join(names)}; remove it to encode again."
        )
