"""Around every request: the name it came by, the key, the count, and an answer to what goes wrong."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxtalk.runtime.server.http.errors import ApiError, error_response
from fluxtalk.runtime.server.http.page_routes import PAGE_FILES
from fluxtalk.runtime.server.metrics import Metrics

log = logging.getLogger("fluxtalk.server")

OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", *PAGE_FILES})
"""Routes that need no key, and may be called by any name."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        hosts: names, without a port, one of which the Host header bears; none: it may bear any. A web page can give its
            own name the address of this machine, and so have a browser call us as if we were a part of it.
        api_keys: any of them opens every route; none: no key is asked for.
        draining: whether the server is about to end: then every answer ends its connection, so that no client sends
            the next request into one that is being closed.
        metrics: told of every answer.
        paths: the handler of each route to its path; metrics call everything else ``other``.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str],
        api_keys: Sequence[str],
        metrics: Metrics,
        paths: Mapping[object, str],
        draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._draining = draining
        self._hosts = frozenset(host.lower() for host in hosts)
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        exchange = _Exchange(scope, receive, send, self._draining)
        try:
            refused = self._refusal(scope)
            if refused is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await error_response(refused, scope["path"])(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499
        except Exception as error:
            _log_failure(error)
            if exchange.status:
                raise
            failed = ApiError(500, "The server failed at this request; its log says more.", "internal_error")
            await error_response(failed, scope["path"])(scope, exchange.receive, exchange.send)
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")
            self._metrics.requests.labels(path, str(exchange.status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - begin)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] in OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        host = _without_port(headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            wanted = ", ".join(sorted(self._hosts))
            sentence = (
                f"This server answers as {wanted}, and was called {host!r}; start it with --allow_host for others."
            )
            return ApiError(421, sentence, "host_not_allowed")
        if self._digests and not self._has_key(headers):
            return ApiError(401, "Give a valid key: Authorization: Bearer KEY.", "invalid_api_key")
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # as Starlette decoded the bytes
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


class _Exchange:
    """One request and its answer, as they pass by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, draining: Callable[[], bool]) -> None:
        self._draining = draining
        headers = Headers(scope=scope)
        self._unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._receive = receive
        self._send = send
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._unread or self._draining():
                # What is left of the body is not waited for.
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await self._send(message)


def _without_port(host: str) -> str:
    name, _, port = host.lower().rpartition(":")
    return name if name and port.isdecimal() else host.lower()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _log_failure(error: Exception) -> None:
    """Where it happened. An exception's text may hold a part of a body, and is for debugging alone."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " <- ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    log.error("A request failed with %s in %s.", type(error).__name__, where)
    log.debug("The whole of it:", exc_info=error)
