"""ASGI middleware, one concern each: failures, prefixes, metrics, host names, API keys.

Starlette's ``TrustedHostMiddleware`` is not used: it has no exempt paths (probes and balancers call ``/livez`` by any
name), and answers in plain text with 400.
"""

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

from fluxtalk.runtime.server.http.errors import ApiError, error_response, route_path
from fluxtalk.runtime.server.http.page_routes import PAGE_FILES
from fluxtalk.runtime.server.metrics import Metrics

log = logging.getLogger("fluxtalk.server")

_OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", *PAGE_FILES})
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_CLIENT_HUNG_UP = 499
"""The status under which metrics count such a request; nobody receives it."""


class FailureMiddleware:
    """Answers what nothing else did, and ends connections that cannot go on.

    Args:
        app: the next application.
        draining: True once the server is about to end: every answer then ends its connection, so that no client sends
            the next request into one that is being closed.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        begun = False

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                unread = False
            return message

        async def watched_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if unread or self._draining():
                    # The rest of the body is not waited for.
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        try:
            await self._app(scope, watched_receive if unread else receive, watched_send)
        except ClientDisconnect:
            return
        except Exception as error:
            _log_failure(error)
            if begun:
                raise
            failed = ApiError(500, "The server failed at this request; its log says more.", "internal_error")
            await error_response(failed, route_path(scope))(scope, receive, watched_send)


class RootPathMiddleware:
    """Takes requests as a proxy passes them on that shows this server under a prefix, with the prefix or without it.

    Args:
        app: the next application.
        root_path: the prefix, such as ``/embeddings``.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if path != self._root_path and not path.startswith(f"{self._root_path}/"):
                path = self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)


class MetricsMiddleware:
    """Counts and times every answer.

    Args:
        app: the next application.
        metrics: the server's counters.
        paths: the handler of each route to its path; everything else is counted as ``other``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Mapping[object, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        status = _CLIENT_HUNG_UP

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - begin)


class HostMiddleware:
    """Refuses requests that came by a name which is not this server's.

    A web page can give its own name the address of this machine, and so have a browser call us as if we were a part of
    that page (DNS rebinding).

    Args:
        app: the next application.
        hosts: the names, without a port, one of which the Host header must have.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app
        if scope["type"] == "http" and not is_open(route_path(scope), scope["method"]):
            host = _without_port(Headers(scope=scope).get("host", ""))
            if host not in self._hosts:
                wanted = ", ".join(sorted(self._hosts))
                sentence = f"This server answers as {wanted}, not as {host!r}; start it with --allow-host for others."
                app = error_response(ApiError(421, sentence, "host_not_allowed"), route_path(scope))
        await app(scope, receive, send)


class ApiKeyMiddleware:
    """Refuses requests without a valid key.

    Args:
        app: the next application.
        api_keys: any of them opens every route.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app
        refuses = scope["type"] == "http" and not is_open(route_path(scope), scope["method"])
        if refuses and not self._has_key(Headers(scope=scope)):
            refused = ApiError(401, "Give a valid key: Authorization: Bearer KEY.", "invalid_api_key")
            app = error_response(refused, route_path(scope))
        await app(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # as Starlette decoded the bytes
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def is_open(path: str, method: str) -> bool:
    """True if a route needs no key, and may be called by any name."""
    return path in _OPEN_PATHS and method.upper() in ("GET", "HEAD")


def _without_port(host: str) -> str:
    name, _, port = host.lower().rpartition(":")
    return name if name and port.isdecimal() else host.lower()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _log_failure(error: Exception) -> None:
    """Log where it happened. The exception's text may hold a part of a body, and is for debugging alone."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " <- ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    log.error("A request failed with %s in %s.", type(error).__name__, where)
    log.debug("The exception:", exc_info=error)
