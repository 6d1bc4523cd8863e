"""A small HTTP/1.1 client that costs little: requests are ready bytes, connections stay open, answers are counted.

An ordinary client spends more on a request than the server does, and two cores have to carry both.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

LOST = 0
"""The status of a request that was sent and never answered."""
REFUSED = -1
"""The status of a request for which there was no connection."""


@dataclass(frozen=True)
class Reply:
    """Outcome of one request."""

    status: int
    """HTTP status, or `LOST` or `REFUSED`."""
    seconds: float
    """Seconds from when it should have been sent to the last byte of its answer."""
    body: bytes


def post(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def post_json(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """The bytes of a request with a JSON body."""
    return post(path, json.dumps(body).encode(), **headers)


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._wanted = -1
        self._status = 0
        self._begin = 0
        self._answered = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        # The kernel resets connections that wait to be accepted when the port closes: the server never had them.
        never_accepted = isinstance(error, ConnectionResetError) and not self._answered and not self._received
        self._finish(REFUSED if never_accepted else LOST, b"")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._wanted < 0:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            self._status = int(head[9:12])
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._begin, self._wanted = end + 4, end + 4 + int(length)
            if b"connection: close" in head:
                self.is_open = False
        if len(self._received) >= self._wanted:
            body = bytes(self._received[self._begin : self._wanted])
            self._received.clear()
            self._wanted = -1
            self._answered = True
            self._finish(self._status, body)

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the future holds its status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def _finish(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


class Client:
    """Connections to one server, opened as they are needed and used again.

    Args:
        url: ``http://HOST:PORT``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port or 80
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def send(self, request: bytes, due: float | None = None) -> Reply:
        """Send a request and wait for its answer. Never raises for what the server does.

        Args:
            due: when it should be sent, on the clock of `time.perf_counter`; None is now.
        """
        due = time.perf_counter() if due is None else due
        connection = self._idle_connection()
        if connection is None:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
            except OSError:
                return Reply(REFUSED, time.perf_counter() - due, b"")
            self._all.add(connection)
        status, body = await connection.send(request)
        seconds = time.perf_counter() - due
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)
        return Reply(status, seconds, body)

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()
        self._idle.clear()
        self._all.clear()
        await asyncio.sleep(0)  # let the sockets close
