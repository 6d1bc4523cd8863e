"""SIGTERM and SIGUSR1 ask a program to stop at a good moment, as schedulers send them."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """While entered, remembers the last of SIGTERM and SIGUSR1 instead of dying of it.

    In another thread than the main one signals stay what they were, because Python lets only that one handle them;
    `request` works in every thread.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, or that `request` was called with."""
        self._before: dict[int, Any] = {}

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask for a stop, as the signal would."""
        self.number = number

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
