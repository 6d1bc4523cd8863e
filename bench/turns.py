"""Calls that take turns, so that a change of the machine's speed meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def milliseconds_in_turns(calls: Sequence[Callable[[], object]], rounds: int, warm_up: int = 20) -> list[list[float]]:
    """Time every call once in each round.

    Args:
        warm_up: rounds before those that are counted.

    Returns:
        for each call, the milliseconds of each round.
    """
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + warm_up):
        for call, found in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if number >= warm_up:
                found.append((time.perf_counter() - started) * 1e3)
    return times
