"""An embedding request over HTTP: body in, answer out, and nothing for a client that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxtalk.runtime.server.api.dialects import Body, BodyReader, Dialect, Endpoint
from fluxtalk.runtime.server.execution.engine import Engine
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.body import time_limit
from fluxtalk.runtime.server.http.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.service import Service

_LARGE_BODY = 1 << 16
_LARGE_ANSWER = 1 << 15
"""Bytes of a body, and numbers of an answer, beyond which they are read and written outside the event loop."""

T = TypeVar("T")


Respond = Callable[[Answer, Catalog], Response]
ReadRequest = Callable[[Request, bytes, Catalog], tuple[EmbedRequest, Respond]]
"""A body to the typed request and what answers it. Raises `ApiError`; large bodies are read in a thread."""


def embedding_handler(endpoint: Endpoint, service: Service) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """What answers an endpoint's requests."""

    def read(request: Request, data: bytes, catalog: Catalog) -> tuple[EmbedRequest, Respond]:
        read_body = _body_reader(endpoint, request)
        body = read_body(data, request.headers.get("content-type", ""), request.query_params.multi_items())
        typed, write = _dialect(endpoint, body).read(body, catalog)
        return typed, lambda answer, of: json_response(write(answer, of))

    async def embed(request: Request) -> Response:
        service.require_engine()
        _body_reader(endpoint, request)  # refused before its body is read
        return await answer_request(request, service, read)

    return embed


async def answer_request(request: Request, service: Service, read: ReadRequest) -> Response:
    """Read a request's body, embed what it asks for, and answer.

    Raises:
        ApiError: the request cannot be answered.
        ClientDisconnect: the client hung up.
    """
    engine = service.require_engine()
    deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
    begin = time.monotonic()
    data = await service.bodies.read(request, deadline)
    service.metrics.stage_seconds.labels("read").observe(time.monotonic() - begin)
    try:
        typed, respond = await _maybe_in_thread(
            engine, len(data) > _LARGE_BODY, lambda: read(request, data, engine.catalog)
        )
        answer = await while_connected(request, service, engine.embed(typed, deadline))
    finally:
        service.bodies.release(data)
    begin = time.monotonic()
    response = await _maybe_in_thread(
        engine, answer.vectors.size > _LARGE_ANSWER, lambda: respond(answer, engine.catalog)
    )
    service.metrics.stage_seconds.labels("answer").observe(time.monotonic() - begin)
    return response


def _body_reader(endpoint: Endpoint, request: Request) -> BodyReader:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    for key in (media_type, media_type.partition("/")[0] + "/*"):
        if key in endpoint.body_types:
            return endpoint.body_types[key]
    raise ApiError(415, f"The Content-Type is one of {', '.join(endpoint.body_types)}.", "unsupported_media_type")


def _dialect(endpoint: Endpoint, body: Body) -> Dialect:
    for dialect in endpoint.dialects:
        if dialect.speaks(body):
            return dialect
    raise bad_request(f"{endpoint.path} understands {', '.join(d.name for d in endpoint.dialects)}; this is neither.")


async def _maybe_in_thread(engine: Engine, large: bool, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(engine.preparation.pool, work) if large else work()


async def while_connected(request: Request, service: Service, work: Coroutine[Any, Any, T]) -> T:
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
