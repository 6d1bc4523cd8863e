"""The ASGI application: routes, middleware, and the life of the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from uvicorn.config import STARTUP_FAILURE
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from fluxtalk.errors import FluxTalkError
from fluxtalk.runtime.server.api.info import info_routes
from fluxtalk.runtime.server.api.routes import embedding_routes
from fluxtalk.runtime.server.execution.decoding import ignore_pillow_warnings
from fluxtalk.runtime.server.http.errors import ApiError, on_api_error, on_fluxtalk_error, on_http_exception
from fluxtalk.runtime.server.http.middleware import (
    ApiKeyMiddleware,
    FailureMiddleware,
    HostMiddleware,
    MetricsMiddleware,
    RootPathMiddleware,
)
from fluxtalk.runtime.server.http.page_routes import page_routes
from fluxtalk.runtime.server.http.places import Places, connections_allowed
from fluxtalk.runtime.server.http.protocol import PLACES
from fluxtalk.runtime.server.kserve.routes import HEADER_LENGTH, kserve_routes
from fluxtalk.runtime.server.later_verification import BROKEN_PROMISE
from fluxtalk.runtime.server.openapi import openapi_route
from fluxtalk.runtime.server.parent_watch import end_with_supervisor
from fluxtalk.runtime.server.search.attention import attention_route
from fluxtalk.runtime.server.search.indexes import Indexes
from fluxtalk.runtime.server.search.routes import search_routes
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings
from fluxtalk.runtime.server.tracing import TracingMiddleware, open_traces

_CORS_HEADERS = ("Authorization", "Content-Type", "X-Request-Timeout", HEADER_LENGTH)

log = logging.getLogger("fluxtalk.server")


def routes(service: Service) -> list[Route]:
    """List every route. Add a route to its room's list, not here."""
    indexes = Indexes(service.settings.indexes)
    service.on_loaded.append(indexes.open)
    described = [
        *embedding_routes(service),
        *search_routes(service, indexes),
        attention_route(service),
        *kserve_routes(service),
        *info_routes(service),
    ]
    document = openapi_route(
        described, lambda: service.require_dispatcher().model, with_key=bool(service.settings.api_keys)
    )
    return [*described, document, *page_routes()]


def build_app(service: Service) -> Starlette:
    """Make the application over a service, which starts and stops with it.

    Raises:
        UsageError: requests are to be traced, and OpenTelemetry is not installed.
    """
    served = routes(service)
    endpoint = service.settings.otlp_endpoint
    traces = None if endpoint is None else open_traces(endpoint)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        await service.start()
        try:
            # The protocol refuses before a request reaches the application; it counts here.
            yield {
                PLACES: Places(
                    lambda code: service.metrics.rejections.labels(code).inc(),
                    connections_allowed(),
                    frozenset(service.settings.trusted_proxies),
                )
            }
        finally:
            await service.stop()
            if traces is not None:
                await asyncio.to_thread(traces.shutdown)

    app = Starlette(
        routes=served,
        middleware=list(_middleware(service, {route.endpoint: route.path for route in served}, traces)),
        exception_handlers={
            HTTPException: on_http_exception,
            ApiError: on_api_error,
            FluxTalkError: on_fluxtalk_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # on_http_exception does it, whatever the address that a proxy has
    return app


def _middleware(service: Service, paths: Mapping[object, str], traces: Any) -> Iterator[Middleware]:
    """List the middleware, from the outside in."""
    settings = service.settings
    if settings.trusted_proxies:
        yield Middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))
    if settings.root_path:
        yield Middleware(RootPathMiddleware, root_path=settings.root_path)
    if traces is not None:
        yield Middleware(TracingMiddleware, provider=traces, paths=paths)
    yield Middleware(MetricsMiddleware, metrics=service.metrics, paths=paths)
    if settings.cors_origins:
        yield Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=_CORS_HEADERS,
            expose_headers=("Retry-After", HEADER_LENGTH),
        )
    yield Middleware(FailureMiddleware, draining=lambda: service.draining)
    if settings.allow_hosts:
        yield Middleware(HostMiddleware, hosts=settings.allow_hosts)
    if settings.api_keys:
        yield Middleware(ApiKeyMiddleware, api_keys=settings.api_keys)


@dataclass(frozen=True)
class AppFactory:
    """Builds the application in a worker's process, into which only the settings travel."""

    settings: ServerSettings

    def __call__(self) -> Starlette:
        """Make a new application. If its bundle cannot be loaded or breaks a promise, the process ends."""

        def end() -> None:
            log.error("error: %s", service.failure)
            logging.shutdown()
            # Nothing was accepted yet, or answers may be wrong; and uvicorn has no other way to be told.
            os._exit(STARTUP_FAILURE if service.dispatcher is None else BROKEN_PROMISE)

        end_with_supervisor()
        ignore_pillow_warnings()
        service = Service(self.settings, end)
        return build_app(service)
