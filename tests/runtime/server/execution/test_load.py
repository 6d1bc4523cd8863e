"""Load, overload and an end under load: a bounded form of `make bench-server`, which measures the same at length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bench.server.client import Client, Reply, post_json
from bench.server.load import closed_loop, open_loop
from bench.server.phases import drain_phase, memory_phase, neighbors_phase, vectors_of
from bench.server.process import serving
from bench.server.requests import PATH, harmful, mixed, one_text
from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.conftest import Process, Threaded, in_thread

pytestmark = pytest.mark.alone
KINDS = {"image": "image", "text": "text"}
WORKLOAD = mixed(KINDS, num_tokens=4, count=48)
BATCH_S = 0.05
"""Of the slow server: 8 items."""


@pytest.fixture
def slow(made: Made) -> Iterator[Threaded]:
    """A server whose capacity is known whatever the machine does: 160 texts a second, and 64 that may wait."""
    with in_thread(made.bundle, queue=64) as up:
        up.sessions["text"].before = lambda _inputs: time.sleep(BATCH_S)
        yield up


@pytest.mark.parametrize("concurrency", [1, 8, 32, 128])
def test_every_client_gets_its_own_answer(server: Process, embedder: Embedder, concurrency: int) -> None:
    expected = [embedder.embed(r.modality, list(r.items), r.k, r.output).ravel() for r in WORKLOAD]
    apart: list[float] = []

    def check(number: int, reply: Reply) -> None:
        assert reply.status == 200, reply.body
        apart.append(float(np.abs(vectors_of(reply.body) - expected[number]).max()))

    async def load() -> None:
        async with Client(server.url) as client:
            await closed_loop(client, [request.encoded() for request in WORKLOAD], concurrency, 0.7, check)

    asyncio.run(load())
    assert len(apart) >= concurrency
    assert max(apart) <= 1e-5


def test_twice_the_capacity_is_answered_at_the_full_rate(slow: Threaded) -> None:
    requests = [request.encoded() for request in one_text("text", 4, count=8)]

    async def load() -> Any:
        async with Client(slow.url) as client:
            alone = await closed_loop(client, requests, 16, 2.0)
            return alone, await open_loop(client, requests, 2 * alone.in_time / alone.sent_for_s, 4.0)

    for attempt in range(3):
        alone, flood = asyncio.run(load())
        assert set(alone.statuses) == {200}
        assert set(flood.statuses) == {200, 429}
        share = (flood.in_time / flood.sent_for_s) / (alone.in_time / alone.sent_for_s)
        # Another program on the machine, which can come between the two loads, only lowers it: so the best counts.
        if share >= 0.9 or attempt == 2:
            break
    assert share >= 0.9
    # What was accepted waited for what the queue holds (64, and the batch that was running) and not for all the rest.
    assert flood.percentile_ms(99) < 3e3 * (64 + 8) / (alone.in_time / alone.sent_for_s)
    with slow.client() as client:
        assert client.get("/readyz").status_code == 200


def test_the_largest_request_takes_the_room_of_no_other(slow: Threaded) -> None:
    requests = [request.encoded() for request in one_text("text", 4, count=8)]
    with slow.client() as client:
        largest = client.get("/info").json()["limits"]["items"]
        # From here on the server knows how long an item takes.
        assert slow.embed(client, "first").status_code == 200

    async def load() -> Any:
        async with Client(slow.url) as client, Client(slow.url) as other:
            huge = asyncio.create_task(other.send(post_json(PATH, {"input": ["omega"] * largest})))
            await asyncio.sleep(BATCH_S)
            beside = await closed_loop(client, requests, 4, 3 * BATCH_S)
            return await huge, beside

    huge, beside = asyncio.run(load())
    assert huge.status == 200
    assert set(beside.statuses) == {200}
    assert beside.percentile_ms(50) < 1e3 * 4 * BATCH_S  # and did not stand behind it


def test_harm_changes_nobody_elses_answers(server: Process) -> None:
    async def load() -> Any:
        async with Client(server.url) as client:
            return await neighbors_phase(client, WORKLOAD, harmful(KINDS, 256), 1.5)

    found = asyncio.run(load())
    assert set(found["statuses"]) == {"200"}
    assert found["max_abs_difference"] <= 1e-5
    assert found["answers_compared"] > 10
    for name, statuses in found["harm"].items():
        assert set(statuses) <= {"200", "400", "413", "422", "429"}, name
    assert httpx.get(server.url + "/readyz", trust_env=False).status_code == 200


def test_memory_stays_and_sigterm_answers_what_was_accepted(made: Made) -> None:
    async def load() -> Any:
        async with Client(up.url) as client:
            await closed_loop(client, [request.encoded() for request in WORKLOAD], 32, 2.0)
            memory = await memory_phase(up, client, WORKLOAD, harmful(KINDS, 256), 4.0)
            return memory, await drain_phase(up, client, WORKLOAD, 0.5)

    with serving(Path(made.bundle.folder), "--threads", 1) as up:
        memory, drain = asyncio.run(load())
        log = up.log.read_text()
    assert memory["growth_mib"] <= 16
    assert drain["exit_status"] == 0, log
    assert "lost" not in drain["statuses"]
    assert set(drain["statuses"]) == {"200", "no connection"}
    assert "Traceback" not in log
