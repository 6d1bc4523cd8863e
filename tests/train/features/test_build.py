"""A build goes on where it was killed, refuses what cannot be stored, and is one at a time."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fluxtalk.artifacts.files import hash_file
from fluxtalk.errors import ArtifactError, DataError
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features import build as feature_build
from fluxtalk.train.features.build import build_cache, build_lock
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.sources import cache_key
from tests.artifacts.test_cache import WRITTEN
from tests.train.features.given_features import CPU, DIM, PER_SHARD, build, flip, given, ragged, require_rows

ROOT = Path(__file__).resolve().parents[3]


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
        ("no features", "fp16", "it has no feature vector"),
    ],
)
def test_unusable_features_are_told_and_not_stored(tmp_path: Path, how: str, dtype: str, words: str) -> None:
    """Values that the stored type cannot hold have no vector; the items beside them keep theirs."""
    values = ragged()
    build(tmp_path, values, dtype, _Spoiled(how))
    cache = CachedFeatures(tmp_path, CPU)
    assert len(cache.manifest.bad) > 0
    assert all(words in why for why in cache.manifest.bad.values())
    lengths = cache.batch(np.arange(len(values))).mask_BL.sum(dim=1).tolist()
    assert {row for row, length in enumerate(lengths) if not length} == cache.manifest.bad.keys()


def test_an_encoder_that_gives_nothing_usable_ends_the_build(tmp_path: Path) -> None:
    """Not the items are at fault then: encoding the rest would be hours for nothing."""
    stage1, data = given(ragged())
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    frozen = FrozenEncoder(_Spoiled("overflow"), encoding.preprocess, DIM)
    encoding = dataclasses.replace(encoding, encoder=frozen)
    with pytest.raises(DataError, match=r"Not one of 20 items.*id 0.*65,504.*correct the data or the encoder"):
        build_cache(encoding, cache_key(stage1, data, "train", "sound"), tmp_path, SingleProcess(), print, 20)


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
    """Whole shards are not encoded again; half-written files and damaged shards are."""
    whole = tmp_path / "whole"
    build(whole, ragged())
    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build(folder, ragged(), encoder=_Counting(until=3 * PER_SHARD))
    with pytest.raises(ArtifactError, match="not a finished feature cache"):
        CachedFeatures(folder, CPU)
    flip(folder / "00001.values.npy")
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
from tests.train.features import given_features as tests

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
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ArtifactError, match="not a finished feature cache"):
        CachedFeatures(tmp_path, CPU)
    counting = _Counting()
    key = build(tmp_path, ragged(), encoder=counting)
    assert 0 < counting.seen <= 40 - 2 * PER_SHARD
    require_rows(CachedFeatures(tmp_path, CPU, key).batch(np.arange(40)), ragged())
    assert not list(tmp_path.glob(".*.tmp"))


def test_two_runs_do_not_build_at_the_same_time(tmp_path: Path) -> None:
    """The second waits for the first, says so, and finds the cache."""
    said: list[str] = []
    with build_lock(tmp_path, SingleProcess(), said.append) as missing:
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


def test_shards_hold_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer items per shard where items are larger, the most allowed where they are small."""
    stage1, data = given([np.ones((length, DIM), np.float32) for length in [100] * 64])
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    assert feature_build._items_per_shard(encoding) == 4096
    monkeypatch.setattr(feature_build, "_SHARD_BYTES", 10 * 100 * DIM * 4)
    assert feature_build._items_per_shard(encoding) == 8
    monkeypatch.setattr(feature_build, "_SHARD_BYTES", 10)
    assert feature_build._items_per_shard(encoding) == 1


def test_a_build_is_the_cache_that_earlier_versions_wrote(tmp_path: Path) -> None:
    """The same key, bytes and manifest: caches from before are found and read."""
    build(tmp_path, ragged(4))
    assert json.loads((tmp_path / "manifest.json").read_text()) == WRITTEN
