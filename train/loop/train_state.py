"""Everything about a run besides its parameters: progress, throughput, steps left out, stop signals, callbacks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import TrainingError
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.train.loop.loader import BatchLoader
from fluxtalk.train.records.log import RunLog

BAD_STEPS = 3
"""Steps in a row without a usable loss or gradient that end a run."""


@dataclass
class TrainState:
    """Progress of a run. Every checkpoint stores the fields under these names."""

    step: int = 0
    """Steps done, skipped ones included."""
    best_score: float = -1.0
    """Highest score of a validation so far."""
    best_epoch: int = 0
    """Epoch of that validation."""
    skipped_steps: int = 0
    """Steps without an update, because the loss or its gradient was NaN or infinite."""
    bad_in_a_row: int = 0
    """Skipped steps since the last good one."""


class Throughput:
    """Steps per second, and the share of the time that they waited for features.

    Args:
        step: steps done so far.
    """

    def __init__(self, loader: BatchLoader, step: int) -> None:
        self._loader = loader
        self._started = time.perf_counter()
        self._step = step

    def restart(self, step: int) -> None:
        """Measure from here on, so that validations do not count."""
        self._loader.waited_s = 0.0
        self._started = time.perf_counter()
        self._step = step

    def record(self, step: int, batch: int) -> dict[str, float]:
        """Measure the steps since `restart`.

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


def report_bad_step(bad: str, state: TrainState, folder: RunFolder, log: RunLog) -> None:
    """Log that the last step was left out.

    Args:
        bad: the part of it that is not finite.

    Raises:
        TrainingError: there were too many in a row.
    """
    if state.bad_in_a_row >= BAD_STEPS:
        raise TrainingError(f"The {bad} at step {state.step}, the third such step in a row; {advice(folder)}")
    log.line(f"step {state.step} skipped: the {bad}")


def advice(folder: RunFolder) -> str:
    """Say what a run that cannot go on leaves, and what to do: only another run may have other options."""
    kept = f"the last good checkpoint is {folder.last}" if folder.last.is_file() else "no checkpoint was written yet"
    # Another run can begin with the head of a run only if that run has a description.
    usable = folder.best.is_file() and folder.description.is_file()
    begin = f" (--init-from {folder.root} takes its best head)" if usable else ""
    return f"{kept}. Begin another run{begin} with a lower --learning-rate, or check the features."


class StopSignal:
    """While entered, remembers SIGTERM and SIGUSR1, as schedulers send them, and Ctrl-C, instead of ending the process.

    A second Ctrl-C ends it at once.
    In a thread other than the main one signals stay what they were, because Python lets only the main one handle them;
    `request` works in every thread. Windows has no SIGUSR1.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number: int | None = None
        """The last signal, or the number that `request` was called with."""
        self._before: dict[int, Any] = {}

    def request(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask for a stop, as the signal would.

        Raises:
            KeyboardInterrupt: Ctrl-C for the second time.
        """
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in self.SIGNALS:
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # a background job of a script, which Ctrl-C is not meant for
            self._before[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Callback:
    """Receives the events of a run; does nothing itself: override what you need. Called in the first process only.

    An exception ends the run, with the last checkpoint left as it is.
    """

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        """Handle the end of optimizer step ``step`` (from 1), with the terms of its loss."""

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        """Handle the end of a validation, with its scores (`fluxtalk.scoring.retrieval`) and its head."""


class Callbacks(Callback):
    """Several callbacks as one, in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def __bool__(self) -> bool:
        # Reading a loss makes a GPU wait, so the caller asks first.
        return bool(self._callbacks)

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            callback.on_step(step, losses)

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        for callback in self._callbacks:
            callback.on_validation(step, scores, head)
