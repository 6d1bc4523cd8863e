"""An embedding request over HTTP: body in, answer out, and nothing for a client that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxtalk.runtime.server.body import time_limit
from fluxtalk.runtime.server.dialects import BODY_TYPES, Body, Dialect, Endpoint
from fluxtalk.runtime.server.engine import Engine
from fluxtalk.runtime.server.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.service import Service

_LARGE_BODY = 1 << 16
_LARGE_ANSWER = 1 << 15
"""Bytes of a body, and numbers of an answer, beyond which they are read and written outside the event loop."""

T = TypeVar("T")


def embedding_handler(endpoint: Endpoint, service: Service) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """What answers an endpoint's requests."""

    async def embed(request: Request) -> Response:
        engine = service.require_engine()
        deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
        read_body = _body_reader(request)
        begin = time.monotonic()
        data = await service.bodies.read(request, deadline)
        service.metrics.stage_seconds.labels("read").observe(time.monotonic() - begin)
        try:
            content_type = request.headers.get("content-type", "")
            body = await _maybe_in_thread(engine, len(data) > _LARGE_BODY, lambda: read_body(data, content_type))
            typed, write = _dialect(endpoint, body).read(body, engine.catalogue)
            del body
            answer = await _while_connected(request, service, engine.embed(typed, deadline))
        finally:
            service.bodies.release(data)
        begin = time.monotonic()
        response = await _maybe_in_thread(
            engine, answer.vectors.size > _LARGE_ANSWER, lambda: json_response(write(answer, engine.catalogue))
        )
        service.metrics.stage_seconds.labels("answer").observe(time.monotonic() - begin)
        return response

    return embed


def _body_reader(request: Request) -> Callable[[bytes, str], Body]:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    for key in (media_type, media_type.partition("/")[0] + "/*"):
        if key in BODY_TYPES:
            return BODY_TYPES[key]
    raise ApiError(415, f"The Content-Type is one of {', '.join(BODY_TYPES)}.", "unsupported_media_type")


def _dialect(endpoint: Endpoint, body: Body) -> Dialect:
    for dialect in endpoint.dialects:
        if dialect.speaks(body):
            return dialect
    raise bad_request(f"{endpoint.path} understands {', '.join(d.name for d in endpoint.dialects)}; this is neither.")


async def _maybe_in_thread(engine: Engine, large: bool, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(engine.preparation.pool, work) if large else work()


async def _while_connected(request: Request, service: Service, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it where the client hangs up first.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.ensure_future(work)
    hung_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            service.metrics.rejections.labels("hung_up").inc()
            raise ClientDisconnect
        return task.result()
    finally:
        hung_up.cancel()
        task.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
