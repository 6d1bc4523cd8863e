"""Verification of a served bundle beside its requests: what a start has no time for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from fluxtalk.arrays import Arrays, Floats
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import ParityError
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.verify import verify_sessions

log = logging.getLogger("fluxtalk.server")

BROKEN_PROMISE = 4
"""Exit status of a worker that served, and then found that the bundle does not keep what it promises."""
_GENTLE_S = 40.0
"""Seconds in which it takes half of the time of a session at most; then it hurries."""


class LaterVerification:
    """Replays every golden vector in a thread, while requests are answered by the same sessions.

    Args:
        embedder: what is served; its golden vectors are released at the end.
        on_failure: called with the error if a promise is broken, or a session fails.
    """

    def __init__(self, embedder: Embedder, on_failure: Callable[[Exception], None]) -> None:
        self._embedder = embedder
        self._on_failure = on_failure
        self._closing = threading.Event()
        self.done = False
        """True once every golden vector was replayed, and all promises were kept."""
        self._thread = threading.Thread(target=self._live, name="fluxtalk-verification", daemon=True)

    def start(self) -> None:
        """Begin, and return at once."""
        self._thread.start()

    def close(self) -> None:
        """End after the run at hand, and wait for it: sessions are closed next."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _live(self) -> None:
        begin = time.monotonic()
        hurry = begin + _GENTLE_S
        embedder = self._embedder

        def session_of(modality: str) -> Session:
            return _Gentle(embedder.session(modality), self._closing, hurry)

        try:
            for report in verify_sessions(embedder.bundle, session_of, embedder.modalities, embedder.precision):
                report.require()
        except _ClosingError:
            return
        except Exception as error:
            self._on_failure(error if isinstance(error, ParityError) else _unverified(error))
            return
        finally:
            embedder.bundle.release_golden()
        self.done = True
        log.info("verified: every golden vector was reproduced, %.0f s after the start", time.monotonic() - begin)


class _ClosingError(Exception):
    """Raised to end a verification early."""


class _Gentle:
    """A session that pauses after each run for as long as it ran, so that requests find it free half of the time."""

    def __init__(self, session: Session, closing: threading.Event, hurry: float) -> None:
        self._session = session
        self._closing = closing
        self._hurry = hurry
        self.backend = session.backend
        self.max_length = session.max_length

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        """Run the graph, then pause.

        Raises:
            _ClosingError: the server ends.
        """
        begin = time.monotonic()
        found = self._session.run(inputs, k, outputs)
        end = time.monotonic()
        if self._closing.wait(end - begin if end < self._hurry else 0.0):
            raise _ClosingError
        return found

    def describe(self) -> str:
        """Describe the session."""
        return self._session.describe()

    def close(self) -> None:
        """Do nothing: the session belongs to the server."""


def _unverified(error: Exception) -> ParityError:
    return ParityError(f"The bundle could not be verified while it was served ({error}); do not serve it.")
