"""Cached features are the encoder's own, and a cache that does not fit is never used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.errors import ArtifactError, DataError
from fluxtalk.model.encoders import EncoderSpec, FrozenEncoder
from fluxtalk.model.stage1 import Stage1, Stage1Modality
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.train import features as module
from fluxtalk.train.features import CachedFeatures, OnlineFeatures, cache_key, cached_features, feature_sources

CPU = torch.device("cpu")


def _arrays(values: list[NDArray[np.float32]]) -> tuple[Stage1, PairDataset]:
    """A stage 1 of given features, and data of arrays."""
    groups = np.arange(len(values))
    items = Items(values, groups, np.ones(len(values), dtype=bool))
    split = Split("train", tuple(map(str, groups)), {"sound": items}, np.zeros(len(values), dtype=bool))
    part = Stage1Modality(EncoderSpec("features:3", {}, 3), {}, FeaturesPreprocessor(3))
    return Stage1({"sound": part}), PairDataset("arrays", ("sound",), {"train": split}, "hash")


def _ragged(count: int = 40) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((1 + i % 7, 3)).astype(np.float32) for i in range(count)]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_cached_features_are_the_encoders(
    stage1: Stage1, table_data: PairDataset, tmp_path: Path, modality: str
) -> None:
    """To half precision, in any order, with the same mask, and nothing on padding."""
    cached = cached_features(stage1, table_data, "test", modality, tmp_path, CPU)
    online = feature_sources(stage1, table_data, "test", "online", tmp_path, CPU)[modality]
    count = len(table_data.split("test").items[modality])
    assert len(cached) == len(online) == count
    assert cached.dim == online.dim == stage1.modalities[modality].spec.dim
    rows = np.random.default_rng(0).permutation(count)
    for chunk in (rows[:1], rows[1:8], rows):
        actual, expected = cached.batch(chunk), online.batch(chunk)
        assert actual.features_BLD.dtype == torch.float32
        assert torch.equal(actual.mask_BL, expected.mask_BL)
        assert (actual.features_BLD[~actual.mask_BL] == 0).all()
        mask = expected.mask_BL
        torch.testing.assert_close(actual.features_BLD[mask], expected.features_BLD[mask], rtol=2**-11, atol=1e-5)


def test_ragged_lengths_come_back_exactly(tmp_path: Path) -> None:
    """Encoding sorts by length; the rows are nevertheless the items, in their order."""
    values = [v.astype(np.float16).astype(np.float32) for v in _ragged()]
    stage1, data = _arrays(values)
    cached = cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    for rows in (np.arange(40), np.array([6, 0, 13, 6]), np.array([0])):
        batch = cached.batch(rows)
        assert batch.features_BLD.shape[1] == max(len(values[r]) for r in rows)
        for position, row in enumerate(rows):
            length = len(values[row])
            assert batch.mask_BL[position].tolist() == [i < length for i in range(batch.mask_BL.shape[1])]
            assert np.array_equal(batch.features_BLD[position, :length].numpy(), values[row])


def test_the_second_use_does_not_encode_again(
    stage1: Stage1, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_features(stage1, table_data, "test", "text", tmp_path, CPU)

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(module, "encode_to_cache", refuse)
    second = cached_features(stage1, table_data, "test", "text", tmp_path, CPU)
    rows = np.arange(len(first))
    assert torch.equal(first.batch(rows).features_BLD, second.batch(rows).features_BLD)
    with pytest.raises(AssertionError, match="encoded again"):
        cached_features(stage1, table_data, "validation", "text", tmp_path, CPU)


def test_what_changes_features_changes_the_key(stage1: Stage1, table_data: PairDataset) -> None:
    """Another weight, preprocessing, data set, split or modality is another folder."""
    text = stage1.modalities["text"]
    name = next(iter(text.weights))
    weight = dataclasses.replace(text, weights={**text.weights, name: text.weights[name] + 1})
    other_weight = Stage1({**stage1.modalities, "text": weight})
    config, files = text.preprocess.to_parts()
    shorter = dataclasses.replace(
        text,
        preprocess=type(text.preprocess).from_parts({**config, "max_length": 5}, files),  # type: ignore[attr-defined]
    )
    keys = [
        cache_key(stage1, table_data, "test", "text"),
        cache_key(stage1, table_data, "test", "image"),
        cache_key(stage1, table_data, "train", "text"),
        cache_key(other_weight, table_data, "test", "text"),
        cache_key(Stage1({**stage1.modalities, "text": shorter}), table_data, "test", "text"),
        cache_key(stage1, dataclasses.replace(table_data, content_hash="other"), "test", "text"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(other_weight, table_data, "test", "image") == keys[1]
    assert cache_key(dataclasses.replace(stage1, data="moved.csv"), table_data, "test", "text") == keys[0]


def test_another_encoder_gets_another_folder(tmp_path: Path) -> None:
    stage1, data = _arrays(_ragged())
    cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    cached_features(stage1, dataclasses.replace(data, content_hash="other"), "train", "sound", tmp_path, CPU)
    folders = sorted(p.name for p in (tmp_path / "features").iterdir())
    assert len(folders) == 2
    assert all(name.startswith("sound-train-") for name in folders)


@pytest.mark.parametrize("damage", ["byte", "truncated", "missing", "manifest", "schema"])
def test_a_damaged_cache_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    stage1, data = _arrays(_ragged())
    cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    (folder,) = (tmp_path / "features").iterdir()
    values, manifest = folder / "values.f16", folder / "manifest.json"
    content = values.read_bytes()
    if damage == "byte":
        values.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "truncated":
        values.write_bytes(content[:-2])
    elif damage == "missing":
        (folder / "starts.npy").unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-30])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    with pytest.raises(ArtifactError, match="is damaged or was changed; remove it to encode again") as caught:
        cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    assert str(folder) in str(caught.value)


def test_a_cache_of_other_encoders_is_refused(tmp_path: Path) -> None:
    """Even where somebody copied it into place."""
    stage1, data = _arrays(_ragged())
    cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    (folder,) = (tmp_path / "features").iterdir()
    with pytest.raises(ArtifactError, match="belongs to other encoders or data"):
        CachedFeatures(folder, CPU, "another key")


class _Broken(nn.Module):
    """Given features, spoiled."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.how == "no features":
            return features, mask & (features[..., 0] > 0) & False
        return features + {"NaN": torch.nan, "overflow": 1e5}[self.how], mask


@pytest.mark.parametrize(
    ("how", "words"), [("NaN", "NaN, infinite"), ("overflow", "65,504"), ("no features", "item 0")]
)
def test_unusable_features_are_refused_and_leave_nothing(tmp_path: Path, how: str, words: str) -> None:
    """What half precision cannot hold is said, not stored."""
    _, data = _arrays(_ragged())
    preprocess = FeaturesPreprocessor(3)
    encoder = FrozenEncoder(_Broken(how), preprocess, 3)
    items = data.split("train").items["sound"]
    with pytest.raises(DataError, match=words):
        module.encode_to_cache(encoder, preprocess, items, tmp_path / "cache", "key", "encoding sounds", CPU)
    assert list(tmp_path.iterdir()) == []


def test_an_item_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    stage1, data = _arrays([*_ragged(5), np.zeros((2, 4), np.float32)])
    with pytest.raises(DataError, match=r"cannot be encoded: .*\(length, 3\).*\(2, 4\)"):
        cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    assert list((tmp_path / "features").iterdir()) == []


def test_online_features_take_no_gradient(stage1: Stage1, table_data: PairDataset, tmp_path: Path) -> None:
    for source in feature_sources(stage1, table_data, "test", "online", tmp_path, CPU).values():
        assert isinstance(source, OnlineFeatures)
        features, _ = source.batch(np.arange(3))
        assert not features.requires_grad
    assert list(tmp_path.iterdir()) == []
