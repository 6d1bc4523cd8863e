"""The items of a batch fit in memory, and do not change what is cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fluxtalk.train.features import encode_batch
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.encode_batch import EncodeBatch, LiveBytes, most_at_a_time
from fluxtalk.train.features.encoding import Encoding
from tests.train.features.given_features import CPU, build, given, ragged, require_rows


def test_tensors_in_use_are_counted_and_weights_and_views_are_not() -> None:
    layer, x = nn.Linear(1000, 1000, bias=False), torch.ones(25, 1000)
    with torch.no_grad(), LiveBytes() as live:
        for _ in range(3):
            y = layer(x).relu()  # two of 100 kB at a time, and what the round before left
            y = y.view(-1)
    assert live.peak == 3 * 100_000
    assert y.sum().isfinite()


def test_fewer_items_are_encoded_at_a_time_where_memory_is_short(tmp_path: Path) -> None:
    stage1, data = given(ragged())
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    prepared = [encoding.prepare(row) for row in range(40)]
    said: list[str] = []
    each = EncodeBatch(encoding, said.append)
    assert each.size(prepared, range(40)) == most_at_a_time(CPU) == 16
    assert said == []
    short = EncodeBatch(encoding, said.append, available=5_000)
    size = short.size(prepared, range(40))
    assert 1 <= size < 40
    assert said[0].startswith(f"encoding {size} sound items at a time: one takes")
    assert EncodeBatch(encoding, said.append, available=0).size(prepared, range(40)) == 1


def test_a_cache_does_not_depend_on_the_items_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_batch, "_FEW", 2)
    monkeypatch.setattr(encode_batch, "available_memory", lambda: 0)
    said: list[str] = []
    build(tmp_path, ragged(), said=said)
    assert [line for line in said if line.startswith("encoding 1 sound items at a time")]
    require_rows(CachedFeatures(tmp_path, CPU).batch(np.arange(40)), ragged(), 0.0)
