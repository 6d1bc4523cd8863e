"""A feature cache holds what was encoded, and is whole or not used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxtalk.artifacts.cache import CacheKey
from fluxtalk.artifacts.files import hash_file
from fluxtalk.errors import ArtifactError
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features.build import build_cache
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.encode_shard import quantize
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.sources import cache_key
from tests.train.features.given_features import CPU, DIM, PER_SHARD, build, flip, given, ragged, require_rows


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.0), ("int8", 0.5 / 127 * 1.001)])
def test_items_come_back_in_any_order(tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Several shards at once, although encoding sorts by length; int8 to half a step of its scale."""
    values = ragged()
    key = build(tmp_path / "cache", values, dtype)
    cached = CachedFeatures(tmp_path / "cache", CPU, key)
    assert len(cached) == 40
    assert [shard.items for shard in cached.manifest.shards] == [9, 9, 9, 9, 4]
    for rows in (np.arange(40), np.random.default_rng(0).permutation(40), np.array([39, 0, 13, 39]), np.array([7])):
        require_rows(cached.batch(rows), [values[row] for row in rows], tolerance)


def test_int8_keeps_every_vector_to_half_a_step() -> None:
    """However large it is, and zero as zero."""
    vectors = torch.randn(50, 12) * torch.logspace(-30, 30, 50)[:, None]
    vectors[7] = 0
    codes, scales = quantize(vectors)
    assert codes.dtype == torch.int8
    assert (codes.abs().amax(dim=1)[vectors.any(dim=1)] == 127).all()
    assert ((codes.float() * scales[:, None] - vectors).abs() <= scales[:, None] * 0.5001).all()


def test_a_cache_says_whose_items_it_holds(tmp_path: Path) -> None:
    """Readable without FluxTalk: plain .npy and JSON."""
    build(tmp_path, ragged())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    pairs = json.loads((tmp_path / "pairs.json").read_text())
    assert [pairs["ids"][group] for group in pairs["groups"]] == [f"id {i}" for i in range(40)]
    assert manifest["key"]["modality"] == "sound"
    assert manifest["key"]["split"] == "train"
    assert manifest["key"]["data"] == "hash"
    assert (manifest["dim"], manifest["items"], manifest["vectors"]) == (DIM, 40, sum(len(v) for v in ragged()))
    for index, shard in enumerate(manifest["shards"]):
        assert np.load(tmp_path / f"{index:05d}.values.npy").shape == (shard["vectors"], DIM)
        for name, checksum in shard["sha256"].items():
            assert hash_file(tmp_path / name) == checksum


DAMAGES: dict[str, Callable[[Path], object]] = {
    "values": lambda folder: flip(folder / "00001.values.npy"),
    "scales": lambda folder: flip(folder / "00001.scales.npy"),
    "lengths": lambda folder: flip(folder / "00002.lengths.npy"),
    "truncated": lambda folder: os.truncate(folder / "00001.values.npy", 200),
    "missing": lambda folder: (folder / "00003.lengths.npy").unlink(),
    "pairs": lambda folder: flip(folder / "pairs.json"),
    "manifest": lambda folder: os.truncate(folder / "manifest.json", 300),
    "dim": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"items": 40', '"items": 39')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    key = build(tmp_path / "cache", ragged(), "int8")
    CachedFeatures(tmp_path / "cache", CPU, key)
    DAMAGES[damage](tmp_path / "cache")
    with pytest.raises(ArtifactError, match=r"is damaged: .* was changed; remove it to encode again") as caught:
        CachedFeatures(tmp_path / "cache", CPU, key)
    assert str(tmp_path / "cache") in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "missing", "lengths"])
def test_sizes_are_compared_even_without_verifying(tmp_path: Path, damage: str) -> None:
    """Reads out of bounds are refused; a flipped bit of a value is not seen then."""
    key = build(tmp_path, ragged())
    DAMAGES["values"](tmp_path)
    CachedFeatures(tmp_path, CPU, key, verify=False)
    if damage == "lengths":
        np.save(tmp_path / "00002.lengths.npy", np.full(PER_SHARD, 3, np.int32))
    else:
        DAMAGES[damage](tmp_path)
    with pytest.raises(ArtifactError, match="is damaged"):
        CachedFeatures(tmp_path, CPU, key, verify=False)


@pytest.mark.parametrize("field", ["encoder", "preprocessing", "data", "split", "modality", "dtype", "reduction"])
def test_a_foreign_cache_is_refused_with_what_does_not_match(tmp_path: Path, field: str) -> None:
    """Refused even if somebody copied it into place."""
    key = build(tmp_path, ragged())
    # Another preprocessing changes the encoder's hash too, and is what is named.
    other = {field: "int8" if field == "dtype" else "other"} | ({"encoder": "x"} if field == "preprocessing" else {})
    with pytest.raises(ArtifactError, match=rf"was made for another {field}; remove it") as caught:
        CachedFeatures(tmp_path, CPU, CacheKey.from_dict({**key.to_dict(), **other}))
    assert str(tmp_path) in str(caught.value)


def test_another_schema_and_an_unfinished_build_are_refused(tmp_path: Path) -> None:
    build(tmp_path, ragged())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(ArtifactError, match="has schema 99; this FluxTalk reads 2"):
        CachedFeatures(tmp_path, CPU)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="is not a finished feature cache"):
        CachedFeatures(tmp_path, CPU)


def test_threads_read_the_same(tmp_path: Path) -> None:
    """A background thread may gather the next batch."""
    cached = CachedFeatures(tmp_path, CPU, build(tmp_path, ragged()))
    with ThreadPoolExecutor(4) as pool:
        for number, batch in enumerate(pool.map(cached.batch, [np.array([i, 39 - i]) for i in range(40)])):
            require_rows(batch, [ragged()[number], ragged()[39 - number]])


def test_an_empty_modality_is_an_empty_cache(tmp_path: Path) -> None:
    """No item of it in this split: every row is absent."""
    stage1, data = given([])
    encoding = Encoding.of(stage1, data.splits["train"], "sound", CPU)
    key = cache_key(stage1, data, "train", "sound")
    tmp_path.mkdir(exist_ok=True)
    build_cache(encoding, key, tmp_path, SingleProcess(), lambda _: None)
    cached = CachedFeatures(tmp_path, CPU, key)
    assert len(cached) == 0
    features, mask = cached.batch(np.array([-1, -1]))
    assert features.shape == (2, 1, DIM)
    assert not mask.any()


def test_the_pattern_of_a_cache_folder(tmp_path: Path) -> None:
    """Modality and split can be read off its name."""
    stage1, data = given(ragged())
    name = cache_key(stage1, data, "train", "sound").folder(tmp_path).name
    assert re.fullmatch(r"sound-train-[0-9a-f]{16}", name)
