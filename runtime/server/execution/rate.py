"""Seconds that an item takes on this server, decoding included, measured on recent items."""

from __future__ import annotations

_KEPT = 0.95
"""Decay per batch: the last 20 or so count, so a machine that got slower is noticed after as many."""
_ENOUGH = 8
"""Items before a rate is given: the first batch of a request comes late, behind all of its decoding."""


class ServiceRate:
    """Running rate of finished items while there is work. Not thread-safe: the caller holds a lock."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._items = 0.0
        self._since = 0.0

    @property
    def seconds_per_item(self) -> float:
        """Seconds per item; 0 until a few items were done."""
        return self._seconds / self._items if self._items >= _ENOUGH else 0.0

    def begin(self, now: float) -> None:
        """Start the clock: there is work again after none."""
        self._since = now

    def done(self, count: int, now: float) -> None:
        """Record `count` items finished since the previous call."""
        self._seconds = _KEPT * self._seconds + (now - self._since)
        self._items = _KEPT * self._items + count
        self._since = now
