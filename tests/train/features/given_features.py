"""Data of given feature arrays and its stage 1: what a cache holds is then known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fluxtalk.artifacts.cache import CacheKey
from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, Features, FrozenEncoder
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.train.features.build import build_cache, build_lock
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import cache_key

CPU = torch.device("cpu")
DIM = 6
PER_SHARD = 9
Arrays = list[NDArray[np.float32]]


def ragged(count: int = 40, seed: int = 0) -> Arrays:
    """Arrays of 1 to 7 vectors that half precision holds exactly."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((1 + i % 7, DIM)).astype(np.float16).astype(np.float32) for i in range(count)]


def given(values: Arrays, source: str = f"features:{DIM}", name: str = "train") -> tuple[Stage1, PairDataset]:
    """A stage 1 that passes features through (or through ``source``), and data of one modality, ``sound``."""
    groups = np.arange(len(values))
    items = Items(values, groups, np.ones(len(values), dtype=bool))
    split = Split(name, tuple(f"id {i}" for i in groups), {"sound": items}, np.zeros(len(values), dtype=bool))
    part = Stage1Modality(EncoderSpec(source, {}, DIM), {}, FeaturesPreprocessor(DIM))
    return Stage1({"sound": part}), PairDataset("arrays", ("sound",), {name: split}, "hash")


def build(
    folder: Path, values: Arrays, dtype: str = "fp16", encoder: nn.Module | None = None, said: list[str] | None = None
) -> CacheKey:
    """Build a cache of given features, possibly spoiled by an encoder."""
    stage1, data = given(values)
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    if encoder is not None:
        frozen = FrozenEncoder(encoder, FeaturesPreprocessor(DIM), DIM)
        encoding = Encoding(
            encoding.split, "sound", encoding.preprocess, frozen, encoding.reduction, CPU, encoding.source
        )
    key = cache_key(stage1, data, "train", "sound", CacheOptions(dtype))
    say: Callable[[str], None] = (said if said is not None else []).append
    with build_lock(folder, SingleProcess(), say) as missing:
        if missing:
            build_cache(encoding, key, folder, SingleProcess(), say, PER_SHARD)
    return key


def require_rows(batch: Features, values: Sequence[NDArray[np.float32]], tolerance: float = 0.0) -> None:
    """Each row is one of these arrays, then padding."""
    features, mask = batch
    assert features.dtype == torch.float32
    assert mask.sum(dim=1).tolist() == [len(value) for value in values]
    assert features.shape[1] == max(len(value) for value in values)
    assert (features[~mask] == 0).all()
    for row, value in enumerate(values):
        assert mask[row, : len(value)].all()
        assert np.abs(features[row, : len(value)].numpy() - value).max() <= tolerance * np.abs(value).max()


def flip(path: Path) -> None:
    """Change one bit of a file, near its end."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
