"""How long an item takes here, decoding and all, from what was done lately."""

from __future__ import annotations

_KEPT = 0.95
"""Of what is known, at each batch: a machine that got slower is noticed after some twenty of them."""
_ENOUGH = 8
"""Items before anything is promised: the first batch of a request comes late, behind all of its decoding."""


class ServiceRate:
    """Seconds per item while there is work. Whoever calls it holds a lock."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._items = 0.0
        self._since = 0.0

    @property
    def seconds_per_item(self) -> float:
        """0 until a few were done."""
        return self._seconds / self._items if self._items >= _ENOUGH else 0.0

    def begin(self, now: float) -> None:
        """There is work again after none."""
        self._since = now

    def done(self, count: int, now: float) -> None:
        """So many items were done, since the last that were."""
        self._seconds = _KEPT * self._seconds + (now - self._since)
        self._items = _KEPT * self._items + count
        self._since = now
