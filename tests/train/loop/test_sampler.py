"""Sampling of batches: the same global batch for any number of processes, each id once per epoch."""

from __future__ import annotations

import numpy as np
import pytest

from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.errors import UsageError
from fluxtalk.train.loop.sampler import ABSENT, PairSampler

COUNTS = {"image": [3, 1, 2, 5, 1, 1, 4, 2, 1, 1, 3], "text": [1, 1, 1, 2, 1, 9, 1, 1, 1, 1, 1]}


def _split() -> Split:
    """Eleven ids with different numbers of items; the value of an item is its id and its number."""
    items = {}
    for modality, counts in COUNTS.items():
        groups = np.repeat(np.arange(11), counts)
        items[modality] = Items([f"{modality}-{g}" for g in groups], groups, np.ones(len(groups), dtype=bool))
    return Split("train", tuple(f"id-{i}" for i in range(11)), items, np.zeros(11, dtype=bool))


def test_rows_belong_to_their_ids() -> None:
    split = _split()
    sampler = PairSampler(split, 4, 1, 0, seed=0)
    for epoch in range(5):
        for step in range(sampler.steps_per_epoch):
            batch = sampler.batch(epoch, step)
            for modality, rows in batch.rows.items():
                assert [split.items[modality].values[r] for r in rows] == [f"{modality}-{i}" for i in batch.ids]


def test_an_epoch_visits_each_id_at_most_once_and_leaves_less_than_a_batch() -> None:
    sampler = PairSampler(_split(), 4, 1, 0, seed=0)
    assert (sampler.global_batch, sampler.steps_per_epoch) == (4, 2)
    visited = [np.concatenate([sampler.batch(epoch, step).ids for step in range(2)]) for epoch in range(60)]
    assert all(len(set(ids.tolist())) == 8 for ids in visited)
    # The ids left over change: over 60 epochs each is left out about 60 * 3 / 11 times.
    counts = np.bincount(np.concatenate(visited), minlength=11)
    assert counts.min() > 25
    assert any(not np.array_equal(visited[0], other) for other in visited[1:])


def test_every_item_of_an_id_is_drawn() -> None:
    """The five pictures of one id are all seen, about equally often."""
    sampler = PairSampler(_split(), 11, 1, 0, seed=0)
    rows = np.concatenate([sampler.batch(epoch, 0).rows["image"] for epoch in range(500)])
    counts = np.bincount(rows, minlength=sum(COUNTS["image"]))
    five = counts[6:11]
    assert five.sum() == 500
    assert five.min() > 60
    assert counts[3] == 500


def test_items_of_two_modalities_are_drawn_independently() -> None:
    """Id 3 has five pictures and two texts: all ten pairs occur."""
    sampler = PairSampler(_split(), 11, 1, 0, seed=0)
    pairs = set()
    for epoch in range(300):
        batch = sampler.batch(epoch, 0)
        at = int((batch.ids == 3).argmax())
        pairs.add((int(batch.rows["image"][at]), int(batch.rows["text"][at])))
    assert len(pairs) == 10


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_the_batch_of_one(processes: int) -> None:
    """Shares in rank order, without overlap, for any number of processes."""
    share = 10 // processes
    alone = PairSampler(_split(), share * processes, 1, 0, seed=4)
    together = [PairSampler(_split(), share, processes, rank, seed=4) for rank in range(processes)]
    for epoch in range(4):
        expected = alone.batch(epoch, 0)
        parts = [sampler.batch(epoch, 0) for sampler in together]
        assert np.array_equal(np.concatenate([part.ids for part in parts]), expected.ids)
        for modality, rows in expected.rows.items():
            assert np.array_equal(np.concatenate([part.rows[modality] for part in parts]), rows)


def test_a_batch_depends_on_seed_epoch_and_step_alone() -> None:
    """A resumed run sees what the uninterrupted one would have seen, in any order of asking."""
    forwards, backwards = PairSampler(_split(), 4, 1, 0, seed=2), PairSampler(_split(), 4, 1, 0, seed=2)
    other = PairSampler(_split(), 4, 1, 0, seed=3)
    places = [(epoch, step) for epoch in range(3) for step in range(2)]
    first = {place: forwards.batch(*place) for place in places}
    np.random.seed(1)  # the global generator must not matter
    for place in reversed(places):
        again = backwards.batch(*place)
        assert np.array_equal(again.ids, first[place].ids)
        for modality, rows in again.rows.items():
            assert np.array_equal(rows, first[place].rows[modality])
    assert any(not np.array_equal(other.batch(*place).ids, first[place].ids) for place in places)


def test_a_batch_larger_than_the_data_shrinks_to_it() -> None:
    sampler = PairSampler(_split(), 64, 1, 0, seed=0)
    assert (sampler.global_batch, sampler.steps_per_epoch) == (11, 1)
    shared = PairSampler(_split(), 64, 2, 1, seed=0)
    assert (shared.global_batch, shared.local) == (10, slice(5, 10))


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 12)])
def test_a_global_batch_below_two_is_refused(batch_size: int, processes: int) -> None:
    with pytest.raises(UsageError, match=rf"at least 2 ids; .* {batch_size} with {processes} process"):
        PairSampler(_split(), batch_size, processes, 0, seed=0)
    assert PairSampler(_split(), 1, 2, 0, seed=0).global_batch == 2


def test_real_data(table_data: PairDataset) -> None:
    """The table of the fixtures, with one or two pictures per name."""
    split = table_data.split("train")
    sampler = PairSampler(split, 32, 1, 0, seed=0)
    assert sampler.steps_per_epoch == len(split.ids) // 32
    batch = sampler.batch(0, 0)
    for modality, rows in batch.rows.items():
        assert np.array_equal(split.items[modality].groups[rows], batch.ids)


def test_several_items_of_each_id_are_different_where_there_are_as_many() -> None:
    split = _split()
    sampler = PairSampler(split, 8, 1, 0, seed=0, items_per_id=2)
    assert (sampler.global_batch, sampler.steps_per_epoch) == (8, 2)
    seen: dict[int, set[int]] = {}
    for epoch in range(40):
        batch = sampler.batch(epoch, 0)
        assert np.array_equal(batch.ids[::2], batch.ids[1::2])
        assert len(set(batch.ids.tolist())) == 4
        for modality, counts in COUNTS.items():
            pairs = batch.rows[modality].reshape(-1, 2)
            for id_, (a, b) in zip(batch.ids[::2], pairs.tolist(), strict=True):
                assert (a == b) == (counts[id_] == 1)
        for id_, row in zip(batch.ids.tolist(), batch.rows["image"].tolist(), strict=True):
            seen.setdefault(id_, set()).add(row)
    assert {id_: len(rows) for id_, rows in seen.items()} == dict(enumerate(COUNTS["image"]))


def test_an_id_without_a_modality_has_row_minus_one() -> None:
    groups = {"image": [0, 1, 1, 2], "text": [0, 1, 2], "audio": [1, 1, 1]}
    items = {m: Items(g, np.array(g), np.ones(len(g), dtype=bool)) for m, g in groups.items()}
    sampler = PairSampler(Split("train", ("a", "b", "c"), items, np.zeros(3, dtype=bool)), 3, 1, 0, seed=0)
    drawn = set()
    for epoch in range(60):
        batch = sampler.batch(epoch, 0)
        for id_, row in zip(batch.ids, batch.rows["audio"], strict=True):
            assert (row == ABSENT) == (id_ != 1)
            drawn.add(int(row))
        assert (batch.rows["image"] >= 0).all()
    assert drawn == {ABSENT, 0, 1, 2}


def test_forward_passes_divide_the_processs_rows() -> None:
    split = _split()
    whole = PairSampler(split, 8, 1, 0, seed=0).batch(0, 0)
    parts = []
    for rank in (0, 1):
        sampler = PairSampler(split, 2, 2, rank, seed=0, accum_steps=2)
        assert sampler.global_batch == 8
        passes = sampler.passes(sampler.batch(0, 0))
        assert [len(p.ids) for p in passes] == [2, 2]
        parts += passes
    assert np.array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
    assert np.array_equal(np.concatenate([p.rows["image"] for p in parts]), whole.rows["image"])
    assert np.concatenate([p.places for p in parts]).tolist() == list(range(8))


def test_a_batch_that_does_not_divide_into_items_per_id_is_refused() -> None:
    with pytest.raises(UsageError, match="8 rows does not divide into --items-per-id 3"):
        PairSampler(_split(), 8, 1, 0, seed=0, items_per_id=3)
    with pytest.raises(UsageError, match="at least 2 ids"):
        PairSampler(_split(), 2, 1, 0, seed=0, items_per_id=2)
