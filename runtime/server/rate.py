"""How long an item takes here, decoding and all, from what was answered lately."""

from __future__ import annotations

_KEPT = 0.95
"""Of what is known, at each answer: a machine that got slower is noticed after some twenty of them."""


class ServiceRate:
    """Seconds per item while there is work. Whoever calls it holds a lock."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._items = 0.0
        self._since = 0.0

    @property
    def seconds_per_item(self) -> float:
        """0 until something was answered."""
        return self._seconds / self._items if self._items else 0.0

    def begin(self, now: float) -> None:
        """There is work again after none."""
        self._since = now

    def answered(self, count: int, now: float) -> None:
        """So many items left, since the last that did."""
        self._seconds = _KEPT * self._seconds + (now - self._since)
        self._items = _KEPT * self._items + count
        self._since = now
