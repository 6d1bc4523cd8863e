"""A worker's watch over its supervisor."""

from __future__ import annotations

import logging
import multiprocessing.connection
import signal
import threading

log = logging.getLogger("fluxtalk.server")


def end_with_supervisor() -> None:
    """Ask this worker to end once its supervisor has died, which then sends no signal: it would serve for good.

    Returns at once; does nothing in a process that has no parent of multiprocessing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        log.warning("The supervisor has died; this worker ends.")
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, name="fluxtalk-supervisor", daemon=True).start()
