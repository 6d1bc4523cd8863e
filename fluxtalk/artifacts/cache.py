"""A feature cache's folder, torch-free: its key, manifest, shards and their checksums.

::

    image-train-3f2a...              modality, split, the start of the key's hash
    ├── manifest.json                key, sizes, checksums; written last: a folder without it is not a cache
    ├── pairs.json                   ids of the split, and which of them each item belongs to
    ├── 00000.values.npy             (vectors, dim) float16 or int8: the items' vectors, one item after the other
    ├── 00000.lengths.npy            (items,) int32: vectors of each item
    ├── 00000.scales.npy             (vectors,) float32, with int8 alone
    ├── 00000.json                   the shard's sizes and checksums: a shard without it does not count
    └── 00001...
    image-train-3f2a....lock         beside it; locked while a build writes there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import canonical_json, hash_file, hash_json, write_atomically, write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.config import StrictConfig
from fluxtalk.errors import ArtifactError, UsageError

FORMAT = "fluxtalk.features"
SCHEMA_VERSION = 2
MANIFEST, PAIRS = "manifest.json", "pairs.json"


@dataclass(frozen=True)
class CacheKey(StrictConfig):
    """Everything that cached features depend on; another value of any field is another cache."""

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
        return hash_json({"schema": SCHEMA_VERSION, **self.to_dict()})

    def folder(self, cache_dir: Path) -> Path:
        """Return the folder of the cache of this key."""
        return features_folder(cache_dir) / f"{self.modality}-{self.split}-{self.hash()[:16]}"

    def differences(self, other: CacheKey) -> list[str]:
        """List the fields that differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = [name for name in mine if mine[name] != theirs[name]]
        # The encoder's hash covers its preprocessing: naming both would blame weights that are the same.
        return [name for name in names if not (name == "encoder" and "preprocessing" in names)]


@dataclass(frozen=True)
class CacheShard(StrictConfig):
    """Consecutive items in files of their own; recorded beside them, and in the manifest."""

    key: str
    """`CacheKey.hash` of the cache it belongs to."""
    start: int
    """Row of the first item."""
    items: int
    vectors: int
    sha256: dict[str, str]
    """File name to checksum."""
    bad: dict[str, str] = field(default_factory=dict)
    """Row of each item that cannot be used, which has no vector here, to the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types; without bad items, as it was before there could be any."""
        return {name: value for name, value in super().to_dict().items() if name != "bad" or value}

    def write(self, folder: Path, index: int) -> None:
        """Write the record, after which the shard counts."""
        write_json(folder / shard_file(index, "json"), self.to_dict())

    def intact(self, folder: Path) -> bool:
        """Return whether every file is there, unchanged."""
        return all((folder / n).is_file() and hash_file(folder / n) == h for n, h in self.sha256.items())


@dataclass(frozen=True)
class CacheManifest:
    """The content of manifest.json."""

    key: CacheKey
    dim: int
    """Dimension of the stored features, after reduction."""
    items: int
    vectors: int
    items_per_shard: int
    reduction: dict[str, Any]
    """`ReductionConfig`, for people; the key has its hash."""
    pairs_sha256: str
    shards: tuple[CacheShard, ...]

    @property
    def bad(self) -> dict[int, str]:
        """Row of each item that cannot be used, to the reason, in the order of the rows."""
        return {int(row): why for shard in self.shards for row, why in shard.bad.items()}

    def write(self, folder: Path) -> None:
        """Write it atomically, with a hash of itself."""
        content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        content["shards"] = [shard.to_dict() for shard in self.shards]
        write_json(folder / MANIFEST, {**content, "content_hash": hash_json(content)})


def features_folder(cache_dir: Path) -> Path:
    """Return the folder of every feature cache and every fitted reduction."""
    return cache_dir / "features"


def lock_file(folder: Path) -> Path:
    """Return the file that is locked while a cache is built; beside its folder, which holds the cache alone."""
    return folder.with_name(f"{folder.name}.lock")


VALUES, LENGTHS, SCALES = "values.npy", "lengths.npy", "scales.npy"
"""Parts of a shard."""


def shard_file(index: int, part: str) -> str:
    """Name one file of a shard: part is `values.npy`, `lengths.npy`, `scales.npy` or `json`."""
    return f"{index:05d}.{part}"


def reduction_file(cache_dir: Path, modality: str, components: int, key: str) -> Path:
    """Return the file of principal components fitted for what ``key`` hashes."""
    return features_folder(cache_dir) / f"{modality}-pca{components}-{key[:16]}.safetensors"


def read_shard(folder: Path, index: int) -> CacheShard:
    """Read a shard's record.

    Raises:
        OSError, ValueError, TypeError, AttributeError, UsageError: it is missing or malformed.
    """
    return CacheShard.from_dict(read_object(folder / shard_file(index, "json")))


def count_shards(folder: Path) -> int:
    """Count the shards that an unfinished build has left."""
    return len(list(folder.glob("[0-9]*.json")))


def write_pairs(folder: Path, ids: Sequence[str], groups: Sequence[int]) -> str:
    """Write pairs.json: the split's ids, and the index of each item's id; return its SHA-256."""
    write_atomically(folder / PAIRS, canonical_json({"ids": list(ids), "groups": list(groups)}))
    return hash_file(folder / PAIRS)


def read_manifest(folder: Path) -> CacheManifest:
    """Read and check a manifest; shards are not looked at.

    Raises:
        ArtifactError: it is missing, malformed, changed, or of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a finished feature cache: it has no {MANIFEST}; build it, or remove it.")
    try:
        content = read_object(path)
        schema = content["schema_version"]
        if schema != SCHEMA_VERSION:
            raise ArtifactError(
                f"The feature cache {folder} has schema {schema}; this FluxTalk reads {SCHEMA_VERSION}: "
                "remove it to encode again."
            )
        content_hash = content.pop("content_hash")
        if hash_json(content) != content_hash or content.pop("format") != FORMAT:
            raise damaged(folder, MANIFEST)
        del content["schema_version"]
        key, shards = CacheKey.from_dict(content.pop("key")), content.pop("shards")
        return CacheManifest(key=key, shards=tuple(CacheShard.from_dict(shard) for shard in shards), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        raise damaged(folder, MANIFEST) from None


def damaged(folder: Path, what: str) -> ArtifactError:
    """Return the error of a cache that is not as it was written."""
    return ArtifactError(f"The feature cache {folder} is damaged: {what} was changed; remove it to encode again.")


def verify_checksums(folder: Path, manifest: CacheManifest, rank: int = 0, processes: int = 1) -> None:
    """Compare every file with its checksum, or the share of the shards of process ``rank``.

    Raises:
        ArtifactError: a file is missing or was changed.
    """
    if not (folder / PAIRS).is_file() or hash_file(folder / PAIRS) != manifest.pairs_sha256:
        raise damaged(folder, PAIRS)
    for index, shard in enumerate(manifest.shards):
        if index % processes == rank and not shard.intact(folder):
            raise damaged(folder, f"shard {index}")


def require_key(folder: Path, found: CacheKey, wanted: CacheKey) -> None:
    """Refuse a cache of another key.

    Raises:
        ArtifactError: it was made for something else, which is named.
    """
    names = wanted.differences(found)
    if names:
        raise ArtifactError(
            f"The feature cache {folder} was made for another {', another '.join(names)}; remove it to encode again."
        )
