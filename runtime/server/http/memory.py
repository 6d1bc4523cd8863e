"""One budget in bytes for what requests bring and get: bodies, parsed values, decoded images, vectors, answers.

Everything is charged before it is made, from an estimate, and given back when it is gone. A charge that does not fit is
refused with 429, and one that never would with 413: the kernel's killer would end everybody's requests.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fluxtalk.devices.memory import available_memory
from fluxtalk.runtime.server.http.errors import ApiError

_MIB = 1 << 20
_MOST_BY_DEFAULT = 512 * _MIB
_SHARE_BY_DEFAULT = 4
"""The default is this part of the memory that there is."""
BODIES_IN_BUDGET = 4
"""Bodies of the largest size that the budget must hold, since one is read and parsed in several forms."""
_LIST_BYTES, _OBJECT_BYTES, _ELEMENT_BYTES, _STRING_BYTES = 96, 320, 40, 56
"""Bytes that Python takes for an empty list, an object of few fields, a number with its place, a string's head."""
_WIDE = 4
"""Bytes of a character in a text that has characters beyond Latin-1."""
_TRIM_BYTES = 32 * _MIB
"""Bytes given back after which the C library is asked to give them to the system."""


def default_budget(max_body_bytes: int, processes: int) -> int:
    """Choose a process's budget: a quarter of the memory that there is, by machine and control group, at most 512 MiB,
    and never less than a body of the largest size needs."""
    available = available_memory()
    most = _MOST_BY_DEFAULT if available is None else min(_MOST_BY_DEFAULT, available // _SHARE_BY_DEFAULT // processes)
    return max(most, BODIES_IN_BUDGET * max_body_bytes)


def parsed_bytes(data: bytes) -> int:
    """Estimate the bytes of what a JSON text becomes when it is parsed, from the characters that it is made of.

    Never much less than it takes; up to several times as much if strings hold brackets and commas.
    """
    wide = 1 if data.isascii() and b"\\u" not in data else _WIDE
    return (
        wide * len(data)
        + _LIST_BYTES * data.count(b"[")
        + _OBJECT_BYTES * data.count(b"{")
        + _ELEMENT_BYTES * data.count(b",")
        + _STRING_BYTES * (data.count(b'"') // 2)
    )


class MemoryBudget:
    """Bytes of a process that requests may hold. Thread-safe.

    Nobody gets more than what is left to others: a request holds at most as much as stays free, so large ones leave
    room for everybody's small ones.

    Args:
        limit: bytes in all.
        count_refusal: called for every charge that does not fit.
    """

    def __init__(self, limit: int, count_refusal: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self._count_refusal = count_refusal
        self._lock = threading.Lock()
        self._held = 0
        self._released = 0

    @property
    def held(self) -> int:
        """Bytes that are charged now."""
        return self._held

    @property
    def most_of_one(self) -> int:
        """Bytes that one request may hold."""
        return self.limit // 2

    def has_room(self, size: int) -> bool:
        """True if a request that holds nothing could hold so many bytes now."""
        return self._held + 2 * size <= self.limit

    def charge(self) -> Charge:
        """Open the account of a request."""
        return Charge(self)

    def change(self, own: int, more: int) -> None:
        """Charge `more` bytes to a request that holds `own`; negative bytes are given back.

        Raises:
            ApiError: 413 or 429.
        """
        with self._lock:
            if more > 0:
                if own + more > self.most_of_one:
                    raise self._refusal(own + more)
                if self._held + own + 2 * more > self.limit:
                    raise self._refusal(0)
            self._held += more
            self._released -= min(0, more)
            trim = self._released > _TRIM_BYTES and self._held < self.limit // 8
            if trim:
                self._released = 0
        if trim:
            threading.Thread(target=_trim, name="fluxtalk-trim", daemon=True).start()

    def _refusal(self, never: int) -> ApiError:
        self._count_refusal()
        if never:
            sentence = (
                f"This request would take about {_mib(never)} of memory, and one may take {_mib(self.most_of_one)} "
                "(the server's --memory); send it in parts."
            )
            return ApiError(413, sentence, "too_much_memory", "input")
        sentence = "The memory that this server gives to requests is in use; try again later."
        return ApiError(429, sentence, "memory", retry_after_s=1.0)


class Charge:
    """Bytes that one request holds, given back at the end of a ``with``.

    Args:
        budget: the budget that they are of.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held = 0
        """Bytes."""

    def hold(self, size: int) -> None:
        """Charge more bytes.

        Raises:
            ApiError: 413 or 429.
        """
        self._budget.change(self.held, size)
        self.held += size

    def keep(self, size: int) -> None:
        """Give back what is more than that many bytes."""
        if size < self.held:
            self._budget.change(self.held, size - self.held)
            self.held = size

    def release(self) -> None:
        """Give back everything."""
        self.keep(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()


def _mib(size: int) -> str:
    return f"{max(1, round(size / _MIB)):,} MiB"


def _trim() -> None:
    """Have the C library give free memory to the system; others than glibc do it by themselves, or not at all."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
