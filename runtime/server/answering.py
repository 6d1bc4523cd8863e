"""Answering a request: read its body, embed its items, write the answer; stop if the client hangs up."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxtalk.runtime.server.execution.admission import Caller
from fluxtalk.runtime.server.execution.dispatcher import Dispatcher
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.body import time_limit
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.http.held_response import HeldResponse
from fluxtalk.runtime.server.http.memory import parsed_bytes
from fluxtalk.runtime.server.operation import JSON
from fluxtalk.runtime.server.service import Service

_LARGE_BODY = 1 << 16
_LARGE_ANSWER = 1 << 15
"""Bytes of a body, and numbers of an answer, beyond which they are read and written outside the event loop."""
_COMPUTED_BYTES, _WRITTEN_BYTES = 4, 16
"""Memory of a number of an answer: as float32, and at most in one of the ways in which it may be written."""

_UNWATCHED_S = 0.02
"""Seconds of a request's work in which nobody looks whether the client is still there."""

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
    dispatcher, caller = service.require_dispatcher(), caller_of(request, service)
    stage = service.metrics.stage
    deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
    charge = service.memory.charge()
    try:
        with stage("read"):
            data = await service.bodies.read(request, deadline, charge)

        def read_typed() -> tuple[EmbedRequest, Respond]:
            charge.hold(_read_bytes(request, data))
            return read(data, dispatcher.model)

        typed, respond = await in_thread(dispatcher, read_typed) if len(data) > _LARGE_BODY else read_typed()
        numbers = len(typed.items) * typed.selection.values_per_item
        charge.hold((_COMPUTED_BYTES + _WRITTEN_BYTES * typed.forms) * numbers)
        answer = await while_connected(request, service, dispatcher.embed(typed, deadline, caller))
        with stage("answer"):
            large = answer.vectors.size > _LARGE_ANSWER
            response = await in_thread(dispatcher, respond, answer) if large else respond(answer)
        return HeldResponse(response, charge)
    except BaseException:
        charge.release()
        raise


async def answer_body(
    request: Request,
    service: Service,
    readers: Mapping[str, Callable[[bytes, str], T]],
    work: Callable[[T, float, Caller], Awaitable[Response]],
) -> Response:
    """Read a request's body in a thread, and await what is made of it.

    Args:
        readers: media type to what reads a body, given its whole ``Content-Type``.
        work: given the read body, the deadline on the clock of `time.monotonic`, and the request's sender.

    Raises:
        ApiError: the body is not one that is taken (400, 413, 415), or came too late (408).
        ClientDisconnect: the client hung up.
    """
    dispatcher = service.require_dispatcher()
    deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
    read = body_reader(request, readers)  # refused before its body is read
    with service.memory.charge() as charge:
        data = await service.bodies.read(request, deadline, charge)

        def read_body() -> T:
            charge.hold(_read_bytes(request, data))
            return read(data, request.headers.get("content-type", ""))

        async def answer() -> Response:
            return await work(await in_thread(dispatcher, read_body), deadline, caller_of(request, service))

        return await while_connected(request, service, answer())


def _read_bytes(request: Request, data: bytes) -> int:
    """Estimate the memory of what a body becomes when it is read: values of JSON, or the parts of anything else."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in (JSON, "") or request.url.path.endswith("/infer"):
        return parsed_bytes(data)
    return len(data)


def caller_of(request: Request, service: Service) -> Caller:
    """Find the sender of a request: its key if keys are asked for, else its address; and its connection."""
    host, port = request.client or ("", 0)
    client = str(host)
    if service.settings.api_keys:
        client = hashlib.sha256(request.headers.get("authorization", "").encode()).hexdigest()
    return Caller(client, f"{host}:{port}")


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

    The work stays in the task that asks for it, and most is done before a watch of the client begins: every further
    task takes two turns of the event loop, for which a single client waits.

    Raises:
        ClientDisconnect: it did.
    """
    current, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert current is not None
    watch: asyncio.Task[None] | None = None
    hung_up = False

    async def wait_for_end() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        current.cancel()

    def begin() -> None:
        nonlocal watch
        watch = loop.create_task(wait_for_end())

    timer = loop.call_later(_UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if hung_up and not current.uncancel():
            service.metrics.rejections.labels("hung_up").inc()
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()
