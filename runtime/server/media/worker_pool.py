"""A few decoding processes, the queue before them, and the replacement of those that were killed.

Everything but `start` and `close` is called from one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import BackendError, FluxTalkError, InputError, TooLargeError
from fluxtalk.preprocess import ImagePreprocessor, Preprocessor
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.media.worker import ARRAY, FILE, MAX_DECODED_BYTES, NEEDS, NO_LIBRARY, REFUSED, TOO_LARGE
from fluxtalk.runtime.server.media.worker_process import Reply, Worker, WorkerEndedError, shape_of
from fluxtalk.runtime.server.metrics import Metrics

log = logging.getLogger("fluxtalk.server")

ORDINARY_BYTES = MAX_DECODED_BYTES // 4
"""Memory of decoding up to which files share the workers; a larger one is decoded alone, on any but the last worker."""
_WAITING = 64
"""Files that may wait for a worker."""
_STALLED_S = 10.0
"""Seconds that the first file in the queue waits, after which requests should be sent elsewhere."""
_LONGEST_S = 60.0
"""Seconds after which a worker is killed if it neither answers nor uses the processor."""
_GRACE_S = 0.5
"""Seconds in which a worker may still finish a file for which nobody waits any more."""
_KEPT = 0.9
"""Share of the mean time of a file that is kept when a new one is known."""
_ERRORS: dict[bytes, type[FluxTalkError]] = {
    REFUSED: InputError,
    TOO_LARGE: TooLargeError,
    NO_LIBRARY: BackendError,
}
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0


@dataclass(eq=False)
class _Waiting:
    """A file that waits for a worker."""

    large: bool
    since: float
    turn: asyncio.Future[Worker]


class WorkerPool:
    """Decodes files in processes of their own.

    Args:
        count: processes; at least 2, so that one large file leaves one for the others.
        metrics: counters.
        waiting: files that may wait.
    """

    def __init__(self, count: int, metrics: Metrics, waiting: int = _WAITING) -> None:
        self.count = max(2, count)
        self.metrics = metrics
        self._most_waiting = waiting
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._waiting: deque[_Waiting] = deque()
        self._large_in_work = False
        self.seconds_per_file = 0.0
        """Mean seconds of a file, lately."""
        self._failed_starts = 0
        self._closed = threading.Event()
        self._in_use: set[Worker] = set()
        self._given_up: set[Worker] = set()
        self._replacing: set[asyncio.Task[None]] = set()

    @property
    def workers(self) -> list[int]:
        """Process identifiers of the workers that live."""
        return [worker.pid for worker in self._all]

    @property
    def is_resting(self) -> bool:
        """True if no worker decodes, and none is being started in the place of one that was killed."""
        return not self._in_use and not self._replacing

    @property
    def why_not_ready(self) -> str | None:
        """Reason why files should be sent elsewhere; None if there is none."""
        if not self._all and self._failed_starts:
            return "no process for decoding can be started"
        if self._waiting and (waited := time.monotonic() - self._waiting[0].since) > _STALLED_S:
            return f"a file has been waiting {waited:.0f} s to be decoded"
        return None

    def start(self) -> None:
        """Start every worker. Blocks until they are warm.

        Raises:
            BackendError: a worker does not start, or this is Windows.
        """
        if sys.platform == "win32":
            raise BackendError(
                "Pictures and sounds are decoded in processes that are given a socket, which Windows does not do; "
                "serve with --modality text, or in a container."
            )
        try:
            for _ in range(self.count):
                self._all.add(Worker())
            for worker in self._all:
                worker.wait_until_ready()
        except (OSError, WorkerEndedError):
            self.close()
            raise BackendError("A process for decoding files cannot be started; its message is above.") from None
        self._idle = list(self._all)
        self.metrics.decode_workers.set(len(self._all))

    def close(self) -> None:
        """Kill every worker, whatever it does."""
        self._closed.set()
        for worker in list(self._all):
            worker.kill()
        for worker in list(self._all):
            worker.bury()
        for worker in self._all - self._in_use:  # who waits for one in use closes it
            worker.close()
        self._all.clear()
        self._idle.clear()

    async def prepare(self, preprocess: Preprocessor, data: bytes, deadline: float) -> Array:
        """Decode a file as `Preprocessor.prepare` does.

        Args:
            preprocess: preprocessing of images or sounds.
            data: the file.
            deadline: time on the clock of `time.monotonic` by which it is of use.

        Raises:
            InputError: the file cannot be used.
            ApiError: 429: too many files wait.
        """
        reply = await self._answer({"work": "prepare", "preprocess": preprocess.to_parts()[0]}, data, deadline)
        found = shape_of(reply.header, reply.content) if reply.kind == ARRAY else None
        if found is None or not _fits(preprocess, found[1]):
            raise _broke()
        return np.frombuffer(reply.content, found[0]).reshape(found[1])

    async def thumbnail(self, data: bytes, side: int, deadline: float) -> tuple[bytes, str]:
        """Make a small picture of an image file; see `encoded_thumbnail`.

        Raises:
            InputError: the file cannot be used.
            ApiError: 429: too many files wait.
        """
        reply = await self._answer({"work": "thumbnail", "side": side}, data, deadline)
        media_type = reply.header.get("media_type")
        if reply.kind != FILE or media_type not in ("image/jpeg", "image/png"):
            raise _broke()
        return bytes(reply.content), str(media_type)

    async def _answer(self, asked: dict[str, Any], data: bytes, deadline: float) -> Reply:
        """Ask a worker, and once more with all the memory that a file may take if the file needs it.

        Raises:
            InputError: it is refused.
            BackendError: a library that it needs is missing.
        """
        reply = await self._ask(asked, data, deadline, large=False)
        if reply.kind == NEEDS:
            reply = await self._ask(asked, data, deadline, large=True)
        if reply.kind in _ERRORS:
            raise _ERRORS[reply.kind](str(reply.header.get("message"))[:1000])
        return reply

    async def _ask(self, asked: dict[str, Any], data: bytes, deadline: float, large: bool) -> Reply:
        worker = await self._turn(large, deadline)
        header = {**asked, "allowed_bytes": MAX_DECODED_BYTES if large else ORDINARY_BYTES}
        work = asyncio.create_task(self._use(worker, header, data, large))
        work.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # somebody may not wait for it any more
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A little patience: else requests that end at once would cost a new process each.
            asyncio.get_running_loop().call_later(_GRACE_S, self._give_up, worker, work)
            raise

    def _give_up(self, worker: Worker, work: asyncio.Task[Reply]) -> None:
        if not work.done():
            self._given_up.add(worker)
            worker.kill()

    async def _use(self, worker: Worker, header: dict[str, Any], data: bytes, large: bool) -> Reply:
        """Ask a worker that is taken, and give it back or replace it.

        Raises:
            InputError: it ended over the file.
            ApiError: 503: it was ended.
        """
        begin = time.monotonic()
        ended = "canceled"
        self._in_use.add(worker)
        try:
            async with asyncio.timeout(_LONGEST_S):
                reply = await worker.ask(header, data)
            ended = ""
            return reply
        except WorkerEndedError as error:
            ended = "canceled" if worker in self._given_up else error.cause
            if self._closed.is_set():
                raise ApiError(503, "The server is shutting down.", "shutting_down") from None
            raise _took_too_long() if ended == "cpu" else _broke() from None
        except TimeoutError:
            ended = "time"
            raise _took_too_long() from None
        finally:
            self._large_in_work = self._large_in_work and not large
            self._in_use.discard(worker)
            self._given_up.discard(worker)
            if ended:
                self._replace(worker, ended)
            else:
                self._idle.append(worker)
            seconds = time.monotonic() - begin
            self.metrics.decode_seconds.labels("worker").observe(seconds)
            self.seconds_per_file = _KEPT * self.seconds_per_file + (1 - _KEPT) * seconds
            self._give_turns()

    async def _turn(self, large: bool, deadline: float) -> Worker:
        """Wait for a worker, in the order of arrival.

        Raises:
            ApiError: 429: too many wait, or for too long.
        """
        self._require_room(deadline)
        waiting = _Waiting(large, time.monotonic(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._give_turns()
        self.metrics.decode_waiting.set(len(self._waiting))
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():  # it got one in this very moment
                self._large_in_work = self._large_in_work and not large
                self._idle.append(waiting.turn.result())
            else:
                self._waiting.remove(waiting)
            self._give_turns()
            raise
        finally:
            self.metrics.decode_waiting.set(len(self._waiting))

    def _require_room(self, deadline: float) -> None:
        wait = len(self._waiting) * self.seconds_per_file / self.count
        if len(self._waiting) >= self._most_waiting:
            self.metrics.rejections.labels("decoding_full").inc()
            sentence = f"{len(self._waiting)} files wait to be decoded, and no more may; try again later."
            raise ApiError(429, sentence, "decoding_full", retry_after_s=wait)
        if self._waiting and time.monotonic() + wait > deadline:
            self.metrics.rejections.labels("decoding_too_slow").inc()
            sentence = f"Decoding would begin in about {wait:.1f} s, after this request's time; try again later."
            raise ApiError(429, sentence, "decoding_too_slow", retry_after_s=wait)

    def _give_turns(self) -> None:
        """Give idle workers to those that wait; large files pass none of the others, and the others pass them."""
        for worker in [worker for worker in self._idle if not worker.is_running]:
            self._idle.remove(worker)
            self._replace(worker, "crashed")
        for waiting in list(self._waiting):
            if not self._idle:
                return
            if waiting.large and self._large_in_work:
                continue
            self._waiting.remove(waiting)
            if waiting.turn.cancelled():
                continue
            self._large_in_work = self._large_in_work or waiting.large
            waiting.turn.set_result(self._idle.pop())

    def _replace(self, worker: Worker, cause: str) -> None:
        worker.kill()
        worker.close()
        self._all.discard(worker)
        self.metrics.decode_workers.set(len(self._all))
        self.metrics.decode_workers_killed.labels(cause).inc()
        if self._closed.is_set():
            worker.bury()
        else:
            task = asyncio.create_task(self._start_another(worker))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)

    async def _start_another(self, killed: Worker) -> None:
        """Start a worker in the place of one that was killed, and try again, ever later, if that fails."""
        await asyncio.to_thread(killed.bury)
        retry_s = _FIRST_RETRY_S
        while not self._closed.is_set():
            try:
                worker = await asyncio.to_thread(self._started)
            except (OSError, WorkerEndedError):
                if self._closed.is_set():
                    return
                self._failed_starts += 1
                log.warning("A process for decoding files cannot be started; the next attempt is in %.1f s.", retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
                continue
            self._failed_starts = 0
            self._idle.append(worker)
            self.metrics.decode_workers.set(len(self._all))
            self._give_turns()
            return

    def _started(self) -> Worker:
        """Start a worker, and wait until it is warm. `close` knows of it from the beginning.

        Raises:
            OSError, WorkerEndedError: it does not start.
        """
        worker = Worker()
        self._all.add(worker)
        if self._closed.is_set():
            worker.kill()
        try:
            worker.wait_until_ready()
        except WorkerEndedError:
            self._all.discard(worker)
            raise
        return worker


def _fits(preprocess: Preprocessor, shape: tuple[int, ...]) -> bool:
    if isinstance(preprocess, ImagePreprocessor):
        return shape == (preprocess.height, preprocess.width, preprocess.channels)
    return preprocess.kind != "image"


def _took_too_long() -> InputError:
    return InputError("The file takes much longer to decode than one of its size should; save it anew.")


def _broke() -> InputError:
    return InputError("The file breaks its decoder; save it anew.")
