"""Admission: who is let in, by the work that a request brings and the time that it may take.

A request that is let in promises nothing less than its answer in time: of the throughput that is measured, it is given
the share that it needs, and the shares of all never exceed what there is. Nobody gets more than what is left to
others, so that one client's large requests leave room for everybody's small ones (the dynamic thresholds of Choudhury
and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fluxtalk.runtime.server.execution.work import Throughput, Work
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.metrics import Metrics

COUNTED_ON = 0.8
"""Share of a request's time in which it has to be done by estimate: estimates err."""
_ROUGH = 0.6
"""Share of an estimate that is held against a request before its texts are tokenized."""
_ADVISED = 0.9
"""Share of what would fit that is advised: the next estimate is not quite the same."""
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Caller:
    """Sender of a request, for fairness: a client, and one of its connections."""

    client: str
    """Key or address. Clients share the server equally."""
    connection: str
    """Connections share what their client gets."""

    @classmethod
    def alone(cls) -> Caller:
        """Make a caller that shares with nobody, for requests that come over no connection."""
        name = f"#{next(_NUMBERS)}"
        return cls(name, name)


@dataclass(eq=False)
class Claim:
    """Request that was let in."""

    caller: Caller
    items: int
    seconds: float
    """Estimate of its work."""
    share: float
    """Part of all throughput that it needs to be in time."""
    deadline: float
    left_s: float
    """Seconds until then, when it was let in."""
    prepare: float = 0.0
    """Units of preparing."""


@dataclass
class Admission:
    """Requests of one modality that were let in and are not answered.

    Args:
        modality: name for messages and metrics.
        nouns: what one item and several are called in messages.
        queue: items that may be accepted and unanswered at a time.
        throughput: the estimates.
        metrics: counters.
    """

    modality: str
    nouns: tuple[str, str]
    queue: int
    throughput: Throughput
    metrics: Metrics
    _claims: set[Claim] = field(default_factory=set)
    _by_caller: dict[Caller, list[Claim]] = field(default_factory=dict)
    _items: int = 0
    _share: float = 0.0
    _seconds: float = 0.0

    def admit(self, caller: Caller, works: Sequence[Work], deadline: float) -> Claim:
        """Let a request in before anything is spent on it; `release` ends it.

        Args:
            works: estimate of each item.
            deadline: time on the clock of `time.monotonic`.

        Raises:
            ApiError: 429 if there is no room now; 413 if the request alone is more than can be done in its time.
        """
        total = sum(works, Work())
        claim = Claim(caller, len(works), 0.0, 0.0, deadline, deadline - time.monotonic(), total.prepare)
        self._check_room(claim)
        self._estimate(claim, total, _ROUGH if self._is_text else 1.0)
        self._claims.add(claim)
        self._by_caller.setdefault(caller, []).append(claim)
        self._items += claim.items
        self.metrics.outstanding.labels(self.modality).set(self._items)
        return claim

    def settle(self, claim: Claim, run: Work) -> None:
        """Replace the estimate of a request by what is to be done, now that its items are prepared.

        Raises:
            ApiError: as `admit`, if the texts are longer than they seemed; `release` is still to be called.
        """
        self._set(claim, 0.0, 0.0)
        seconds = self.throughput.seconds(run)
        if self._is_text:
            self._estimate(claim, run)
        elif claim.left_s > 0:
            self._set(claim, seconds, seconds / (COUNTED_ON * claim.left_s))

    def release(self, claim: Claim) -> None:
        """End a request."""
        self._set(claim, 0.0, 0.0)
        self._claims.remove(claim)
        self._by_caller[claim.caller].remove(claim)
        if not self._by_caller[claim.caller]:
            del self._by_caller[claim.caller]
        self._items -= claim.items
        if not self._claims:
            self._seconds = self._share = 0.0  # nothing of rounding stays
        self.metrics.outstanding.labels(self.modality).set(self._items)

    @property
    def _is_text(self) -> bool:
        """True if the work of items is known only after they are tokenized."""
        return self.nouns[0] == "text"

    def _check_room(self, claim: Claim) -> None:
        own = sum(other.items for other in self._by_caller.get(claim.caller, ()))
        room = max(1, -(-(self.queue - self._items - own) // 2)) if self._items < self.queue else 0
        if claim.items > room:
            raise self._refusal(
                "queue_full",
                f"The queue of {self.modality} has {self._items:,} of {self.queue:,} items, and room for {room:,} of "
                "this request; try again later.",
            )

    def _estimate(self, claim: Claim, work: Work, part: float = 1.0) -> None:
        """Set the seconds and the share of a request.

        Args:
            part: of the estimate, that is held against it.

        Raises:
            ApiError: they are too many.
        """
        seconds, left = part * self.throughput.seconds(work), claim.left_s
        if seconds <= 0 or left <= 0:  # nothing is known, or the time is over, which others say
            return
        share = seconds / (COUNTED_ON * left)
        if claim.items == 1:
            # It cannot be made smaller. A single file is decoded as long as there is time for it.
            run_s = part * self.throughput.seconds(replace(work, prepare=0.0))
            if run_s > COUNTED_ON * left:
                raise self._too_much(1, run_s, left)
            share = min(share, 0.5)
        elif share > 0.5:
            raise self._too_much(claim.items, seconds, left)
        own = sum(other.share for other in self._by_caller.get(claim.caller, ()))
        needed = share if claim.items == 1 else 2 * share
        wait = seconds + self._seconds
        if wait > left:
            # What comes before it: of everybody else, at most as much work as its own.
            wait = seconds + sum(min(other.seconds, seconds) for other in self._claims)
        if self._seconds and (own + self._share + needed > 1 or wait > left):
            raise self._refusal(
                "too_slow",
                f"The wait would be about {max(wait, self._seconds):.1f} s, longer than this request may take; try "
                "again later.",
            )
        self._set(claim, seconds, share)

    def _set(self, claim: Claim, seconds: float, share: float) -> None:
        self._seconds += seconds - claim.seconds
        self._share += share - claim.share
        claim.seconds, claim.share = seconds, share

    def _too_much(self, items: int, seconds: float, left: float) -> ApiError:
        self.metrics.rejections.labels("too_much_work").inc()
        one, many = self.nouns
        fit = math.floor(_ADVISED * items * 0.5 * COUNTED_ON * left / seconds)
        if items == 1 or not fit:
            sentence = (
                f"One {one} of this length takes about {_shown(seconds / items)} here, and this request may take "
                f"{_shown(left)}; give it more time (X-Request-Timeout, or the server's --timeout)."
            )
        else:
            sentence = (
                f"{items:,} {many} of this length take about {_shown(seconds)} here, and this request may take "
                f"{_shown(left)}, of which others have a half: send at most {fit:,} of this length in a request."
            )
        return ApiError(413, sentence, "too_much_work", "input")

    def _refusal(self, code: str, sentence: str) -> ApiError:
        self.metrics.rejections.labels(code).inc()
        soonest = min((claim.seconds for claim in self._claims), default=0.0)
        return ApiError(429, sentence, code, retry_after_s=min(30.0, max(soonest, self._share)))


def _shown(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
