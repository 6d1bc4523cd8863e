"""The features that training reads are the encoder's own, from a cache or online, whole or reduced."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxtalk.datasets import PairDataset
from fluxtalk.errors import ArtifactError, DataError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features import sources as module
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import (
    CachedFeatures,
    OnlineFeatures,
    cache_key,
    cached_features,
    feature_sources,
    fitted_reductions,
    reduced_dims,
)
from tests.forked import in_processes
from tests.train.features.given_features import CPU, DIM, given, ragged, require_rows


@pytest.mark.parametrize("modality", ["image", "text"])
def test_cached_features_are_the_encoders(
    stage1: Stage1, table_data: PairDataset, tmp_path: Path, modality: str
) -> None:
    """Equal to half precision, in any order, with the same mask, and nothing on padding."""
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


@pytest.mark.parametrize("encode", ["cache", "online"])
def test_absent_items_are_all_padding(tmp_path: Path, encode: str) -> None:
    """A row of -1 leaves the others where they are; a batch of nothing else has one column."""
    values = ragged()
    source = feature_sources(*given(values), "train", encode, tmp_path, CPU)["sound"]
    rows = np.array([-1, 4, -1, 0])
    features, mask = source.batch(rows)
    assert features.shape == (4, 5, DIM)
    assert mask.sum(dim=1).tolist() == [0, 5, 0, 1]
    assert (features[~mask] == 0).all()
    for position in (1, 3):
        assert np.array_equal(features[position][mask[position]].numpy(), values[rows[position]])
    features, mask = source.batch(np.array([-1, -1]))
    assert features.shape == (2, 1, DIM)
    assert not features.any()
    assert not mask.any()


def test_the_second_use_does_not_encode_again(
    stage1: Stage1, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    first = cached_features(stage1, table_data, "test", "text", tmp_path, CPU, say=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"encoding {len(first)} test items of text once, into {tmp_path}")

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(module, "build_cache", refuse)
    second = cached_features(stage1, table_data, "test", "text", tmp_path, CPU)
    rows = np.arange(len(first))
    assert torch.equal(first.batch(rows).features_BLD, second.batch(rows).features_BLD)
    with pytest.raises(AssertionError, match="encoded again"):
        cached_features(stage1, table_data, "validation", "text", tmp_path, CPU)


def test_what_changes_features_changes_the_key(stage1: Stage1, table_data: PairDataset) -> None:
    """Another weight, preprocessing, data set, split, modality, type or reduction is another folder."""
    text = stage1.modalities["text"]
    name = next(iter(text.weights))
    weight = dataclasses.replace(text, weights={**text.weights, name: text.weights[name] + 1})
    other_weight = Stage1({**stage1.modalities, "text": weight})
    config, files = text.preprocess.to_parts()
    shorter = dataclasses.replace(
        text,
        preprocess=type(text.preprocess).from_parts({**config, "max_length": 5}, files),  # type: ignore[attr-defined]
    )
    pooled = FeatureReduction(ReductionConfig(text.spec.dim, 2))
    other_data = dataclasses.replace(table_data, content_hash="other")
    plain = cache_key(stage1, table_data, "test", "text")
    changed = {
        "encoder": cache_key(other_weight, table_data, "test", "text"),
        "preprocessing": cache_key(Stage1({**stage1.modalities, "text": shorter}), table_data, "test", "text"),
        "data": cache_key(stage1, other_data, "test", "text"),
        "split": cache_key(stage1, table_data, "train", "text"),
        "dtype": cache_key(stage1, table_data, "test", "text", CacheOptions("int8")),
        "reduction": cache_key(stage1, table_data, "test", "text", reduction=pooled),
    }
    image = cache_key(stage1, table_data, "test", "image")
    assert len({key.hash() for key in (plain, image, *changed.values())}) == 8
    for field, key in changed.items():
        assert plain.differences(key) == [field]
    assert cache_key(other_weight, table_data, "test", "image") == image
    assert cache_key(dataclasses.replace(stage1, data="moved.csv"), table_data, "test", "text") == plain


def test_an_item_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Named by row, modality, split and id; everything else is encoded and kept."""
    stage1, data = given([*ragged(5), np.zeros((2, DIM + 1), np.float32)])
    with pytest.raises(DataError, match=r"Item 5 of sound in the train split \(id 'id 5'\) cannot be .*\(2, 7\)"):
        cached_features(stage1, data, "train", "sound", tmp_path, CPU)
    (folder,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    kept = CachedFeatures(folder, CPU)
    assert kept.manifest.bad.keys() == {5}
    require_rows(kept.batch(np.arange(5)), ragged(5))


def test_a_split_without_the_modality_is_said(tmp_path: Path) -> None:
    stage1, data = given(ragged())
    both = Stage1({**stage1.modalities, "smell": stage1.modalities["sound"]})
    with pytest.raises(DataError, match="train split has sound and no smell"):
        feature_sources(both, data, "train", "cache", tmp_path, CPU)


def test_online_features_take_no_gradient(stage1: Stage1, table_data: PairDataset, tmp_path: Path) -> None:
    for source in feature_sources(stage1, table_data, "test", "online", tmp_path, CPU).values():
        assert isinstance(source, OnlineFeatures)
        features, _ = source.batch(np.arange(3))
        assert not features.requires_grad
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [CacheOptions(pool=2), CacheOptions(pca=3), CacheOptions(pool=3, pca=2)])
def test_reduced_features_are_the_reduction_of_the_whole(tmp_path: Path, options: CacheOptions) -> None:
    """Equal from the cache and online, and never those of another cache."""
    values = ragged(200)
    stage1, data = given(values)
    reductions = fitted_reductions(stage1, data, options, tmp_path, CPU, SingleProcess())
    rows = np.array([6, 0, -1, 13, 3])
    whole = feature_sources(stage1, data, "train", "cache", tmp_path, CPU)["sound"].batch(rows)
    expected = reductions["sound"](whole)
    for encode in ("cache", "online"):
        source = feature_sources(stage1, data, "train", encode, tmp_path, CPU, options, reductions)["sound"]
        assert source.dim == reduced_dims(stage1, reductions)["sound"] == (options.pca or DIM)
        features, mask = source.batch(rows)
        assert torch.equal(mask, expected.mask_BL)
        torch.testing.assert_close(features, expected.features_BLD, rtol=2**-10, atol=1e-3)
        assert (features[~mask] == 0).all()
    # Without reductions given, the options alone say the same.
    again = feature_sources(stage1, data, "train", "cache", tmp_path, CPU, options)["sound"]
    assert torch.equal(again.batch(rows).mask_BL, expected.mask_BL)
    assert again.dim == source.dim


def test_pca_is_fitted_once_on_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projected on the leading directions; read back bit for bit; another data set's or a damaged one is refused."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((DIM, 2)))[0].T
    flat = [(rng.standard_normal((5, 2)) @ plane + 4).astype(np.float32) for _ in range(50)]
    stage1, data = given(flat)
    options = CacheOptions(pca=2)
    first = fitted_reductions(stage1, data, options, tmp_path, CPU, SingleProcess())["sound"]
    # The data lies in a plane: two components give it back.
    values = torch.from_numpy(flat[3])
    torch.testing.assert_close((values - first.mean) @ first.components.T @ first.components + first.mean, values)
    with monkeypatch.context() as patched:
        patched.setattr("fluxtalk.train.features.fit_reduction.principal_components", None)
        again = fitted_reductions(stage1, data, options, tmp_path, CPU, SingleProcess())["sound"]
    assert again.content_hash() == first.content_hash()
    (path,) = (tmp_path / "features").glob("sound-pca2-*.safetensors")
    other = dataclasses.replace(data, content_hash="other")
    fitted_reductions(stage1, other, options, tmp_path, CPU, SingleProcess())
    (theirs,) = set((tmp_path / "features").iterdir()) - {path}
    content = path.read_bytes()
    theirs.write_bytes(content)
    with pytest.raises(ArtifactError, match="belongs to another encoder, data set or setting"):
        fitted_reductions(stage1, other, options, tmp_path, CPU, SingleProcess())
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"sound-pca2-.* is damaged or foreign"):
        fitted_reductions(stage1, data, options, tmp_path, CPU, SingleProcess())


def test_nothing_is_reduced_that_need_not_be(tmp_path: Path) -> None:
    """Also where the features have no more dimensions than PCA keeps."""
    stage1, data = given(ragged())
    for options in (CacheOptions(), CacheOptions("int8"), CacheOptions(pca=DIM), CacheOptions(pca=DIM + 1)):
        assert fitted_reductions(stage1, data, options, tmp_path, CPU, SingleProcess()) == {}
    assert reduced_dims(stage1, {}) == {"sound": DIM}


@pytest.mark.parametrize(
    ("options", "words"), [({"dtype": "fp8"}, "fp16 or int8"), ({"pca": -1}, "got -1"), ({"pool": 0}, "got 0")]
)
def test_impossible_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CacheOptions(**options)  # type: ignore[arg-type]


_RANK = """
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.features.build import build_cache
from fluxtalk.train.features import sources as features
from tests.train.features.given_features import given, ragged

def few(*arguments):
    build_cache(*arguments, items_per_shard=8)

def main(folder):
    features.build_cache = few
    with join_process_group("cpu") as (group, device):
        stage1, data = given(ragged())
        options = CacheOptions(pca=3)
        source = features.feature_sources(stage1, data, "train", "cache", folder, device, options, None, group)
        assert len(source["sound"]) == 40
        (folder / f"rank-{group.rank}").write_text(str(len(source["sound"].manifest.shards)))
"""


def test_two_processes_build_what_one_builds(tmp_path: Path) -> None:
    """Each its shards; and the cache is the same, byte for byte."""
    (tmp_path / "each_rank.py").write_text(_RANK)
    in_processes("each_rank:main", [(2, (tmp_path / "two",))], tmp_path, tmp_path)
    assert [(tmp_path / "two" / f"rank-{rank}").read_text() for rank in (0, 1)] == ["5", "5"]
    (two,) = (p for p in (tmp_path / "two" / "features").iterdir() if p.is_dir())
    options = CacheOptions(pca=3)
    stage1, data = given(ragged())
    whole = feature_sources(stage1, data, "train", "cache", tmp_path / "one", CPU, options)["sound"]
    shared = CachedFeatures(two, CPU)
    rows = np.arange(40)
    assert torch.equal(whole.batch(rows).features_BLD, shared.batch(rows).features_BLD)
    assert isinstance(whole, CachedFeatures)
    assert whole.manifest.key == shared.manifest.key
