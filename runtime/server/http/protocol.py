"""uvicorn's HTTP protocol, with limits of time for headers that never come and answers that nobody reads.

Also with a limit to the requests in flight (`Places`): if HTTP costs more than the session, overload shows here and not
in the queue, and a refusal has to be much cheaper than a request.

The one place that overrides uvicorn's methods and reads its private state; `pyproject.toml` bounds its version.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fluxtalk.runtime.server.http.errors import error_body, is_kserve
from fluxtalk.runtime.server.http.places import OVERLOADED, Arrival, Places

log = logging.getLogger("fluxtalk.server")

HEADER_SECONDS = 10.0
"""Seconds from a connection, or from a request's first byte, to the end of its headers."""
MAX_HEADER_BYTES = 1 << 16
PLACES = "places"
"""Name, in the application's state, of the process's `Places`."""
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


Headers = Iterable[tuple[bytes, bytes]]
_MOST_DIGITS = 18
_TOO_LARGE = 431, f"A request has at most {MAX_HEADER_BYTES} bytes of headers.", "headers_too_large"
_HOLDS_PLACE = "holds_place"
"""Name, in a request's state, of whether it counts among the running ones."""
_REFUSALS = {kserve: _refusal(kserve) for kserve in (False, True)}


def _fault_of(headers: Headers, version: str) -> tuple[int, str, str] | None:
    """Find what makes the end of a request, or its recipient, a matter of opinion: two servers in a row may differ."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in (b"host", b"transfer-encoding", b"content-length"):
            found.setdefault(name, []).append(value.strip())
    hosts, codings, lengths = (found.get(n, []) for n in (b"host", b"transfer-encoding", b"content-length"))
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return 400, f"A request has one Host header; got {len(hosts)}.", "invalid_http"
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return 501, "A body may be chunked, and have no other Transfer-Encoding.", "unsupported_encoding"
    if len(lengths) > 1 or (codings and lengths) or not all(length.isdigit() for length in lengths):
        return 400, "A request has one Content-Length, a number, or is chunked.", "invalid_http"
    if lengths and len(lengths[0]) > _MOST_DIGITS:
        return 413, "The Content-Length is beyond every body that is taken.", "body_too_large"
    return None


class DeadlineProtocol(HttpToolsProtocol):
    """Connection with those limits."""

    _refused = False
    """True while the rest of a request that was refused is not here yet."""
    _parsing = False
    _ends = False
    """True once a later request cannot be read: the connection ends with the present answer."""
    _idle_since = 0.0
    _begun: tuple[Any, Any] | None = None
    """Request whose headers are complete, until it is known whether its body came with them; and the application."""
    _arrival: Arrival | None = None
    """The body of the present request, while it is on its way."""
    _header_timer: asyncio.TimerHandle | None = None
    _flush_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    """Bytes received while waiting for headers, counted over chunks."""
    _field_bytes = 0
    """Bytes of this request's URL and header fields, which may come in one chunk with the body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > self._places.max_connections:
            self._close_idle()
        if len(self.connections) > self._places.max_connections:
            self._end(
                503, "This server has as many connections as it may have; try again later.", "too_many_connections"
            )
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()
        self._parsing = True
        super().data_received(data)
        self._parsing = False
        begun, self._begun = self._begun, None
        if begun is not None and not self.transport.is_closing():
            self._arrive(*begun)
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
        if self.transport.is_closing() or self._ends:
            self._refused = True  # what comes behind a request that ended the connection is nobody's
            return
        fault = _fault_of(self.headers, self.parser.get_http_version())
        if self._field_bytes > MAX_HEADER_BYTES:
            fault = _TOO_LARGE
        if fault is not None:
            self._refused = True
            self._end_in_turn(*fault)
            return
        if self.expect_100_continue and self._is_idle() and not (self._is_exempt() or self._places.has_room):
            # A client that asks first is told without its body.
            self._refused = True
            self._refuse(keep=False)
            return
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        if self._arrival is not None:
            self._arrival.received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            self._refused = False
            return
        super().on_message_complete()
        begun, self._begun = self._begun, None
        if begun is not None:
            self._run(*begun)
        elif self._arrival is not None:
            self._places.depart(self._arrival)
            self._arrival = None
            if self.cycle.response_started:
                return  # it did not wait for its body
            if self._places.has_room or self._is_exempt():
                self._places.running += 1
                self.cycle.scope["state"][_HOLDS_PLACE] = True
            else:
                self._turn_away(self.cycle)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start a request that is complete, or whose body is on its way. uvicorn calls it when headers are complete, or
        when a pipelined request's turn has come."""
        if not cycle.more_body:
            self._launch(cycle, app, holds_place=True)  # pipelined: it takes the place of the one before it
        elif self._parsing:
            self._begun = cycle, app
        else:
            self._arrive(cycle, app)

    def _run(self, cycle: Any, app: Any) -> None:
        exempt = self._is_exempt()
        if exempt or self._places.has_room:
            self._launch(cycle, app, holds_place=not exempt)
        else:
            self._turn_away(cycle)

    def _arrive(self, cycle: Any, app: Any) -> None:
        def give_up(status: int, message: str, code: str) -> None:
            self._arrival = None
            self._drop(cycle)
            if cycle.response_started:
                self.transport.close()
            elif not self.transport.is_closing():
                self._end(status, message, code)

        self._arrival = self._places.arrive(self._client_address(), give_up)
        self._arrival.received = len(cycle.body)
        self._launch(cycle, app, holds_place=False)

    def _launch(self, cycle: Any, app: Any, holds_place: bool) -> None:
        state, places, arrival = cycle.scope["state"], self._places, self._arrival
        state[_HOLDS_PLACE] = holds_place
        places.running += holds_place

        def leave() -> None:
            places.running -= state.get(_HOLDS_PLACE, False)
            state[_HOLDS_PLACE] = False

        async def placed(scope: Any, receive: Any, send: Any) -> None:
            async def watched_send(message: Any) -> None:
                leave()  # once it is answered: how fast the answer is read is the client's matter
                await send(message)

            try:
                await app(scope, receive, watched_send)
            finally:
                leave()
                if arrival is not None:
                    places.depart(arrival)
                    if self._arrival is arrival:
                        self._arrival = None

        super()._start_asgi_task(cycle, placed)

    def _turn_away(self, cycle: Any) -> None:
        """Answer a request that is complete with 429."""
        self._drop(cycle)
        cycle.response_complete = True
        self._refuse(keep=cycle.keep_alive)

    @staticmethod
    def _drop(cycle: Any) -> None:
        """Have the application see that nobody waits for its answer."""
        cycle.disconnected = True
        cycle.message_event.set()

    @property
    def _places(self) -> Places:
        places: Places = self.app_state[PLACES]
        return places

    def _is_exempt(self) -> bool:
        return self.url.startswith(_NEVER_REFUSED)

    def _client_address(self) -> str:
        """Address of the peer; of IPv6 its network, since a client has 2^64 addresses."""
        address = self.client[0] if self.client else ""
        if address in self._places.trusted_proxies:
            forwarded = [value for name, value in self.headers if name == b"x-forwarded-for"]
            if forwarded:
                address = forwarded[-1].rpartition(b",")[2].strip().decode("latin-1")
        try:
            version = ipaddress.ip_address(address).version
        except ValueError:
            return address
        return address if version == 4 else str(ipaddress.ip_network(f"{address}/64", strict=False))

    def on_response_complete(self) -> None:
        """Begin to watch that the answer leaves."""
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._expect_flushed()

    def pause_writing(self) -> None:
        """Begin to watch that a part of an answer leaves."""
        super().pause_writing()
        if self._flush_timer is None:
            self._expect_flushed()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._flush_timer is not None and not self.cycle.response_complete:
            self._flush_timer.cancel()
            self._flush_timer = None

    def shutdown(self) -> None:
        """Answer what is here or on its way, then close."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_ON_ITS_WAY_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP in the shape of every other error."""
        self._end_in_turn(400, msg, "invalid_http")

    def _end_in_turn(self, status: int, message: str, code: str) -> None:
        """End the connection with an error, unless the answer to an earlier request is due first: then with that."""
        cycle = self.cycle
        if self._is_idle():
            self._end(status, message, code)
        elif cycle.more_body and not cycle.response_started and not self.pipeline:
            self._drop(cycle)  # its own body is broken
            self._end(status, message, code)
        else:
            self._ends = True
            cycle.keep_alive = False

    def _close_idle(self) -> None:
        """Close an eighth of all connections: of those that are idle, the ones that were so for longest."""
        log.warning(
            "All of the %d connections that may be open are; idle ones are closed.", self._places.max_connections
        )
        idle = [other for other in self.connections if isinstance(other, DeadlineProtocol) and other._is_idle()]
        idle.sort(key=lambda other: other._idle_since)
        for other in idle[: max(1, len(self.connections) // 8)]:
            if other is not self:
                self.connections.discard(other)
                other.transport.close()

    def _is_idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def _refuse(self, keep: bool) -> None:
        self._places.count_refusal(OVERLOADED)
        self._cancel_timers()
        self._header_bytes = 0
        self.transport.write(_REFUSALS[is_kserve(self.url.decode("ascii", "replace").partition("?")[0])])
        if not keep:
            self.transport.close()
            return
        self.flow.resume_reading()
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
            self._end(*_TOO_LARGE)

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
