"""Micro-batching: who shares a batch, who is dropped, who is told what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import pytest

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from fluxtalk.runtime import FakeSession
from fluxtalk.runtime.server.execution.admission import Caller
from fluxtalk.runtime.server.execution.batcher import Batcher, Job
from fluxtalk.runtime.server.execution.work import Throughput
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.metrics import Metrics
from fluxtalk.tokens import TokenLayout

DIM = 4
FEATURES = FeaturesPreprocessor(DIM)
LAYOUT = TokenLayout(4, 3, 8)
FAR = 1e12


class Gate:
    """A session that waits at each run until it is let through, and keeps what it ran."""

    backend: str = "gate"
    max_length: int | None = None

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.ks: list[int] = []
        self.outputs: list[tuple[str, ...]] = []
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.fault: Callable[[Mapping[str, Any]], None] = lambda inputs: None
        self.spoil: Callable[[Mapping[str, Any], dict[str, Any]], None] = lambda inputs, outputs: None
        self._fake = FakeSession()

    def run(self, inputs: Mapping[str, Any], k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Any]:
        self.batches.append(dict(inputs))
        self.ks.append(k)
        self.outputs.append(tuple(outputs))
        self.entered.release()
        assert self.let.acquire(timeout=30)
        self.fault(inputs)
        found = self._fake.run(inputs, k, outputs)
        self.spoil(inputs, found)
        return found

    def describe(self) -> str:
        return "gate"

    def close(self) -> None:
        return

    def open(self, runs: int = 1000) -> None:
        for _ in range(runs):
            self.let.release()

    @property
    def lengths(self) -> list[list[int]]:
        """Of the items of each batch."""
        return [batch["mask"].sum(axis=1).tolist() for batch in self.batches]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher]:
    made = Batcher("text", gate, FEATURES, 4, Throughput(FEATURES), Metrics())
    yield made
    gate.open()
    assert made.close(30)


def job(
    *lengths: int,
    k: int = 3,
    output: str = "pooled",
    deadline: float = FAR,
    seed: int = 0,
    caller: Caller | None = None,
) -> Job:
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal((length, DIM)).astype(np.float32) for length in lengths]
    return Job(arrays, list(range(len(lengths))), LAYOUT.select(k, output), deadline, caller or Caller.alone())


def alone(item: Job) -> np.ndarray:
    """What a job's items give by themselves."""
    session, rows = FakeSession(), []
    for array in item.arrays:
        k = item.selection.k
        found = session.run(FEATURES.collate([array]), k)
        rows.append(found["embeddings"][0, k - 1] if item.selection.output == "pooled" else found["tokens"][0])
    return np.stack(rows)


def busy(batcher: Batcher, gate: Gate) -> None:
    """Have a batch running, so that what comes now queues."""
    batcher.submit(job(3))
    assert gate.entered.acquire(timeout=30)


def test_a_batch_is_what_queued_while_the_previous_one_ran(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    jobs = [job(5, seed=seed) for seed in range(6)]
    futures = [batcher.submit(item) for item in jobs]
    gate.open()
    for item, future in zip(jobs, futures, strict=True):
        assert np.array_equal(future.result(30), alone(item))
    assert [len(lengths) for lengths in gate.lengths] == [1, 4, 2]


def test_different_k_and_outputs_share_a_batch_and_are_cut(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    jobs = [job(5, k=1), job(5, k=4, seed=1), job(5, k=2, output="tokens", seed=2)]
    futures = [batcher.submit(item) for item in jobs]
    gate.open()
    for item, future in zip(jobs, futures, strict=True):
        assert np.allclose(future.result(30), alone(item), atol=1e-6)
    assert futures[2].result().shape == (1, 2, 8)
    assert len(gate.batches) == 2
    assert gate.ks[1] == 4
    assert set(gate.outputs[1]) == {"embeddings", "tokens"}
    assert gate.outputs[0] == ("embeddings",)


def test_items_of_like_length_run_together_and_none_is_forgotten(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    long = batcher.submit(job(100))
    mixed = job(10, 100, 10, 9, 100, 10)
    future = batcher.submit(mixed)
    gate.open()
    assert np.array_equal(future.result(30), alone(mixed))
    assert long.done()
    for lengths in gate.lengths:
        assert max(lengths) * len(lengths) - sum(lengths) <= max(lengths) * len(lengths) / 8
    assert [100, 100, 100] in gate.lengths


def test_long_items_weigh_more(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    futures = [batcher.submit(job(512, seed=seed)) for seed in range(4)]
    futures.append(batcher.submit(job(2000)))
    gate.open()
    for future in futures:
        future.result(30)
    assert [len(lengths) for lengths in gate.lengths] == [1, 2, 2, 1]


def test_large_images_weigh_more() -> None:
    gate = Gate()
    preprocess = ImagePreprocessor(448, 448)
    batcher = Batcher("image", gate, preprocess, 8, Throughput(preprocess), Metrics())
    pixels = np.zeros((448, 448, 3), dtype=np.uint8)
    batcher.submit(Job([pixels], [0], LAYOUT.select(1), FAR))
    assert gate.entered.acquire(timeout=30)
    future = batcher.submit(Job([pixels] * 3, [0, 1, 2], LAYOUT.select(1), FAR))
    gate.open()
    future.result(30)
    assert [len(batch["pixels"]) for batch in gate.batches] == [1, 2, 1]
    assert batcher.close(30)


def test_callers_take_turns_by_the_length_of_their_items(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    order: list[str] = []

    def submit(name: str, item: Job) -> None:
        batcher.submit(item).add_done_callback(lambda _: order.append(name))

    hog = Caller("a", "a:1")
    for number in range(3):
        submit(f"hog {number}", job(*[5] * 12, caller=hog, seed=number))
    submit("long", job(2000))
    submit("short", job(5, seed=9))
    gate.open()
    while len(order) < 5:
        time.sleep(0.001)
    assert order == ["short", "long", "hog 0", "hog 1", "hog 2"]


def test_connections_of_one_client_share_its_turns(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    many = [batcher.submit(job(*[5] * 3, caller=Caller("many", str(port)), seed=port)) for port in range(8)]
    one = batcher.submit(job(*[5] * 3, caller=Caller("one", "1"), seed=99))
    gate.let.release(5)
    one.result(30)
    assert sum(future.done() for future in many) <= 3
    gate.open()
    for future in many:
        future.result(30)


def test_who_sends_again_and_again_gets_no_more_turns_than_who_sent_much_at_once(batcher: Batcher, gate: Gate) -> None:
    """Eight callers send single items, four of which always wait, enough for a batch; one sent eight at once."""
    busy(batcher, gate)
    many = batcher.submit(job(*[5] * 8, caller=Caller("many", "1")))
    little = {Caller(f"little {number}", "1"): Future[Any]() for number in range(8)}
    for future in little.values():
        future.set_result(None)
    batches = 0
    while not many.done() and batches < 50:
        for caller, future in little.items():
            if future.done():
                little[caller] = batcher.submit(job(5, caller=caller))
        gate.let.release()
        assert gate.entered.acquire(timeout=30)
        time.sleep(0.005)  # until those who were answered have left
        batches += 1
    # One item of each takes two batches or three.
    assert batches <= 24
    gate.open()
    wait(little.values(), 30)


def test_turns_of_those_who_left_are_forgotten(batcher: Batcher, gate: Gate) -> None:
    gate.open()
    for seed in range(20):
        batcher.submit(job(5, seed=seed)).result(30)
    assert not batcher._next_turns


def test_a_long_job_that_falls_behind_its_pace_goes_first(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    begin = time.monotonic()
    long = job(*[2000] * 12, deadline=begin + 40)
    long.begun = begin
    batcher.submit(long)
    long.begun = begin - 1000  # as if all that time had passed without a turn
    for seed in range(4):
        batcher.submit(job(5, seed=seed))
    gate.let.release(2)
    for _ in range(2):
        assert gate.entered.acquire(timeout=30)
    assert gate.lengths[1] == [2000]
    gate.open()
    long.future.result(30)


def test_what_is_too_late_is_never_run(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    late = batcher.submit(job(5, deadline=time.monotonic() + 0.02))
    kept = batcher.submit(job(5))
    time.sleep(0.05)
    gate.open()
    kept.result(30)
    with pytest.raises(ApiError) as error:
        late.result(30)
    assert error.value.status == 504
    assert [len(lengths) for lengths in gate.lengths] == [1, 1]


def test_what_was_canceled_is_never_run(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    gone = batcher.submit(job(5, 5, 5))
    kept = batcher.submit(job(5))
    assert gone.cancel()
    gate.open()
    kept.result(30)
    with pytest.raises(CancelledError):
        gone.result(30)
    assert [len(lengths) for lengths in gate.lengths] == [1, 1]


def test_a_failed_batch_is_run_item_by_item(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    jobs = [job(5, seed=seed) for seed in range(3)]
    culprit = jobs[1].arrays[0]

    def fault(inputs: Mapping[str, Any]) -> None:
        if any(np.array_equal(row[:5], culprit) for row in inputs["features"]):
            raise RuntimeError("the library says what was in the item")

    gate.fault = fault
    futures = [batcher.submit(item) for item in jobs]
    gate.open()
    for item, future in zip(jobs, futures, strict=True):
        if item is jobs[1]:
            with pytest.raises(ApiError, match="input 0: the engine failed") as error:
                future.result(30)
            assert error.value.status == 500
        else:
            assert np.array_equal(future.result(30), alone(item))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error_of_its_request_alone(batcher: Batcher, gate: Gate, value: float) -> None:
    busy(batcher, gate)
    jobs = [job(5, seed=seed) for seed in range(3)]

    def spoil(_inputs: Mapping[str, Any], outputs: dict[str, Any]) -> None:
        if len(outputs["embeddings"]) == 3:
            outputs["embeddings"][1, 2, 0] = value

    gate.spoil = spoil
    futures = [batcher.submit(item) for item in jobs]
    gate.open()
    assert np.array_equal(futures[0].result(30), alone(jobs[0]))
    assert np.array_equal(futures[2].result(30), alone(jobs[2]))
    with pytest.raises(ApiError, match="not finite"):
        futures[1].result(30)


def test_what_is_not_finite_behind_the_cut_is_nobodys(batcher: Batcher, gate: Gate) -> None:
    busy(batcher, gate)
    jobs = [job(5, k=1), job(5, k=4, seed=1)]
    gate.spoil = lambda inputs, outputs: outputs["embeddings"][:, 3:].fill(np.nan)
    futures = [batcher.submit(item) for item in jobs]
    gate.open()
    assert np.allclose(futures[0].result(30), alone(jobs[0]), atol=1e-6)
    with pytest.raises(ApiError, match="not finite"):
        futures[1].result(30)


def test_a_dead_thread_is_noticed_and_nobody_waits_for_it(batcher: Batcher, gate: Gate) -> None:
    def die(_inputs: Mapping[str, Any]) -> None:
        raise SystemExit

    running = job(3)
    batcher.submit(running)
    assert gate.entered.acquire(timeout=30)
    waiting = batcher.submit(job(5))
    gate.fault = die
    gate.open()
    for future in (running.future, waiting):
        with pytest.raises(ApiError, match="stopped") as error:
            future.result(30)
        assert error.value.status == 503
    assert not batcher.alive
    with pytest.raises(ApiError, match="stopped"):
        batcher.require_alive()
    with pytest.raises(ApiError, match="stopped"):
        batcher.submit(job(5)).result(30)


def test_closing_finishes_what_was_accepted(gate: Gate) -> None:
    batcher = Batcher("text", gate, FEATURES, 2, Throughput(FEATURES), Metrics())
    busy(batcher, gate)
    item = job(5, 5, 5, 5, 5)
    future = batcher.submit(item)
    gate.open()
    assert batcher.close(30)
    assert np.array_equal(future.result(0), alone(item))
