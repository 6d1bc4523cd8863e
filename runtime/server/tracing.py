"""Traces of requests, for an OpenTelemetry collector; without ``--otlp-endpoint`` nothing of OpenTelemetry is loaded.

A request is one span, a child of the caller's if it sent a ``traceparent`` (W3C), and its stages are spans within: read
(the body), prepare (decoding), embed (queue and batch), answer (writing it). Nothing of a body is in them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxtalk.errors import UsageError

_TRACES_PATH = "/v1/traces"
_EXPORT_S = 3
"""Seconds that sending to the collector may take, the last time at the end of the server included."""

_WITHOUT_ERRORS = {"record_exception": False, "set_status_on_exception": False}
"""Options of a span: the sentence of an error may quote an item."""

_tracer: ContextVar[Any] = ContextVar("fluxtalk_tracer", default=None)
"""Tracer of the request that is being answered; None if nothing is traced."""


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Trace what is done inside as a part of the request, if requests are traced."""
    tracer = _tracer.get()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(name, **_WITHOUT_ERRORS):
        yield


def trace_ids() -> dict[str, str]:
    """Name the trace and the span of the request that is being answered; empty if it is not traced."""
    if _tracer.get() is None:
        return {}
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def open_traces(endpoint: str) -> Any:
    """Make the ``TracerProvider`` that sends spans to a collector by OTLP over HTTP.

    Args:
        endpoint: address of the collector; ``/v1/traces`` is added if it has no path.

    Raises:
        UsageError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"Traces need {error.name}; pip install 'fluxtalk[otel]'.") from None
    url = endpoint.rstrip("/") + (_TRACES_PATH if urlsplit(endpoint).path in ("", "/") else "")
    named = os.environ.get("OTEL_SERVICE_NAME", "fluxtalk")
    resource = Resource.create(
        {
            "service.name": named,
            "service.version": importlib.metadata.version("fluxtalk"),
            "service.instance.id": str(os.getpid()),
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_S)))
    return provider


class TracingMiddleware:
    """Makes a span of every request.

    Args:
        app: the next application.
        provider: from `open_traces`.
        paths: the handler of each route to its path; everything else is called ``other``.
    """

    def __init__(self, app: ASGIApp, provider: Any, paths: Mapping[object, str]) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = provider.get_tracer("fluxtalk.server")
        self._paths = paths
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = self._propagator.extract(dict(Headers(scope=scope)))
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method, context=parent, kind=self._kind, attributes={"http.request.method": method}, **_WITHOUT_ERRORS
        ) as traced:

            async def watched_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    traced.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        traced.set_status(self._failed)
                await send(message)

            token = _tracer.set(self._tracer)
            try:
                await self._app(scope, receive, watched_send)
            finally:
                _tracer.reset(token)
                route = self._paths.get(scope.get("endpoint"), "other")
                traced.update_name(f"{method} {route}")
                traced.set_attribute("http.route", route)
