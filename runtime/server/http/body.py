"""Bodies from strangers: refused while they stream in if they are too long, too slow, or too many for the memory."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request

from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.runtime.server.http.memory import Charge

_ON_ITS_WAY_S = 0.2
"""Seconds that a body has at least: if the client sent it at once, the deadline is at fault and not the body."""


class BodyReader:
    """Reads bodies.

    Args:
        limit: bytes of one body.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    async def read(self, request: Request, deadline: float, charge: Charge) -> bytes:
        """Read a whole body.

        Args:
            deadline: time on the clock of `time.monotonic`.
            charge: charged with the body.

        Raises:
            ApiError: 413 over the limit, 408 if it did not come by the deadline, 504 if it did and the deadline passed
                all the same, 429 if there is no memory for it, 415 if it is compressed.
            ClientDisconnect: the client hung up.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "A compressed body is not taken; send it as it is.", "unsupported_encoding")
        declared = request.headers.get("content-length", "0")
        # Of more digits, Python would refuse to make an integer.
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > self._limit):
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), _ON_ITS_WAY_S)):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._limit:
                        raise self._too_large()
                    charge.hold(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise ApiError(408, "The body did not arrive in time.", "body_too_slow") from None
        if time.monotonic() > deadline:
            raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded")
        if len(chunks) == 1:
            return chunks[0]
        charge.hold(size)
        body = b"".join(chunks)
        charge.keep(charge.held - size)
        return body

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
