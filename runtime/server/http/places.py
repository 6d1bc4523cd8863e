"""Who may take a place: requests that are complete run, bodies on their way wait in a room of their own.

A body that does not come costs its sender: it holds no place among the running requests, has to keep a minimum rate,
and is given up first when the room is full.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

RUNNING_AT_A_TIME = 256
"""Complete requests of the process. One more is answered with 429 before anything is done for it."""
ARRIVING_AT_A_TIME = 1024
"""Requests of the process whose body has begun and not ended."""
ARRIVING_OF_A_CLIENT = 256
"""Those of one address."""
MIN_BYTES_PER_S = 512
"""Rate of a body, over all the time since it began but for the first `GRACE_S`."""
GRACE_S = 5.0
_SWEEP_S = 1.0
_BACKLOG = 2048
_ENOUGH_FILES = 4096

OVERLOADED = "overloaded"
TOO_SLOW = "body_too_slow"
_FULL = "Too many bodies are on their way at a time; send yours in one go, or try again later."
_SLOW = f"The body came at less than {MIN_BYTES_PER_S} bytes per second; send it in one go."


def connections_allowed() -> int:
    """Count the connections that this process may have: its open files, less those it has now and some to spare."""
    limit = _open_files()
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:  # not on this system
        opened = _ENOUGH_FILES // 2
    return max(1, limit - opened - _spare_files(limit))


def accepted_at_a_time() -> int:
    """Count the connections that are accepted in one go, and wait for it in the kernel: few if there are few files,
    since those that are too many are closed only afterwards."""
    limit = _open_files()
    return _BACKLOG if limit >= _ENOUGH_FILES else max(4, _spare_files(limit) // 3)


def _open_files() -> int:
    try:
        import resource
    except ImportError:  # not on this system
        return 1 << 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _spare_files(limit: int) -> int:
    return min(256, limit // 4)


GiveUp = Callable[[int, str, str], None]
"""Ends a connection with a status, a sentence and a code."""


@dataclass(eq=False)
class Arrival:
    """Request whose body is on its way."""

    client: str
    """Address of its sender."""
    give_up: GiveUp
    began: float
    received: int = 0
    """Bytes of the body so far."""

    def behind_s(self, now: float) -> float:
        """Seconds by which it is later than the minimum rate allows; negative while it is in time."""
        return now - self.began - GRACE_S - self.received / MIN_BYTES_PER_S


@dataclass(eq=False)
class Places:
    """Counts of one process. Used by one event loop.

    Args:
        count_refusal: told the code of every request that is refused here.
        max_connections: number of connections beyond which idle ones are closed, and then new ones: a process without
            a free file can answer nobody.
        trusted_proxies: addresses whose ``X-Forwarded-For`` names the client.
    """

    count_refusal: Callable[[str], None] = lambda _code: None
    max_connections: int = 1 << 20
    trusted_proxies: frozenset[str] = frozenset()
    running: int = 0
    """Requests that are complete and not answered yet."""
    _arrivals: set[Arrival] = field(default_factory=set)
    _by_client: Counter[str] = field(default_factory=Counter)
    _sweeper: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        """True if a request that is complete may run."""
        return self.running < RUNNING_AT_A_TIME

    @property
    def arriving(self) -> int:
        """Number of bodies on their way."""
        return len(self._arrivals)

    def arrive(self, client: str, give_up: GiveUp) -> Arrival:
        """Let in a request whose body is to come; `depart` ends it.

        If the room is full, the body that is furthest behind is given up for it: one of the same client, or of the
        client that has the most of them.
        """
        now = time.monotonic()
        crowded: str | None = None
        if self._by_client[client] >= ARRIVING_OF_A_CLIENT:
            crowded = client
        elif len(self._arrivals) >= ARRIVING_AT_A_TIME:
            crowded = self._by_client.most_common(1)[0][0]
        if crowded is not None:
            last = max((a for a in self._arrivals if a.client == crowded), key=lambda a: a.behind_s(now))
            self._give_up(last, 429, _FULL, OVERLOADED)
        arrival = Arrival(client, give_up, now)
        self._arrivals.add(arrival)
        self._by_client[client] += 1
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        return arrival

    def depart(self, arrival: Arrival) -> None:
        """End an arrival: its body is complete, or nobody waits for it. Doing it again changes nothing."""
        if arrival not in self._arrivals:
            return
        self._arrivals.remove(arrival)
        self._by_client[arrival.client] -= 1
        if not self._by_client[arrival.client]:
            del self._by_client[arrival.client]

    def _give_up(self, arrival: Arrival, status: int, sentence: str, code: str) -> None:
        self.depart(arrival)
        self.count_refusal(code)
        arrival.give_up(status, sentence, code)

    def _sweep(self) -> None:
        """Give up what is slower than the minimum rate."""
        self._sweeper = None
        now = time.monotonic()
        for arrival in [a for a in self._arrivals if a.behind_s(now) > 0]:
            self._give_up(arrival, 408, _SLOW, TOO_SLOW)
        if self._arrivals:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
