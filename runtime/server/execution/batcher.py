"""Micro-batching without a timer: a batch is what queued while the previous one ran.

One thread runs one modality's session. Requests of different k share a batch: it runs at the largest, and each item is
cut to its own, which is exact because tokens are prefixes. A batch holds items of like length, and no more of them than
its weight allows.

Callers take turns by the work of their items (Goyal, Vin and Cheng, "Start-time fair queueing", 1996), so a long
request never stands before a short one of somebody else, and single items are served as they come. A request that falls
behind the pace which its deadline asks for goes first.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.batching import MAX_PADDING_SHARE
from fluxtalk.runtime.server.execution.admission import COUNTED_ON, Caller
from fluxtalk.runtime.server.execution.work import Throughput, run_unit
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.metrics import Metrics
from fluxtalk.tokens import Selection

log = logging.getLogger("fluxtalk.server")

_REMEMBERED = 1024
"""Callers without a request whose next turn is remembered."""
_LOOK = 8
"""Items of the queue, in batches, that are searched for items of like length."""


@dataclass(eq=False)
class Job:
    """One request's items of one modality."""

    arrays: Sequence[Array]
    """Prepared inputs, one for each item."""
    positions: list[int]
    """Positions of the items in the request, for errors."""
    selection: Selection
    """Output of every item, and its k. For attention, the items have one length."""
    deadline: float
    """Time on the clock of `time.monotonic` after which work that has not begun is dropped."""
    caller: Caller = field(default_factory=Caller.alone)
    future: Future[NDArray[np.float32]] = field(default_factory=Future)
    """Vectors in the order of the arrays. If it is canceled, items that have not begun are never run."""
    rows: NDArray[np.float32] | None = None
    given: int = 0
    """Items whose vectors are in ``rows``."""
    begun: float = 0.0
    """Time at which it was queued."""
    waiting: deque[_Entry] = field(default_factory=deque)
    """Its items in order, if it is longer than a batch; those that were taken are dropped as they are met."""

    def next_due(self) -> float:
        """Time by which its next item has to be taken if all are to be done in time, one after the other."""
        while self.waiting and self.waiting[0].taken:
            self.waiting.popleft()
        if not self.waiting or self.future.done():
            return float("inf")
        done = (self.waiting[0].position + 1) / len(self.arrays)
        return self.begun + COUNTED_ON * (self.deadline - self.begun) * done

    def give(self, positions: list[int], vectors: NDArray[np.float32]) -> None:
        """Take the vectors of some items; the last of them complete the job."""
        if self.rows is None:
            self.rows = np.empty((len(self.arrays), *vectors.shape[1:]), dtype=np.float32)
        self.rows[positions] = vectors
        self.given += len(positions)
        if self.given == len(self.arrays):
            with contextlib.suppress(InvalidStateError):  # canceled in this very moment
                self.future.set_result(self.rows)

    def fail(self, error: Exception) -> None:
        """End the job with an error; its other items are not run."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(order=True)
class _Entry:
    """One item in the queue, in the order in which items take turns."""

    turn: float
    number: int
    job: Job = field(compare=False)
    position: int = field(compare=False)
    length: int = field(compare=False)
    weight: float = field(compare=False)
    """Weight of one unit of length."""
    queued: float = field(compare=False)
    taken: bool = field(compare=False, default=False)


class Batcher:
    """The queue and the thread of one modality.

    Args:
        modality: name for messages and metrics.
        session: the session, which this thread alone runs.
        preprocess: preprocessing of the modality.
        max_weight: items of ordinary size in a batch, padding included.
        throughput: told of every batch.
        metrics: counters, told of every batch.
        known_good: inputs that the session must be able to run. If it fails at an item, it is asked again with these,
            and the thread ends if it fails at them, too. None: it is not asked.
    """

    def __init__(
        self,
        modality: str,
        session: Session,
        preprocess: Preprocessor,
        max_weight: int,
        throughput: Throughput,
        metrics: Metrics,
        known_good: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.modality = modality
        self._session = session
        self._preprocess = preprocess
        self._max_weight = max_weight
        self._throughput = throughput
        self._metrics = metrics
        self._known_good = known_good
        self._queue_seconds = metrics.queue_seconds.labels(modality)
        self._run_seconds = metrics.stage_seconds.labels("run")
        self._batch_items = metrics.batch_items.labels(modality)
        self._padding_ratio = metrics.padding_ratio.labels(modality)
        self._unit = run_unit(preprocess)
        self._changed = threading.Condition()
        self._heap: list[_Entry] = []
        self._number = 0
        self._now = 0.0
        """Turn of the last item that was taken: virtual time."""
        self._next_turns: dict[Caller, float] = {}
        """Next turns of callers; how many jobs each of those that wait has, and each client's callers that wait.

        Turns outlive a job while anybody waits: who sends one short request after the other would else always be first.
        """
        self._jobs: Counter[Caller] = Counter()
        self._callers: Counter[str] = Counter()
        self._long: list[Job] = []
        self._closing = False
        self._cause_of_death: BaseException | None = None
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._live, name=f"fluxtalk-{modality}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the thread can run a batch."""
        return self._cause_of_death is None and self._thread.is_alive()

    @property
    def seconds_in_batch(self) -> float:
        """Seconds since the present batch began; 0 between batches."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def require_alive(self) -> None:
        """Refuse work that nobody would do.

        Raises:
            ApiError: 503: the thread died.
        """
        if not self.alive:
            raise self._dead()

    def submit(self, job: Job) -> Future[NDArray[np.float32]]:
        """Queue a job that was let in."""
        now = job.begun = time.monotonic()
        lengths = [self._preprocess.length(array) for array in job.arrays]
        with self._changed:
            if not self.alive or self._closing:
                job.fail(self._dead())
                return job.future
            caller = job.caller
            self._join(job)
            turn = max(self._now, self._next_turns.get(caller, 0.0))
            for position, (array, length) in enumerate(zip(job.arrays, lengths, strict=True)):
                weight = self._weight(array, length)
                self._number += 1
                entry = _Entry(turn, self._number, job, position, length, weight, now)
                # Connections of one client share its turns.
                turn += (1 / 32 + weight * length) * self._callers[caller.client]
                heapq.heappush(self._heap, entry)
                if len(job.arrays) > self._max_weight:
                    job.waiting.append(entry)
            self._next_turns[caller] = turn
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    def close(self, patience_s: float) -> bool:
        """Finish what is queued, then end the thread; False if it does not end in that time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _join(self, job: Job) -> None:
        if not self._jobs[job.caller]:
            self._callers[job.caller.client] += 1
        self._jobs[job.caller] += 1
        if len(job.arrays) > self._max_weight:
            self._long.append(job)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._jobs[job.caller] -= 1
            if not self._jobs[job.caller]:
                del self._jobs[job.caller]
                self._forget_turns()
                self._callers[job.caller.client] -= 1
                if not self._callers[job.caller.client]:
                    del self._callers[job.caller.client]
            if job in self._long:
                self._long.remove(job)

    def _forget_turns(self) -> None:
        """Forget the turns of callers that do not wait, once nobody waits, or if there are too many."""
        if len(self._next_turns) > (len(self._jobs) and len(self._jobs) + _REMEMBERED):
            self._next_turns = {caller: turn for caller, turn in self._next_turns.items() if caller in self._jobs}

    def _weight(self, array: Array, length: int) -> float:
        if self._preprocess.kind == "image":
            return float(array.shape[0] * array.shape[1]) / self._unit
        return 1 / self._unit

    def _live(self) -> None:
        batch: list[_Entry] = []
        try:
            while batch := self._next():
                self._run(batch)
        except BaseException as error:  # the end of this thread must be noticed, whatever ends it
            self._die(error, batch)

    def _die(self, error: BaseException, batch: list[_Entry]) -> None:
        log.error("The thread of %s died of %s; the server is not ready any more.", self.modality, type(error).__name__)
        with self._changed:
            self._cause_of_death = error
            entries = batch + self._heap
            self._heap = []
        for entry in entries:
            entry.job.fail(self._dead())

    def _dead(self) -> ApiError:
        return ApiError(503, f"The engine of {self.modality} stopped; another server must answer.", "engine_stopped")

    def _next(self) -> list[_Entry]:
        """Wait for items, and take the next batch; empty once the queue is closed and done."""
        with self._changed:
            while True:
                batch = self._gather()
                if batch or self._closing:
                    return batch
                self._changed.wait()

    def _gather(self) -> list[_Entry]:
        """Take the first item whose turn it is, and those behind it that fit to it."""
        batch: list[_Entry] = []
        passed: list[_Entry] = []
        longest = total = 0
        for entry, is_popped in self._in_turn():
            count, length = len(batch) + 1, max(longest, entry.length)
            padded = count * length
            # A short item still costs a row: it weighs at least 1.
            heavy = count * max(1.0, length * entry.weight) > self._max_weight
            if not batch or not (heavy or padded - (total + entry.length) > padded * MAX_PADDING_SHARE):
                batch.append(entry)
                entry.taken = True
                longest, total = length, total + entry.length
                if count >= self._max_weight:
                    break
            elif is_popped:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return batch

    def _in_turn(self) -> Iterator[tuple[_Entry, bool]]:
        """Look through the queue: first at what is behind its pace, then at whose turn it is.

        Yields:
            each entry, and True if it is not in the heap any more.
        """
        late = min(self._long, key=Job.next_due, default=None)
        if late is not None and late.next_due() < time.monotonic() and _is_wanted(late):
            for entry in list(late.waiting)[: self._max_weight]:
                if not entry.taken:
                    yield entry, False
        looked = 0
        while self._heap and looked < _LOOK * self._max_weight:
            entry = heapq.heappop(self._heap)
            if entry.taken or not _is_wanted(entry.job):
                continue
            if not looked:
                self._now = max(self._now, entry.turn)
            looked += 1
            yield entry, True

    def _run(self, batch: list[_Entry]) -> None:
        begin = time.monotonic()
        self._running_since = begin
        try:
            outputs = self._outputs(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].job.fail(self._item_error(batch[0], error))
                if not isinstance(error, InputError) and self._known_good is not None:
                    # If the session fails at good inputs too, it was not the item: nobody gets an answer here any more,
                    # and the error ends this thread.
                    self._session.run(self._known_good, 1)
                return
            log.warning("A batch of %d %s items failed; they are run one by one.", len(batch), self.modality)
            self._metrics.batch_retries.labels(self.modality).inc()
            for entry in batch:
                if _is_wanted(entry.job):
                    self._run([entry])
            return
        finally:
            self._running_since = None
        elapsed = time.monotonic() - begin
        by_job: dict[Job, list[int]] = {}
        for row, entry in enumerate(batch):
            by_job.setdefault(entry.job, []).append(row)
        for job, rows in by_job.items():
            vectors = job.selection.cut(outputs[job.selection.graph_output][rows])
            finite = np.isfinite(vectors).reshape(len(rows), -1).all(axis=1)
            positions = [batch[row].position for row in rows]
            if finite.all():
                job.give(positions, vectors)
            else:
                self._metrics.non_finite.labels(self.modality).inc(int((~finite).sum()))
                job.fail(_non_finite(job.positions[positions[int(finite.argmin())]]))
        self._observe(batch, begin, elapsed)

    def _outputs(self, batch: list[_Entry]) -> dict[str, NDArray[np.float32]]:
        inputs = self._preprocess.collate([entry.job.arrays[entry.position] for entry in batch])
        selections = {entry.job.selection for entry in batch}
        k = max(selection.k for selection in selections)
        wanted = sorted({selection.graph_output for selection in selections})
        return self._session.run(inputs, k, wanted)

    def _item_error(self, entry: _Entry, error: Exception) -> Exception:
        position = entry.job.positions[entry.position]
        if isinstance(error, InputError):
            return ApiError(422, f"input {position}: {error}", "invalid_input", f"input[{position}]")
        # A library's message may hold a part of the input.
        log.error("An item of %s failed with %s.", self.modality, type(error).__name__)
        log.debug("The exception:", exc_info=error)
        return ApiError(500, f"input {position}: the engine failed at this item.", "engine_failed")

    def _observe(self, batch: list[_Entry], begin: float, elapsed: float) -> None:
        count = len(batch)
        self._throughput.ran([entry.length for entry in batch], elapsed)
        padded = count * max(entry.length for entry in batch)
        self._run_seconds.observe(elapsed)
        self._batch_items.observe(count)
        self._padding_ratio.observe(1 - sum(e.length for e in batch) / padded)
        for entry in batch:
            self._queue_seconds.observe(begin - entry.queued)


def _is_wanted(job: Job) -> bool:
    """True while somebody waits for the job; one that is too late ends here with an error."""
    if job.future.done():
        return False
    if time.monotonic() > job.deadline:
        job.fail(ApiError(504, "The time that this request may take is over.", "deadline_exceeded"))
        return False
    return True


def _non_finite(position: int) -> ApiError:
    return ApiError(
        422,
        f"input {position}: its embedding is not finite in this precision, so there is none to give.",
        "non_finite_embedding",
        f"input[{position}]",
    )
