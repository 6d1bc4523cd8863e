"""The background loader: the plan's batches in order, errors where they are asked for, no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fluxtalk.model.encoders import Features
from fluxtalk.train.loop.loader import BatchLoader
from fluxtalk.train.loop.sampler import PairRows

CPU = torch.device("cpu")


class Slow:
    """A source that takes its time, or fails at a row."""

    dim = 1

    def __init__(self, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self._seconds = seconds
        self._fail_at = fail_at

    def __len__(self) -> int:
        return 100

    def batch(self, rows: NDArray[np.int64]) -> Features:
        time.sleep(self._seconds)
        if self._fail_at is not None and self._fail_at in rows:
            raise OSError("the disk is gone")
        return Features(torch.from_numpy(rows).float()[:, None, None], torch.ones(len(rows), 1, dtype=torch.bool))


def plan(count: int) -> Iterator[PairRows]:
    for i in range(count):
        rows = np.array([2 * i, 2 * i + 1])
        yield PairRows(rows, {"image": rows}, rows)


def names() -> list[str]:
    return [t.name for t in threading.enumerate()]


def test_batches_come_in_order_and_the_thread_ends() -> None:
    with BatchLoader({"image": Slow()}, plan(20), CPU) as loader:
        firsts = [int(loader.next().features["image"][0]) for _ in range(20)]
    assert firsts == [2 * i for i in range(20)]
    assert "batch-loader" not in names()


def test_leaving_early_ends_the_thread() -> None:
    with BatchLoader({"image": Slow()}, plan(1000), CPU) as loader:
        loader.next()
        assert "batch-loader" in names()
    assert "batch-loader" not in names()


def test_an_error_is_raised_where_the_batch_is_asked_for() -> None:
    with BatchLoader({"image": Slow(fail_at=5)}, plan(10), CPU) as loader:
        assert loader.next().ids.tolist() == [0, 1]
        assert loader.next().ids.tolist() == [2, 3]
        with pytest.raises(OSError, match="the disk is gone"):
            loader.next()
    assert "batch-loader" not in names()


class Watched(Slow):
    """Counts what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = threading.Semaphore(0)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        found = super().batch(rows)
        self.read.release()
        return found


def test_reading_overlaps_with_what_the_caller_does() -> None:
    """The next batches are read while the caller computes; what is not ready when it is asked for is waited for."""
    source = Watched()
    with BatchLoader({"image": source}, plan(6), CPU) as loader:
        assert source.read.acquire(timeout=60)
        for _ in range(5):
            loader.next()
            # Here the caller computes, and asks for nothing.
            assert source.read.acquire(timeout=60)
    with BatchLoader({"image": Slow(0.06)}, plan(6), CPU) as loader:
        for _ in range(5):
            loader.next()
        slow_s = loader.waited_s
    assert slow_s > 0.2
    for _ in range(3):  # another program can only add to the waiting
        with BatchLoader({"image": Slow(0.01)}, plan(6), CPU) as loader:
            loader.next()
            loader.waited_s = 0.0
            for _ in range(5):
                time.sleep(0.06)
                loader.next()
            ready_s = loader.waited_s
        if ready_s < slow_s / 4:
            break
    assert ready_s < slow_s / 4
