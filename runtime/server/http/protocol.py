"""uvicorn's HTTP protocol, with limits of time for headers that never come and answers that nobody reads.

Also with a limit to the requests in flight: if HTTP costs more than the session, overload shows here and not in the
queue, and a refusal has to be much cheaper than a request.

The one place that overrides uvicorn's methods and reads its private state; `pyproject.toml` bounds its version.
"""

from __future__ import annotations

import asyncio

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fluxtalk.runtime.server.http.errors import error_body, is_kserve

HEADER_SECONDS = 10.0
"""Seconds from a connection, or from a request's first byte, to the end of its headers."""
MAX_HEADER_BYTES = 1 << 16
REQUESTS_AT_A_TIME = 256
"""Requests of the whole process. One more is answered with 429 before anything is done for it."""
OVERLOADED = "overloaded"
"""Name, in the application's state, of the function that is called for such a request."""
_NEVER_REFUSED = (b"/livez", b"/readyz", b"/metrics", b"/v2/health/")
_ON_ITS_WAY_SECONDS = 0.5
"""Seconds that an idle connection stays open when the server ends: its next request may be in the socket already."""
_FLUSH_SECONDS = 30.0
_FLUSH_BYTES = 1 << 18
"""An answer of which fewer bytes leave in so many seconds is given up, and its memory given back."""


def _refusal(kserve: bool) -> bytes:
    sentence = "Too many requests at a time; try again later."
    content = orjson.dumps({"error": sentence} if kserve else error_body(429, sentence, OVERLOADED))
    head = (
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode("ascii") + content


_REFUSALS = {kserve: _refusal(kserve) for kserve in (False, True)}


class DeadlineProtocol(HttpToolsProtocol):
    """Connection with those limits."""

    _refused = False
    _header_timer: asyncio.TimerHandle | None = None
    _flush_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    """Bytes received while waiting for headers, counted over chunks."""
    _field_bytes = 0
    """Bytes of this request's URL and header fields, which may come in one chunk with the body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()
        super().data_received(data)
        if self._header_timer is not None and not self._refused:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._end_of_headers_too_large()

    def on_message_begin(self) -> None:
        self._field_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._field_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value) + len(b": \r\n")
        if self._field_bytes <= MAX_HEADER_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._header_bytes = 0
        if self._field_bytes > MAX_HEADER_BYTES:
            self._refused = True
            self._end_of_headers_too_large()
            return
        # `tasks` are the requests of the process. A pipelined one waits for the answer before it, and does not count.
        between_requests = self.cycle is None or self.cycle.response_complete
        if len(self.tasks) >= REQUESTS_AT_A_TIME and between_requests and not self.url.startswith(_NEVER_REFUSED):
            # The timer goes on: the body, which nobody reads, must end in the time for headers.
            self._refused = True
            if self.expect_100_continue or not self.parser.should_keep_alive():
                self._refuse(keep=False)
            return
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            self._refused = False
            if not self.transport.is_closing():
                self._refuse(keep=True)
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to watch that the answer leaves."""
        super().on_response_complete()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._expect_flushed()

    def shutdown(self) -> None:
        """Answer what is here or on its way, then close."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_ON_ITS_WAY_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP in the shape of every other error."""
        self._end(400, msg, "invalid_http")

    def _refuse(self, keep: bool) -> None:
        told = self.app_state.get(OVERLOADED)
        if told is not None:
            told()
        self._cancel_timers()
        self._header_bytes = 0
        self.transport.write(_REFUSALS[is_kserve(self.url.decode("ascii", "replace").partition("?")[0])])
        if not keep:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._headers_too_late)

    def _headers_too_late(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._end(408, "The headers did not arrive in time.", "headers_too_slow")

    def _expect_flushed(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left:
            self._flush_timer = self.loop.call_later(_FLUSH_SECONDS, self._require_flushed, left)

    def _require_flushed(self, before: int) -> None:
        self._flush_timer = None
        left = self.transport.get_write_buffer_size()
        if left > max(0, before - _FLUSH_BYTES):
            self.transport.abort()
        else:
            self._expect_flushed()

    def _end_of_headers_too_large(self) -> None:
        if not self.transport.is_closing():
            self._end(431, f"A request has at most {MAX_HEADER_BYTES} bytes of headers.", "headers_too_large")

    def _end(self, status: int, message: str, code: str) -> None:
        content = orjson.dumps(error_body(status, message, code))
        head = (
            f"HTTP/1.1 {status} Error\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + content)
        self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self._header_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._flush_timer = None
