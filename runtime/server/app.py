"""The ASGI application: routes, guard, and the life of the service."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from uvicorn.config import STARTUP_FAILURE

from fluxtalk.errors import FluxTalkError
from fluxtalk.runtime.server.api.dialects import ENDPOINTS
from fluxtalk.runtime.server.api.endpoint import embedding_handler
from fluxtalk.runtime.server.api.info import fact_routes
from fluxtalk.runtime.server.api.openapi import openapi_routes
from fluxtalk.runtime.server.execution.decoding import ignore_pillow_warnings
from fluxtalk.runtime.server.http.errors import ApiError, on_api_error, on_fluxtalk_error, on_http_exception
from fluxtalk.runtime.server.http.guard import Guard
from fluxtalk.runtime.server.http.page_routes import page_routes
from fluxtalk.runtime.server.http.protocol import OVERLOADED
from fluxtalk.runtime.server.kserve.routes import kserve_routes
from fluxtalk.runtime.server.search.attention import attention_routes
from fluxtalk.runtime.server.search.routes import search_routes
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings

log = logging.getLogger("fluxtalk.server")


def routes(service: Service) -> list[Route]:
    """Every route. One more belongs here, or into `dialects.ENDPOINTS` where it embeds."""
    embedding = [Route(endpoint.path, embedding_handler(endpoint, service), methods=["POST"]) for endpoint in ENDPOINTS]
    return [
        *embedding,
        *kserve_routes(service),
        *fact_routes(service),
        *openapi_routes(service),
        *search_routes(service),
        *attention_routes(service),
        *page_routes(),
    ]


def build_app(service: Service) -> Starlette:
    """The application over a service, which starts and stops with it."""
    served = routes(service)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Callable[[], None]]]:
        await service.start()
        try:
            # The protocol, which refuses before there is an application, counts here.
            yield {OVERLOADED: service.metrics.rejections.labels(OVERLOADED).inc}
        finally:
            await service.stop()

    guard = Middleware(
        Guard,
        hosts=service.settings.allow_hosts,
        api_keys=service.settings.api_keys,
        metrics=service.metrics,
        paths={route.endpoint: route.path for route in served},
        draining=lambda: service.draining,
    )
    return Starlette(
        routes=served,
        middleware=[guard],
        exception_handlers={
            HTTPException: on_http_exception,
            ApiError: on_api_error,
            FluxTalkError: on_fluxtalk_error,
        },
        lifespan=lifespan,
    )


@dataclass(frozen=True)
class AppFactory:
    """Builds the application in a worker's process, into which only the settings travel."""

    settings: ServerSettings

    def __call__(self) -> Starlette:
        """A new application. Where its bundle cannot be loaded, the process ends."""

        def end() -> None:
            log.error("error: %s", service.failure)
            logging.shutdown()
            # At once: nothing was accepted yet, and uvicorn has no other way to be told.
            os._exit(STARTUP_FAILURE)

        ignore_pillow_warnings()
        service = Service(self.settings, end)
        return build_app(service)
