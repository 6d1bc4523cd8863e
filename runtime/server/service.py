"""The state of one server process: loading, ready, draining or failed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from fluxtalk.errors import BundleError
from fluxtalk.runtime.embedder import Embedder, open_embedder
from fluxtalk.runtime.server.execution.dispatcher import Dispatcher
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.body import BodyReader
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.http.memory import MemoryBudget
from fluxtalk.runtime.server.later_verification import LaterVerification
from fluxtalk.runtime.server.metrics import Metrics
from fluxtalk.runtime.server.settings import ServerSettings
from fluxtalk.runtime.verify import verify_start

log = logging.getLogger("fluxtalk.server")

_NOTICE_S = 1.0
"""Seconds between SIGTERM and the end of listening: time for readers of `/readyz` to send requests elsewhere."""
_CLOSE_S = 5.0
"""Seconds after the last request in which everything has to be closed."""


class Service:
    """State that the routes share.

    Args:
        settings: settings of the server.
        on_failure: called if the bundle cannot be loaded, or turns out not to keep what it promises, for the reason in
            `failure`: such a server must not stay.
        open_embedder: loads and verifies the bundle, in a thread. None is `open_verified` at the start, and the rest of
            the verification beside requests.
    """

    def __init__(
        self,
        settings: ServerSettings,
        on_failure: Callable[[], None] = lambda: None,
        open_embedder: Callable[[ServerSettings], Embedder] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.memory = MemoryBudget(settings.memory, self.metrics.rejections.labels("memory").inc)
        self.bodies = BodyReader(settings.max_body_bytes)
        self.failure: Exception | None = None
        """Reason why the bundle could not be loaded."""
        self._on_failure = on_failure
        self._open_embedder = open_embedder
        self.verification: LaterVerification | None = None
        """What is still verified beside requests; None if nothing is, or nothing is loaded yet."""
        self.on_loaded: list[Callable[[ServedModel], None]] = []
        """Called in the thread that loads, before the server is ready; an error is a failure to load."""
        self._dispatcher: Dispatcher | None = None
        self.draining = False
        """True once the server is about to end."""
        self._loading: asyncio.Task[None] | None = None

    @property
    def dispatcher(self) -> Dispatcher | None:
        """Dispatcher of the loaded bundle, once it is warm and verified."""
        return self._dispatcher

    @property
    def why_not_ready(self) -> str | None:
        """Reason in a few words; None if requests should be sent here."""
        if self.draining:
            return "the server is shutting down"
        if self.failure is not None:
            return "the bundle does not keep what it promises"
        if self._dispatcher is None:
            return "the bundle is being loaded and verified"
        return self._dispatcher.why_not_ready

    def require_dispatcher(self) -> Dispatcher:
        """Give a request the dispatcher. A server that shuts down still answers what reaches it.

        Raises:
            ApiError: 503: the bundle is not loaded yet.
        """
        if self._dispatcher is None:
            self.metrics.rejections.labels("not_ready").inc()
            raise ApiError(503, "The bundle is being loaded and verified.", "not_ready", retry_after_s=1.0)
        return self._dispatcher

    async def start(self) -> None:
        """Begin to load, and return at once: liveness is answered meanwhile.

        One of several workers returns when it is ready: earlier, it would take requests from those that are.
        """
        self.metrics.ready.set(0)
        asyncio.get_running_loop().set_exception_handler(_on_loop_error)
        self._handle_signals()
        self._loading = asyncio.create_task(self._load())
        if self.settings.workers > 1:
            await self._loading

    async def stop(self) -> None:
        """Finish what was accepted, and release everything."""
        self.metrics.ready.set(0)
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        if self.verification is not None:
            await asyncio.to_thread(self.verification.close)
        if self._dispatcher is not None:
            await asyncio.to_thread(self._dispatcher.close)

    def drain(self) -> None:
        """Stop being ready; requests that come are still answered."""
        self.draining = True
        self.metrics.ready.set(0)

    async def _load(self) -> None:
        try:
            self._dispatcher = await asyncio.to_thread(self._open)
        except Exception as error:
            self.failure = error
            self._on_failure()
            return
        self.metrics.ready.set(1)
        log.info("ready: %s", self._dispatcher.describe())
        if self.verification is not None:
            self.verification.start()

    def _open(self) -> Dispatcher:
        opened = self._open_embedder
        embedder = opened(self.settings) if opened is not None else open_verified(self.settings, whole=False)
        dispatcher = Dispatcher(embedder, self.settings, self.metrics, self.memory)
        try:
            dispatcher.warm()
            for prepare in self.on_loaded:
                prepare(dispatcher.model)
        except BaseException:
            dispatcher.close()
            raise
        if opened is None:
            self.verification = LaterVerification(embedder, self._fail)
        else:
            embedder.bundle.release_golden()
        return dispatcher

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.metrics.ready.set(0)
        self._on_failure()

    def _handle_signals(self) -> None:
        """Wrap uvicorn's handlers: at SIGTERM not ready first, then the end; at each signal an end in time."""
        try:
            previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            loop = asyncio.get_running_loop()

            def on_signal(number: int, frame: FrameType | None) -> Any:
                first = not self.draining
                if first:
                    self.drain()
                    self._end_in_time()
                handler = previous[signal.Signals(number)]
                assert callable(handler)
                if number == signal.SIGTERM and first:
                    return loop.call_soon_threadsafe(loop.call_later, _NOTICE_S, handler, number, frame)
                return handler(number, frame)

            for number, handler in previous.items():
                if callable(handler):
                    signal.signal(number, on_signal)
        except ValueError:
            return  # not in the main thread: the owner of this server ends it

    def _end_in_time(self) -> None:
        """End this process when the time to drain is over, whatever a thread of it still does."""

        def end() -> None:
            log.error("The server ends with work that did not end in time.")
            logging.shutdown()
            os._exit(1)

        timer = threading.Timer(_NOTICE_S + drain_seconds(self.settings) + _CLOSE_S, end)
        timer.daemon = True
        timer.start()


def drain_seconds(settings: ServerSettings) -> int:
    """Seconds that requests have to end after the port closed: as long as one may take, and a little."""
    return int(settings.timeout_s) + 5


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say in a sentence that no connection can be accepted; asyncio tries again after a second."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        log.error("No connection can be accepted for now: %s.", error.strerror)
    else:
        loop.default_exception_handler(context)


def open_verified(settings: ServerSettings, whole: bool = True) -> Embedder:
    """Load the bundle of the settings, check its hashes and replay its golden vectors.

    Args:
        whole: False to replay each modality's golden batch with one token and with all, and nothing else.

    Raises:
        FluxTalkError: see `load`; or a worker found another bundle than its siblings serve.
    """
    embedder = open_embedder(
        settings.bundle,
        settings.backend_of_worker,
        settings.modalities or None,
        verify=whole,
        choice=settings.choice,
    )
    try:
        found = embedder.bundle.manifest.bundle_hash
        if settings.revision not in (None, found):
            raise BundleError(
                f"The bundle {settings.bundle} was changed while it is served; start the server again to serve the "
                "new one."
            )
        if not whole:
            for report in verify_start(embedder.bundle, embedder.session, embedder.modalities, embedder.precision):
                report.require()
    except BaseException:
        embedder.close()
        raise
    return embedder
