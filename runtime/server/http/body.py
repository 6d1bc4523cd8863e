"""Bodies from strangers: refused while they stream in if they are too long, too slow, or too many at once."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request

from fluxtalk.runtime.server.http.errors import ApiError, bad_request

_MAX_BODIES = 8
"""Bodies of the largest size that may be in memory at a time."""
_ON_ITS_WAY_S = 0.2
"""Seconds that a body has at least: if the client sent it at once, the deadline is at fault and not the body."""


class BodyReader:
    """Reads bodies, and knows how many bytes of them are in memory.

    Args:
        limit: bytes of one body.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    async def read(self, request: Request, deadline: float) -> bytes:
        """Read a whole body, which `release` gives back.

        Args:
            deadline: time on the clock of `time.monotonic`.

        Raises:
            ApiError: 413 over the limit, 408 if it did not come by the deadline, 504 if it did and the deadline passed
                all the same, 429 if too many bodies are in memory, 415 if it is compressed.
            ClientDisconnect: the client hung up.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "A compressed body is not taken; send it as it is.", "unsupported_encoding")
        declared = request.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > self._limit:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), _ON_ITS_WAY_S)):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > self._limit:
                        raise self._too_large()
                    if self._held > _MAX_BODIES * self._limit:
                        raise ApiError(429, "Too many bodies at once; try again.", "memory", retry_after_s=1.0)
                    chunks.append(chunk)
            if time.monotonic() > deadline:
                raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded")
        except TimeoutError:
            self._held -= size
            raise ApiError(408, "The body did not arrive in time.", "body_too_slow") from None
        except BaseException:
            self._held -= size
            raise
        return b"".join(chunks)

    def release(self, body: bytes) -> None:
        """Give back the memory of a body."""
        self._held -= len(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"A body has at most {self._limit:,} bytes; send fewer items.", "body_too_large")


def time_limit(request: Request, longest_s: float) -> float:
    """Read the seconds that a request may take: ``X-Request-Timeout``, and never more than the server allows.

    Raises:
        ApiError: 400: the header is not a positive number.
    """
    asked = request.headers.get("x-request-timeout")
    if asked is None:
        return longest_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise bad_request("X-Request-Timeout must be a positive number of seconds.", "X-Request-Timeout")
    return min(seconds, longest_s)
