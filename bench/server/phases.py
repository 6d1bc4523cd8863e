"""Measurements of a running server, one function each, which return plain values for the results."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.server.client import Client, Reply
from bench.server.load import Load, closed_loop, open_loop
from bench.server.process import ServerProcess, watching
from bench.server.requests import LoadRequest

CONCURRENCIES = (1, 8, 32, 128)
_BESIDE = 8
"""Clients whose answers are compared while others do harm."""


async def closed_phase(
    server: ServerProcess, client: Client, workload: Sequence[LoadRequest], seconds: float
) -> list[dict[str, Any]]:
    """Throughput and latency at each concurrency."""
    requests = [request.encoded() for request in workload]
    items = sum(request.num_items for request in workload) / len(workload)
    rows = []
    await closed_loop(client, requests, _BESIDE, min(2.0, seconds))
    for concurrency in CONCURRENCIES:
        before = server.cpu_s
        load = await closed_loop(client, requests, concurrency, seconds)
        rate = load.in_time / load.sent_for_s
        rows.append(
            {
                "concurrency": concurrency,
                "requests_per_s": round(rate, 1),
                "items_per_s": round(rate * items, 1),
                **_latencies(load),
                "statuses": _statuses(load.statuses),
                "server_cores": round((server.cpu_s - before) / load.took_s, 2),
                "generator_cores": round(load.generator_cpu_s / load.took_s, 2),
            }
        )
    return rows


async def overload_phase(
    server: ServerProcess, client: Client, workload: Sequence[LoadRequest], seconds: float, concurrency: int
) -> dict[str, Any]:
    """An open loop at twice the capacity, which is measured before and after: the machine may not stay the same.

    Args:
        concurrency: of the closed loop that measures the capacity.
    """
    requests = [request.encoded() for request in workload]
    beside = max(2.0, seconds / 12)
    before = await closed_loop(client, requests, concurrency, beside)
    offered = 2 * before.in_time / before.sent_for_s
    cpu = server.cpu_s
    load = await open_loop(client, requests, offered, seconds)
    cores = (server.cpu_s - cpu) / load.took_s
    after = await closed_loop(client, requests, concurrency, beside)
    capacities = [part.in_time / part.sent_for_s for part in (before, after)]
    goodput = load.in_time / load.sent_for_s
    return {
        "seconds": seconds,
        "capacity_before_after": [round(value, 1) for value in capacities],
        "offered_per_s": round(offered, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_of_capacity": round(goodput / float(np.mean(capacities)), 3),
        "statuses": _statuses(load.statuses),
        **_latencies(load),
        "rejected_p99_ms": _rounded(load.percentile_ms(99, 429)),
        "last_answer_after_s": round(load.took_s - load.sent_for_s, 2),
        "generator_late_p99_ms": round(1e3 * float(np.percentile(load.lateness, 99)), 1),
        "server_cores": round(cores, 2),
        "generator_cores": round(load.generator_cpu_s / load.took_s, 2),
    }


async def neighbors_phase(
    client: Client, workload: Sequence[LoadRequest], harmful: Mapping[str, bytes], seconds: float
) -> dict[str, Any]:
    """Answers alone, and the same answers beside requests that cannot be served."""
    requests = [request.encoded() for request in workload]
    alone = [(await client.send(request)).body for request in requests]
    expected = [vectors_of(body) for body in alone]
    differences: list[float] = []

    def check(number: int, reply: Reply) -> None:
        if reply.status == 200:
            differences.append(float(np.abs(vectors_of(reply.body) - expected[number]).max()))

    quiet = await closed_loop(client, requests, _BESIDE, seconds)
    harm, stop = _HarmfulClient(harmful), asyncio.Event()
    doing = asyncio.create_task(harm.do(client, stop))
    load = await closed_loop(client, requests, _BESIDE, seconds, check)
    stop.set()
    await doing
    return {
        "answers_compared": len(differences),
        "max_abs_difference": float(f"{max(differences, default=0.0):.1e}"),
        "statuses": _statuses(load.statuses),
        "p99_ms_without": _rounded(quiet.percentile_ms(99)),
        **_latencies(load),
        "harm": {name: _statuses(found) for name, found in harm.statuses.items()},
    }


async def memory_phase(
    server: ServerProcess, client: Client, workload: Sequence[LoadRequest], harmful: Mapping[str, bytes], seconds: float
) -> dict[str, Any]:
    """The resident set under 32 clients, harm among them."""
    requests = [request.encoded() for request in workload]
    harm, stop = _HarmfulClient(harmful), asyncio.Event()
    with watching(server) as watch:
        doing = asyncio.create_task(harm.do(client, stop, every_s=1.0))
        load = await closed_loop(client, requests, 32, seconds)
        stop.set()
        await doing
    return {"requests": load.total, "statuses": _statuses(load.statuses), **watch.summary()}


async def drain_phase(
    server: ServerProcess, client: Client, workload: Sequence[LoadRequest], seconds: float
) -> dict[str, Any]:
    """SIGTERM while 32 clients go on sending, until the process is gone."""
    requests = [request.encoded() for request in workload]
    gone = asyncio.Event()
    loading = asyncio.create_task(closed_loop(client, requests, 32, 10 * seconds + 60, until=gone))
    await asyncio.sleep(seconds)
    server.terminate()
    begin = time.perf_counter()
    status = await asyncio.to_thread(server.wait)
    took = time.perf_counter() - begin
    gone.set()
    load = await loading
    return {
        "exit_status": status,
        "ended_after_s": round(took, 2),
        "answered": load.statuses[200],
        "statuses": _statuses(load.statuses),
    }


def vectors_of(body: bytes) -> NDArray[np.float32]:
    """All vectors of an answer in base64, side by side."""
    data = json.loads(body)["data"]
    return np.concatenate([np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in data])


class _HarmfulClient:
    """Sends what is harmful, one after the other, and counts what is answered."""

    def __init__(self, harmful: Mapping[str, bytes]) -> None:
        self._harmful = harmful
        self.statuses: dict[str, Counter[int]] = {name: Counter() for name in harmful}

    async def do(self, client: Client, stop: asyncio.Event, every_s: float = 0.1) -> None:
        while not stop.is_set():
            for name, request in self._harmful.items():
                self.statuses[name][(await client.send(request)).status] += 1
                await asyncio.sleep(every_s)
                if stop.is_set():
                    return


def _latencies(load: Load) -> dict[str, float | None]:
    return {"p50_ms": _rounded(load.percentile_ms(50)), "p99_ms": _rounded(load.percentile_ms(99))}


def _statuses(found: Counter[int]) -> dict[str, int]:
    names = {0: "lost", -1: "no connection"}
    return {names.get(status, str(status)): count for status, count in sorted(found.items())}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 2)
