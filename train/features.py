"""Frozen features for stage 2: encoded once into memory-mapped files, or anew in every step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.artifacts import atomic_folder, hash_file, hash_json, write_json
from fluxtalk.console import progress
from fluxtalk.datasets.pairs import Items, PairDataset
from fluxtalk.errors import ArtifactError, DataError, InputError
from fluxtalk.model.encoders import Features, FrozenEncoder, to_tensors
from fluxtalk.model.stage1 import Stage1
from fluxtalk.preprocess import Preprocessor

CACHE_SCHEMA = 1
_ENCODE_BATCH = 256


class FeatureSource(Protocol):
    """Where one modality's features of one split come from."""

    dim: int

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """The features of these items, float32, padded to the longest of them."""


class CachedFeatures:
    """Features read from a folder that `encode_to_cache` wrote; nothing is copied beyond the batch."""

    def __init__(self, folder: Path, device: torch.device, key: str) -> None:
        manifest = _read_manifest(folder)
        if manifest["key"] != key:
            raise ArtifactError(
                f"The feature cache {folder} belongs to other encoders or data; remove it to encode again."
            )
        self.dim = int(manifest["dim"])
        self._device = device
        self._values = np.memmap(
            folder / "values.f16", dtype=np.float16, mode="r", shape=(manifest["vectors"], self.dim)
        )
        self._starts: NDArray[np.int64] = np.load(folder / "starts.npy")
        self._lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `FeatureSource.batch`."""
        lengths = self._lengths[rows]
        positions = np.arange(lengths.max())
        mask = positions < lengths[:, None]
        index = np.where(mask, self._starts[rows, None] + positions, 0)
        values = torch.from_numpy(self._values[index]).to(self._device).float()
        mask_tensor = torch.from_numpy(mask).to(self._device)
        return Features(values * mask_tensor[..., None], mask_tensor)


class OnlineFeatures:
    """Features computed by the frozen encoder whenever they are asked for."""

    def __init__(
        self, encoder: FrozenEncoder, preprocess: Preprocessor, values: Sequence[Any], device: torch.device
    ) -> None:
        self.dim = encoder.dim
        self._encoder = encoder.to(device)
        self._preprocess = preprocess
        self._values = values
        self._device = device

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """See `FeatureSource.batch`."""
        prepared = [self._preprocess.prepare(self._values[row]) for row in rows]
        with torch.no_grad():
            features, mask = self._encoder(*to_tensors(self._preprocess.collate(prepared), self._device))
        return Features(features.float(), mask)


def cache_key(stage1: Stage1, dataset: PairDataset, split: str, modality: str) -> str:
    """What cached features depend on: encoder, preprocessing, data, split and format."""
    return hash_json(
        {
            "schema": CACHE_SCHEMA,
            "encoder": stage1.modalities[modality].content_hash(),
            "data": dataset.content_hash,
            "split": split,
            "modality": modality,
        }
    )


def cached_features(
    stage1: Stage1, dataset: PairDataset, split: str, modality: str, cache_dir: Path, device: torch.device
) -> CachedFeatures:
    """Open the cached features of one split and modality, encoding them first where they are missing."""
    key = cache_key(stage1, dataset, split, modality)
    folder = cache_dir / "features" / f"{modality}-{split}-{key[:16]}"
    if not (folder / "manifest.json").is_file():
        part = stage1.modalities[modality]
        items = dataset.split(split).items[modality]
        encode_to_cache(part.build(), part.preprocess, items, folder, key, f"encoding {split} {modality}", device)
    return CachedFeatures(folder, device, key)


def encode_to_cache(
    encoder: FrozenEncoder,
    preprocess: Preprocessor,
    items: Items,
    folder: Path,
    key: str,
    what: str,
    device: torch.device,
) -> None:
    """Encode every item once, in half precision, into a folder that appears when it is complete.

    Raises:
        DataError: an item cannot be read, or its features overflow half precision.
    """
    encoder.to(device)
    starts = np.zeros(len(items), dtype=np.int64)
    lengths = np.zeros(len(items), dtype=np.int64)
    with atomic_folder(folder, DataError) as temporary:
        written = 0
        with (temporary / "values.f16").open("wb") as file, progress(None, what, total=len(items), unit="item") as bar:
            for start in range(0, len(items), 16 * _ENCODE_BATCH):
                rows = np.arange(start, min(start + 16 * _ENCODE_BATCH, len(items)))
                prepared = [_prepare(preprocess, items.values[int(row)]) for row in rows]
                # Equal lengths together: no time goes into padding.
                order = np.argsort([preprocess.length(array) for array in prepared], kind="stable")
                for chunk in np.array_split(order, -(-len(order) // _ENCODE_BATCH)):
                    features, mask = _encode(encoder, preprocess, [prepared[i] for i in chunk], device)
                    if not np.isfinite(features).all():
                        raise DataError(
                            f"While {what}: features are NaN, infinite or above 65,504, the limit of half precision."
                        )
                    counts = mask.sum(axis=1)
                    lengths[rows[chunk]] = counts
                    starts[rows[chunk]] = written + np.cumsum(counts) - counts
                    file.write(features[mask].tobytes())
                    written += int(counts.sum())
                    bar.update(len(chunk))
        if not lengths.all():
            raise DataError(f"While {what}: item {int((lengths == 0).argmax())} has no feature vector at all.")
        np.save(temporary / "starts.npy", starts)
        np.save(temporary / "lengths.npy", lengths)
        write_json(
            temporary / "manifest.json",
            {
                "schema_version": CACHE_SCHEMA,
                "key": key,
                "dim": encoder.dim,
                "vectors": written,
                "items": len(items),
                "dtype": "float16",
                "sha256": {name: hash_file(temporary / name) for name in ("values.f16", "starts.npy", "lengths.npy")},
            },
        )


def feature_sources(
    stage1: Stage1, dataset: PairDataset, split: str, encode: str, cache_dir: Path, device: torch.device
) -> dict[str, FeatureSource]:
    """The sources of every modality of one split."""
    if encode == "cache":
        return {m: cached_features(stage1, dataset, split, m, cache_dir, device) for m in stage1.modalities}
    items = dataset.split(split).items
    return {
        m: OnlineFeatures(part.build(), part.preprocess, items[m].values, device)
        for m, part in stage1.modalities.items()
    }


def _prepare(preprocess: Preprocessor, value: Any) -> NDArray[Any]:
    try:
        return preprocess.prepare(value)
    except InputError as error:
        raise DataError(f"An item of the data set cannot be encoded: {error}") from None


def _encode(
    encoder: FrozenEncoder, preprocess: Preprocessor, prepared: list[NDArray[Any]], device: torch.device
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    with torch.inference_mode():
        features, mask = encoder(*to_tensors(preprocess.collate(prepared), device))
        return features.half().cpu().numpy(), mask.cpu().numpy()


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text())
        hashes = manifest["sha256"]
        intact = manifest["schema_version"] == CACHE_SCHEMA and all(
            (folder / name).is_file() and hash_file(folder / name) == expected for name, expected in hashes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise ArtifactError(f"The feature cache {folder} is damaged or was changed; remove it to encode again.")
    return manifest
