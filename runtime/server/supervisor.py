"""The supervisor of several workers: one that ends is replaced, and the others go on whatever comes of it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from fluxtalk.runtime.server.later_verification import BROKEN_PROMISE
from fluxtalk.runtime.server.metrics import WorkerState

log = logging.getLogger("fluxtalk.server")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
"""Seconds before a replacement is tried: twice as many after each that could not start."""


@dataclass
class _Slot:
    """Place of a worker."""

    due: float | None = None
    """Time at which its replacement is to be started; None while there is one."""
    failures: int = 0
    """Starts that failed since one succeeded."""


class Supervisor(Multiprocess):
    """uvicorn's supervisor, with two differences.

    It gives up the port with its workers: a connection that nobody accepts would hang. And a replacement that cannot
    start (the bundle's folder was changed meanwhile) does not end the workers that serve: it is tried again, later each
    time, and ``/readyz`` and ``/metrics`` of the others say so.

    Args:
        config: of uvicorn.
        sockets: that the workers share.
        folder: in which the state of the workers is written for them.
    """

    def __init__(self, config: Config, sockets: list[socket], folder: Path) -> None:
        super().__init__(config, sockets)
        self._folder = folder
        self._slots: defaultdict[int, _Slot] = defaultdict(_Slot)
        self._has_served = False
        self._failed_starts = 0

    def init_processes(self) -> None:
        """Start the workers."""
        super().init_processes()
        self._tell()

    def terminate_all(self) -> None:
        """End the workers, and give up the port."""
        super().terminate_all()
        for listening in self.sockets:
            listening.close()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that ended. uvicorn calls it twice a second."""
        for number, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            slot = self._slots[number]
            if slot.due is not None:
                if time.monotonic() >= slot.due:
                    self._replace(number, slot)
            elif process.is_alive(timeout=self.config.timeout_worker_healthcheck):
                if (slot.failures or not self._has_served) and process.is_ready(timeout=1):
                    self._has_served = True
                    slot.failures = 0
                    self._tell()
            else:
                self._lose(process, slot)

    def _lose(self, process: Process, slot: _Slot) -> None:
        process.kill()  # if it hangs
        process.join()
        could_not_start = process.exitcode == STARTUP_FAILURE
        if process.exitcode == BROKEN_PROMISE or (could_not_start and not self._has_served):
            # All serve one bundle, and what keeps the first one from starting keeps all.
            self.should_exit.set()
            return
        slot.failures += could_not_start
        self._failed_starts += could_not_start
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**slot.failures)
        slot.due = time.monotonic() + wait_s
        self._tell()
        state = self._state()
        log.warning(
            "Worker %s ended (exit status %s); %d of %d go on, and another is started in %.0f s.",
            *(process.pid, process.exitcode, state.running, state.expected, max(1.0, wait_s)),
        )

    def _replace(self, number: int, slot: _Slot) -> None:
        slot.due = None
        process = Process(self.config, self.sockets)
        process.start()
        self.processes[number] = process
        self._tell()

    def _state(self) -> WorkerState:
        starting = sum(1 for slot in self._slots.values() if slot.due is not None or slot.failures)
        return WorkerState(self.processes_num, self.processes_num - starting, self._failed_starts)

    def _tell(self) -> None:
        self._state().write(self._folder)
