"""SIGTERM and SIGUSR1 ask a program to stop at a good moment, as schedulers send them."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """While entered, remembers the last of SIGTERM and SIGUSR1 instead of dying of it."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, or that `request` was called with."""
        self._before: dict[int, Any] = {}

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask for a stop, as the signal would."""
        self.number = number

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
