"""Peers train on the means of the features that ours reads, and are scored as ours is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.compare.contenders import OURS
from bench.compare.training import PEERS, StepTimes, TrainingPeer, pooled, train_peer, training_table
from fluxtalk.datasets import PairDataset
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import UsageError
from fluxtalk.model.encoders import Features

IDS = 64


class Ragged:
    """Two feature vectors of each even row, one of each odd one; what is padding is not zero."""

    dim = 3

    def __len__(self) -> int:
        return 4

    def batch(self, rows: np.ndarray) -> Features:  # type: ignore[type-arg]
        features = torch.arange(len(rows) * 6, dtype=torch.float32).reshape(len(rows), 2, 3)
        mask = torch.tensor([[True, row % 2 == 0] for row in rows.tolist()])
        return Features(features, mask)


def test_the_mean_leaves_padding_out() -> None:
    found = pooled(Ragged(), np.array([0, 1]))
    np.testing.assert_array_equal(found, [[1.5, 2.5, 3.5], [6, 7, 8]])


def _data(folder: Path) -> tuple[Path, PairDataset]:
    """Pairs of which one side is a linear map of the other."""
    rng = np.random.default_rng(0)
    turn = rng.standard_normal((12, 8))
    arrays: dict[str, Any] = {}
    splits = {}
    for split in ("train", "validation", "test"):
        images = rng.standard_normal((IDS, 12)).astype(np.float32)
        values = {"image": images, "text": (images @ turn).astype(np.float32)}
        items = {}
        for m, vectors in values.items():
            arrays[f"{split}_{m}"] = vectors
            arrays[f"{split}_{m}_ids"] = np.arange(IDS)
            items[m] = Items(list(vectors), np.arange(IDS), np.ones(IDS, dtype=bool))
        splits[split] = Split(split, tuple(map(str, range(IDS))), items, np.zeros(IDS, dtype=bool))
    np.savez(folder / "features.npz", **arrays)
    return folder / "features.npz", PairDataset("toy", ("image", "text"), splits, "toy")


def test_a_fusemix_like_training_finds_pairs(tmp_path: Path) -> None:
    features, dataset = _data(tmp_path)
    peer = next(one for one in PEERS if one.name == "fusemix")
    given = {"features": str(features), "batch_size": 32, "dim": 16, "seed": 0, "threads": 1}
    given["options"] = {**peer.options, "dropout": 0.0}
    found = train_peer(peer, tmp_path, given, 30, dataset, tmp_path)
    assert [one["epochs"] for one in found["tried"]] == [30, 60]
    assert found["steps"] in (60, 120)
    assert min(found["recall_at_10"].values()) > 0.5  # 0.16 by chance
    assert "FuseMix-like" in training_table({"contenders": {"fusemix": found}})


def test_a_peer_without_its_environment_is_a_sentence(tmp_path: Path) -> None:
    peer = TrainingPeer("gone", "gone", "sentence-transformers", "st_trainer.py")
    given = {"threads": 1}
    with pytest.raises(UsageError, match="make bench-compare-install"):
        train_peer(peer, tmp_path, given, 1, _data(tmp_path)[1], tmp_path)


def test_validations_are_not_counted_as_steps() -> None:
    times = StepTimes()
    for step in (1, 2, 3):
        times.on_step(step, {})
    times.on_validation(3, {}, torch.nn.Linear(2, 3))  # type: ignore[arg-type]
    time.sleep(0.2)
    times.on_step(4, {})
    times.on_step(5, {})
    assert len(times.seconds) == 3
    assert times.steps == 5
    assert max(times.seconds) < 0.2
    assert times.parameters == 9
    assert {peer.environment for peer in PEERS} == {OURS, "sentence-transformers"}
