"""Shards read from front to end, divided over ranks and workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fluxtalk.datasets.shards import shards
from fluxtalk.errors import BackendError, DataError, UsageError
from tests.datasets.shard_files import QUERY, expected_values, plain, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of 25 samples each."""
    write_shards(tmp_path)
    return tmp_path


def test_two_ranks_of_two_workers_see_every_sample_once(folder: Path) -> None:
    name = f"{folder}/s-{{00..03}}.tar{QUERY}"
    parts = [list(shards.stream(name, rank, 2, worker, 2)) for rank in range(2) for worker in range(2)]
    assert all(len(part) == 25 for part in parts)
    samples = [sample for part in parts for sample in part]
    assert sorted(sample.key for sample in samples) == [f"part/{i:03}" for i in range(100)]
    for sample in samples:
        assert plain(dict(sample.values)) == expected_values(int(sample.key[-3:]))
    assert [s.key for s in shards.stream(name)] == [f"part/{i:03}" for i in range(100)]


def test_streams_that_cannot_be_are_refused(folder: Path) -> None:
    name = f"{folder}/s-{{00..03}}.tar{QUERY}"
    with pytest.raises(DataError, match="4 shards, too few for 5 processes with 1 workers"):
        shards.stream(name, 0, 5)
    with pytest.raises(UsageError, match="got rank 2 and worker 0"):
        shards.stream(name, 2, 2)
    with pytest.raises(UsageError, match=r"got 'pairs\.csv'"):
        shards.stream("pairs.csv")
    whole = (folder / "s-00.tar").read_bytes()
    (folder / "s-00.tar").write_bytes(whole[: whole.index(b"text 20") + 3])
    with pytest.raises(DataError, match=r"s-00\.tar cannot be read to its end \(unexpected end of data\)"):
        list(shards.stream(name))


def test_a_stream_without_webdataset_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(BackendError, match=r"pip install 'fluxtalk\[data\]'"):
        next(shards.stream(f"{folder}/s-00.tar{QUERY}"))
