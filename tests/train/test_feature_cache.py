"""A feature cache holds what was encoded, is whole or not used, and goes on where a build was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.artifacts import hash_file
from fluxtalk.errors import ArtifactError, DataError
from fluxtalk.model.encoders import Features, FrozenEncoder
from fluxtalk.model.world import OneProcess
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.train import feature_build
from fluxtalk.train.cache_options import CacheOptions
from fluxtalk.train.encoding import Encoding
from fluxtalk.train.feature_build import build_cache, building_turn, quantise
from fluxtalk.train.feature_cache import CachedFeatures, CacheKey
from fluxtalk.train.features import cache_key
from tests.train.given_features import CPU, DIM, Arrays, given, ragged

ROOT = Path(__file__).resolve().parents[2]
PER_SHARD = 9


def build(
    folder: Path, values: Arrays, dtype: str = "fp16", encoder: nn.Module | None = None, said: list[str] | None = None
) -> CacheKey:
    """Build a cache of given features, possibly spoiled by an encoder."""
    stage1, data = given(values)
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    if encoder is not None:
        frozen = FrozenEncoder(encoder, FeaturesPreprocessor(DIM), DIM)
        encoding = Encoding(encoding.split, "sound", encoding.preprocess, frozen, encoding.reduction, CPU)
    key = cache_key(stage1, data, "train", "sound", CacheOptions(dtype))
    say: Callable[[str], None] = (said if said is not None else []).append
    with building_turn(folder, OneProcess(), say) as missing:
        if missing:
            build_cache(encoding, key, folder, OneProcess(), say, PER_SHARD)
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.0), ("int8", 0.5 / 127 * 1.001)])
def test_items_come_back_in_any_order(tmp_path: Path, dtype: str, tolerance: float) -> None:
    """From several shards at once, and though encoding sorts by length; int8 to half a step of its scale."""
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
    codes, scales = quantise(vectors)
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


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "values": lambda folder: _flip(folder / "00001.values.npy"),
    "scales": lambda folder: _flip(folder / "00001.scales.npy"),
    "lengths": lambda folder: _flip(folder / "00002.lengths.npy"),
    "truncated": lambda folder: os.truncate(folder / "00001.values.npy", 200),
    "missing": lambda folder: (folder / "00003.lengths.npy").unlink(),
    "pairs": lambda folder: _flip(folder / "pairs.json"),
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
    """What would be read out of bounds is refused; a flipped bit of a value is what is then not seen."""
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
    """Even where somebody copied it into place."""
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
    with pytest.raises(ArtifactError, match="is no finished feature cache"):
        CachedFeatures(tmp_path, CPU)


class _Spoiled(nn.Module):
    """Given features, spoiled."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.how == "NaN":
            features = torch.where(features == features.max(), torch.nan, features)
        elif self.how == "overflow":
            features = features * 1e6
        else:
            mask = mask & (torch.arange(mask.shape[1]) > 0)
        return features, mask


@pytest.mark.parametrize(
    ("how", "dtype", "words"),
    [
        ("NaN", "fp16", "NaN, infinite"),
        ("NaN", "int8", "NaN or infinite"),
        ("overflow", "fp16", "65,504"),
        ("no features", "fp16", "item 0 has no feature vector"),
    ],
)
def test_unusable_features_are_refused_and_leave_no_cache(tmp_path: Path, how: str, dtype: str, words: str) -> None:
    """What the stored type cannot hold is said, not stored."""
    with pytest.raises(DataError, match=words):
        build(tmp_path, ragged(), dtype, _Spoiled(how))
    assert list(tmp_path.glob("*")) == []


def test_int8_holds_what_half_precision_cannot(tmp_path: Path) -> None:
    build(tmp_path, ragged(), "int8", _Spoiled("overflow"))
    require_rows(CachedFeatures(tmp_path, CPU).batch(np.arange(40)), [1e6 * v for v in ragged()], 0.5 / 127 * 1.001)


class _Counting(nn.Module):
    """Given features; remembers how many items it saw, and fails after some."""

    def __init__(self, until: int | None = None) -> None:
        super().__init__()
        self.seen = 0
        self.until = until

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        if self.until is not None and self.seen >= self.until:
            raise KeyboardInterrupt
        self.seen += len(features)
        return features


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    """What is whole is not encoded again; a half-written file or a damaged shard is."""
    whole = tmp_path / "whole"
    build(whole, ragged())
    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build(folder, ragged(), encoder=_Counting(until=3 * PER_SHARD))
    with pytest.raises(ArtifactError, match="no finished feature cache"):
        CachedFeatures(folder, CPU)
    _flip(folder / "00001.values.npy")
    (folder / ".00003.values.npy.abc.tmp").write_bytes(b"half")
    (folder / "00003.values.npy").write_bytes(b"without a record")
    said: list[str] = []
    counting = _Counting()
    key = build(folder, ragged(), encoder=counting, said=said)
    assert said == ["cache: 2 of 5 shards are there from an interrupted build"]
    assert counting.seen == 40 - 2 * PER_SHARD
    CachedFeatures(folder, CPU, key)
    assert {p.name: hash_file(p) for p in folder.iterdir()} == {p.name: hash_file(p) for p in whole.iterdir()}


_SLOW = """
import sys, time
import torch
from pathlib import Path
from tests.train import test_feature_cache as tests

class Slow(torch.nn.Module):
    def forward(self, features, mask):
        time.sleep(0.2)
        return features

tests.build(Path(sys.argv[1]), tests.ragged(), encoder=Slow())
"""


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    """SIGKILL between two shards: no cleaning up is possible, and none is needed."""
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "00001.json").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ArtifactError, match="no finished feature cache"):
        CachedFeatures(tmp_path, CPU)
    counting = _Counting()
    key = build(tmp_path, ragged(), encoder=counting)
    assert 0 < counting.seen <= 40 - 2 * PER_SHARD
    require_rows(CachedFeatures(tmp_path, CPU, key).batch(np.arange(40)), ragged())
    assert not list(tmp_path.glob(".*.tmp"))


def test_two_runs_do_not_build_at_the_same_time(tmp_path: Path) -> None:
    """The second waits for the first, says so, and finds the cache."""
    said: list[str] = []
    with building_turn(tmp_path, OneProcess(), said.append) as missing:
        assert missing
        other = threading.Thread(target=build, args=(tmp_path, ragged()), kwargs={"said": said})
        other.start()
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said == [f"{tmp_path.name} is being built by another run; waiting for it"]
        (tmp_path / "manifest.json").write_text("built")
    other.join(30)
    assert not other.is_alive()
    assert (tmp_path / "manifest.json").read_text() == "built"


def test_threads_read_the_same(tmp_path: Path) -> None:
    """A background thread may gather the next batch."""
    cached = CachedFeatures(tmp_path, CPU, build(tmp_path, ragged()))
    with ThreadPoolExecutor(4) as pool:
        for number, batch in enumerate(pool.map(cached.batch, [np.array([i, 39 - i]) for i in range(40)])):
            require_rows(batch, [ragged()[number], ragged()[39 - number]])


def test_shards_hold_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer items per shard where items are larger, the most allowed where they are small."""
    stage1, data = given([np.ones((length, DIM), np.float32) for length in [100] * 64])
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    assert feature_build._items_per_shard(encoding) == 4096
    monkeypatch.setattr(feature_build, "_SHARD_BYTES", 10 * 100 * DIM * 4)
    assert feature_build._items_per_shard(encoding) == 8
    monkeypatch.setattr(feature_build, "_SHARD_BYTES", 10)
    assert feature_build._items_per_shard(encoding) == 1


def test_an_empty_modality_is_an_empty_cache(tmp_path: Path) -> None:
    """No item of it in this split: every row is absent."""
    stage1, data = given([])
    encoding = Encoding.of(stage1, data.splits["train"], "sound", CPU)
    key = cache_key(stage1, data, "train", "sound")
    tmp_path.mkdir(exist_ok=True)
    build_cache(encoding, key, tmp_path, OneProcess(), lambda _: None)
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
