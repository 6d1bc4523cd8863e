"""A log that strangers cannot fill: what is said again within a second is counted, and said once."""

from __future__ import annotations

import logging
import time

_PERIOD_S = 1.0
_MOST_KEYS = 256


class OncePerSecond(logging.Filter):
    """Drops a message that was logged less than a second ago, and says with the next one how many there were.

    Of our own logger two messages are the same if they read the same; of a library's, whatever they are about.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one message."""
        own = record.name.startswith("fluxtalk")
        key = record.name, record.getMessage() if own else str(record.msg)
        now = time.monotonic()
        last, dropped = self._last.get(key, (-_PERIOD_S, 0))
        if now - last < _PERIOD_S:
            self._last[key] = last, dropped + 1
            return False
        if len(self._last) >= _MOST_KEYS:
            self._last.clear()
        self._last[key] = now, 0
        if dropped:
            record.msg, record.args = f"{record.getMessage()} ({dropped:,} more like it before)", None
        return True
