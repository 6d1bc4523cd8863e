"""Load, overload and an end under load: a bounded form of `make bench-server`, which measures the same at length."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bench.server.client import Client, Reply, post_json
from bench.server.load import Check, Load, closed_loop, open_loop
from bench.server.phases import drain_phase, memory_phase, neighbors_phase, vectors_of
from bench.server.process import serving
from bench.server.requests import PATH, harmful, mixed, one_text
from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, Process, Threaded, in_thread

KINDS = {"image": "image", "text": "text"}
WORKLOAD = mixed(KINDS, num_tokens=4, count=48)
BATCH_S = 0.05
"""Of the slow server: 8 items."""


async def answers(
    client: Client, requests: Sequence[bytes], concurrency: int, count: int, check: Check | None = None
) -> Load:
    """A closed loop that ends once so many answers have come, however long they take.

    Every client sends at once and waits for its answer, so each has had one at the end.
    """
    enough, seen = asyncio.Event(), itertools.count(1)

    def counted(number: int, reply: Reply) -> None:
        if next(seen) >= count:
            enough.set()
        if check is not None:
            check(number, reply)

    return await closed_loop(client, requests, concurrency, PATIENCE_S, counted, enough)


@pytest.fixture
def slow(made: Made) -> Iterator[Threaded]:
    """A server that waits more than it computes: 160 texts a second at most, and 64 that may wait."""
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
            await answers(client, [request.encoded() for request in WORKLOAD], concurrency, count, check)

    count = max(len(WORKLOAD), 2 * concurrency)
    asyncio.run(load())
    assert len(apart) >= count
    assert max(apart) <= 1e-5


@pytest.mark.alone
def test_twice_the_capacity_is_answered_at_the_full_rate(slow: Threaded) -> None:
    requests = [request.encoded() for request in one_text("text", 4, count=8)]
    # 80 texts a second: what they cost is little beside it on a slow machine too.
    slow.sessions["text"].before = lambda _inputs: time.sleep(2 * BATCH_S)

    def rate(load: Load) -> float:
        return load.statuses[200] / load.took_s

    async def load() -> Any:
        async with Client(slow.url) as client:
            alone = await answers(client, requests, 16, 160)
            return alone, await open_loop(client, requests, 2 * rate(alone), 4.0)

    for attempt in range(3):
        alone, flood = asyncio.run(load())
        assert set(alone.statuses) == {200}
        assert set(flood.statuses) == {200, 429}
        share = rate(flood) / rate(alone)
        # Another program on the machine, which can come between the two loads, only lowers it: so the best counts.
        if share >= 0.9 or attempt == 2:
            break
    assert share >= 0.9
    # What was accepted waited for what the queue holds (64, and the batch that was running) and not for all the rest.
    assert flood.percentile_ms(99) < 3e3 * (64 + 8) / rate(alone)
    with slow.client() as client:
        assert client.get("/readyz").status_code == 200


def test_the_largest_request_takes_the_room_of_no_other(slow: Threaded) -> None:
    # Batches so long that what comes between two of them is little beside them.
    slow.sessions["text"].before = lambda _inputs: time.sleep(4 * BATCH_S)
    requests = [request.encoded() for request in one_text("text", 4, count=8)]
    with slow.client() as client:
        largest = client.get("/info").json()["limits"]["items"]
        # From here on the server knows how long an item takes.
        assert slow.embed(client, "first").status_code == 200

    async def load() -> Any:
        async with Client(slow.url) as client, Client(slow.url) as other:
            huge = asyncio.create_task(other.send(post_json(PATH, {"input": ["omega"] * largest})))
            await asyncio.sleep(BATCH_S)
            beside = await answers(client, requests, 4, 4)
            first = not huge.done()
            return await huge, beside, first

    huge, beside, first = asyncio.run(load())
    assert huge.status == 200
    assert set(beside.statuses) == {200}
    assert first  # none of them stood behind it


def test_harm_changes_nobody_elses_answers(server: Process) -> None:
    async def load(seconds: float) -> Any:
        async with Client(server.url) as client:
            return await neighbors_phase(client, WORKLOAD, harmful(KINDS, 256), seconds)

    for seconds in (1.5, 6.0, 24.0):  # longer where the machine needs it
        found = asyncio.run(load(seconds))
        if found["answers_compared"] > 10 and all(found["harm"].values()):
            break
    assert set(found["statuses"]) == {"200"}
    assert found["max_abs_difference"] <= 1e-5
    assert found["answers_compared"] > 10
    for name, statuses in found["harm"].items():
        assert statuses, name
        assert set(statuses) <= {"200", "400", "413", "422", "429"}, name
    assert httpx.get(server.url + "/readyz", trust_env=False).status_code == 200


def test_memory_stays_and_sigterm_answers_what_was_accepted(made: Made) -> None:
    async def load() -> Any:
        async with Client(up.url) as client:
            await answers(client, [request.encoded() for request in WORKLOAD], 32, 400)  # until caches are full
            memory = await memory_phase(up, client, WORKLOAD, harmful(KINDS, 256), 2.0)
            return memory, await drain_phase(up, client, WORKLOAD, 0.5)

    with serving(Path(made.bundle.folder), "--threads", 1) as up:
        memory, drain = asyncio.run(load())
        log = up.log.read_text()
    assert memory["growth_mib"] <= 10
    assert drain["exit_status"] == 0, log
    assert "lost" not in drain["statuses"]
    assert set(drain["statuses"]) == {"200", "no connection"}
    assert "Traceback" not in log
