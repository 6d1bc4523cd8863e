"""Answering a request: read its body, embed its items, write the answer; stop if the client hangs up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxtalk.runtime.server.execution.dispatcher import Dispatcher
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.body import time_limit
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.service import Service

_LARGE_BODY = 1 << 16
_LARGE_ANSWER = 1 << 15
"""Bytes of a body, and numbers of an answer, beyond which they are read and written outside the event loop."""

T = TypeVar("T")

Respond = Callable[[Answer], Response]
ReadRequest = Callable[[bytes, ServedModel], tuple[EmbedRequest, Respond]]
"""Makes a body the typed request, and how its answer is written. Raises `ApiError`; large bodies are read in a
thread."""


async def answer_embedding(request: Request, service: Service, read: ReadRequest) -> Response:
    """Read a request's body, embed what it asks for, and answer.

    Raises:
        ApiError: the request cannot be answered.
        ClientDisconnect: the client hung up.
    """
    dispatcher = service.require_dispatcher()
    stages = service.metrics.stage_seconds
    begin = time.monotonic()
    deadline = begin + time_limit(request, service.settings.timeout_s)
    data = await service.bodies.read(request, deadline)
    stages.labels("read").observe(time.monotonic() - begin)
    try:
        if len(data) > _LARGE_BODY:
            typed, respond = await in_thread(dispatcher, read, data, dispatcher.model)
        else:
            typed, respond = read(data, dispatcher.model)
        answer = await while_connected(request, service, dispatcher.embed(typed, deadline))
    finally:
        service.bodies.release(data)
    begin = time.monotonic()
    large = answer.vectors.size > _LARGE_ANSWER
    response = await in_thread(dispatcher, respond, answer) if large else respond(answer)
    stages.labels("answer").observe(time.monotonic() - begin)
    return response


async def answer_body(
    request: Request,
    service: Service,
    readers: Mapping[str, Callable[[bytes, str], T]],
    work: Callable[[T, float], Awaitable[Response]],
) -> Response:
    """Read a request's body in a thread, and await what is made of it.

    Args:
        readers: media type to what reads a body, given its whole ``Content-Type``.
        work: given the read body, and the deadline on the clock of `time.monotonic`.

    Raises:
        ApiError: the body is not one that is taken (400, 413, 415), or came too late (408).
        ClientDisconnect: the client hung up.
    """
    dispatcher = service.require_dispatcher()
    deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
    read = body_reader(request, readers)  # refused before its body is read
    data = await service.bodies.read(request, deadline)

    async def answer() -> Response:
        content_type = request.headers.get("content-type", "")
        return await work(await in_thread(dispatcher, read, data, content_type), deadline)

    try:
        return await while_connected(request, service, answer())
    finally:
        service.bodies.release(data)


def body_reader(request: Request, readers: Mapping[str, T]) -> T:
    """The reader of a request's media type; a key may end in ``/*``.

    Raises:
        ApiError: 415.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    for key in (media_type, media_type.partition("/")[0] + "/*"):
        if key in readers:
            return readers[key]
    raise ApiError(415, f"The Content-Type must be one of {', '.join(readers)}.", "unsupported_media_type")


async def in_thread(dispatcher: Dispatcher, work: Callable[..., T], *arguments: Any) -> T:
    """Run work that would keep the event loop in a thread."""
    return await dispatcher.decode_pool.in_thread(work, *arguments)


async def while_connected(request: Request, service: Service, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it if the client hangs up first.

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
