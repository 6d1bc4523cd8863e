"""How fast training goes, and whether it waits for its features."""

from __future__ import annotations

import time

from fluxtalk.train.loop.loader import BatchLoader


class Rates:
    """Steps per second, and the share of the time that they waited for features.

    Args:
        step: where training stands.
    """

    def __init__(self, loader: BatchLoader, step: int) -> None:
        self._loader = loader
        self._started = time.perf_counter()
        self._step = step

    def restart(self, step: int) -> None:
        """Begin anew, so that validations do not count."""
        self._loader.waited_s = 0.0
        self._started = time.perf_counter()
        self._step = step

    def record(self, step: int, batch: int) -> dict[str, float]:
        """What the steps since `restart` took.

        Args:
            batch: pairs of each step.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        done = step - self._step
        return {
            "steps_per_s": round(done / seconds, 3),
            "pairs_per_s": round(done * batch / seconds, 1),
            "wait_share": round(self._loader.waited_s / seconds, 4),
        }
