"""Load on a server: a closed loop (so many clients, each waits for its answer) and an open one (arrivals that wait for
nobody)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.server.client import Client, Reply


@dataclass
class Load:
    """Requests sent, and their replies."""

    sent_for_s: float = 0.0
    """Seconds during which requests were sent."""
    took_s: float = 0.0
    """Seconds until the last answer."""
    generator_cpu_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Seconds of each request, by status."""
    lateness: list[float] = field(default_factory=list)
    """Seconds between a request's arrival and its sending, in an open loop."""
    in_time: int = 0
    """Requests that were answered with 200 while requests were still being sent."""

    @property
    def total(self) -> int:
        """Requests sent."""
        return self.statuses.total()

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.statuses[reply.status] += 1
        self.seconds.setdefault(reply.status, []).append(reply.seconds)

    def percentile_ms(self, percent: float, status: int = 200) -> float:
        """Percentile of the milliseconds to an answer of that status; NaN if there was none."""
        found = self.seconds.get(status)
        return float("nan") if not found else 1e3 * float(np.percentile(found, percent))


Check = Callable[[int, Reply], None]
"""Called with the number of the request in the list, and its reply."""


async def closed_loop(
    client: Client,
    requests: Sequence[bytes],
    concurrency: int,
    seconds: float,
    check: Check | None = None,
    until: asyncio.Event | None = None,
) -> Load:
    """Send from ``concurrency`` clients, each of which waits for an answer before it sends again.

    Args:
        requests: taken in turn, again and again.
        seconds: how long requests are sent; those under way then are waited for.
        check: called with every reply.
        until: ends the sending early.
    """
    load, turns = Load(), itertools.cycle(range(len(requests)))
    begin, cpu = time.perf_counter(), time.process_time()
    end = begin + seconds

    async def one() -> None:
        while time.perf_counter() < end and not (until is not None and until.is_set()):
            number = next(turns)
            reply = await client.send(requests[number])
            load.add(reply)
            load.in_time += reply.status == 200 and time.perf_counter() <= end
            if check is not None:
                check(number, reply)
            if reply.status <= 0:
                await asyncio.sleep(0.01)  # nobody there: do not spin

    await asyncio.gather(*(one() for _ in range(concurrency)))
    load.took_s = time.perf_counter() - begin
    load.sent_for_s = min(seconds, load.took_s)
    load.generator_cpu_s = time.process_time() - cpu
    return load


async def open_loop(client: Client, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests that arrive at random (a Poisson process), whether earlier ones were answered or not.

    A request's time counts from its arrival, not from when this process got to sending it.

    Args:
        rate: requests per second, on average.
    """
    load, turns = Load(), itertools.cycle(requests)
    tasks: set[asyncio.Task[None]] = set()
    begin, cpu = time.perf_counter(), time.process_time()
    end = begin + seconds

    async def one(request: bytes, due: float) -> None:
        load.lateness.append(time.perf_counter() - due)
        reply = await client.send(request, due)
        load.add(reply)
        load.in_time += reply.status == 200 and time.perf_counter() <= end

    for arrival in _arrivals(rate, seconds, seed):
        due = begin + arrival
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(next(turns), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    load.sent_for_s = seconds
    await asyncio.gather(*tasks)
    load.took_s = time.perf_counter() - begin
    load.generator_cpu_s = time.process_time() - cpu
    return load


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    at = float(rng.exponential(1 / rate))
    while at < seconds:
        yield at
        at += float(rng.exponential(1 / rate))
