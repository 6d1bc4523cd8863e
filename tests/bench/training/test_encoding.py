"""The bare loop encodes what the cache holds, and both are given the same items."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.training.encoding import bare_loop, encoding_table, measure, write_subset
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.sources import cached_features

CPU = torch.device("cpu")


def test_the_bare_loop_gives_what_the_cache_holds(stage1: Stage1, table_data: PairDataset, tmp_path: Path) -> None:
    encoding = Encoding.of(stage1, table_data.split("test"), "image", CPU)
    cached = cached_features(stage1, table_data, "test", "image", tmp_path, CPU)
    expected = cached.batch(np.arange(len(cached))).features_BLD.numpy()
    found = [features.numpy() for features in bare_loop(encoding, size=5)]
    assert max(len(features) for features in found) <= 5
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=2e-3, atol=2e-3)  # float16 in the cache


def test_a_text_is_in_a_batch_of_its_length(stage1: Stage1, table_data: PairDataset) -> None:
    encoding = Encoding.of(stage1, table_data.split("test"), "text", CPU)
    widths = [features.shape[1] for features in bare_loop(encoding, size=4)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 1


def test_both_ways_are_timed_in_turns(table_path: Path, stage1: Stage1, tmp_path: Path) -> None:
    found = measure(stage1, dict.fromkeys(("image", "text"), str(table_path)), tmp_path, rounds=1)
    assert set(found) == {"image", "text"}
    for one in found.values():
        assert one["ratio"] == round(one["bare_s"][0] / one["build_s"][0], 3)
    assert "**" in encoding_table({"modalities": found})


def test_no_item_of_the_chosen_pairs_comes_twice(tmp_path: Path) -> None:
    table = tmp_path / "icons.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "image", "text", "caption"])
        for row in range(40):
            writer.writerow([f"thing-{row // 4}", "train", f"{row // 2}.png", f"a text {row // 2}", "tags"])
        writer.writerow(["held out", "test", "test.png", "held out", "tags"])
    (tmp_path / "subset").mkdir()
    with write_subset(table, tmp_path / "subset", 20).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["image"] for row in rows}) == len({row["text"] for row in rows}) == len(rows) == 20
    assert {row["image"] for row in rows} == {str(tmp_path / f"{row}.png") for row in range(20)}
    with pytest.raises(DataError, match="20 training pairs of different items; 21 are needed"):
        write_subset(table, tmp_path / "subset", 21)
