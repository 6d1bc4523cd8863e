"""Answers whose memory stays charged until the client has read them."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fluxtalk.runtime.server.http.memory import Charge

_PART_BYTES = 1 << 18


class HeldResponse(Response):
    """An answer sent in parts, each once the one before it has left: no second copy waits in the socket's buffer.

    Args:
        response: the answer.
        charge: what it holds, given back once it is sent or nobody reads it any more.
    """

    def __init__(self, response: Response, charge: Charge) -> None:
        self.status_code = response.status_code
        self.background = response.background
        self.body = bytes(response.body)
        self.raw_headers = response.raw_headers
        self._charge = charge
        charge.keep(len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            size = len(self.body)
            for begin in range(0, max(1, size), _PART_BYTES):
                end = begin + _PART_BYTES
                part = self.body if size <= _PART_BYTES else self.body[begin:end]
                await send({"type": "http.response.body", "body": part, "more_body": end < size})
        finally:
            self.body = b""
            self._charge.release()
