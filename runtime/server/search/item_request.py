"""Requests about one item: ``{"text": ...}`` or ``{"image": ...}``, as JSON or as a form, with options beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.requests import Request

from fluxtalk.runtime.server.api.dialects import Body, read_json
from fluxtalk.runtime.server.api.endpoint import while_connected
from fluxtalk.runtime.server.execution.engine import Engine
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.body import time_limit
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.runtime.server.http.form_parts import Part, read_parts
from fluxtalk.runtime.server.service import Service

T = TypeVar("T")
_MAX_PARTS = 16
_NUMBERS = ("n", "k")
"""Fields of a form that hold whole numbers."""


async def with_body(request: Request, service: Service, work: Callable[[Body, float], Awaitable[T]]) -> T:
    """Read a body, and await what is made of it, unless the client hangs up.

    Args:
        work: given the body as JSON says it, and the deadline on the clock of `time.monotonic`.

    Raises:
        ApiError: the body is none that is taken (400, 413, 415), or came too late (408).
        ClientDisconnect: the client hung up.
    """
    engine = service.require_engine()
    deadline = time.monotonic() + time_limit(request, service.settings.timeout_s)
    content_type = request.headers.get("content-type", "")
    read = _reader(content_type)
    data = await service.bodies.read(request, deadline)

    async def answer() -> T:
        body = await asyncio.get_running_loop().run_in_executor(engine.preparation.pool, read, data, content_type)
        return await work(body, deadline)

    try:
        return await while_connected(request, service, answer())
    finally:
        service.bodies.release(data)


def read_item(body: Body, options: Sequence[str], modalities: Sequence[str]) -> Item:
    """The one item of a body, in the field that is called like its modality.

    Raises:
        ApiError: 400: there is none, or more than one, or a field that nothing reads.
    """
    unknown = sorted(set(body) - {*options, *modalities})
    if unknown:
        known = ", ".join((*modalities, *options))
        raise bad_request(
            f"The field {unknown[0][:80]!r} is unknown; known are {known}.", unknown[0][:80], "unknown_field"
        )
    given = [m for m in modalities if body.get(m) is not None]
    if len(given) != 1:
        raise bad_request(
            f"Give one item, in one of the fields {', '.join(modalities)}; got {len(given)}.",
            given[1] if given else modalities[0],
            "missing" if not given else "invalid_value",
        )
    return Item(given[0], body[given[0]])


def read_integer(body: Body, name: str, default: int, largest: int) -> int:
    """A whole number from 1 to ``largest``.

    Raises:
        ApiError: 400.
    """
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= largest:
        shown = value if type(value) is int and abs(value) < 1 << 63 else type(value).__name__
        raise bad_request(f"{name} is an integer from 1 to {largest:,}; got {shown}.", name)
    return value


def read_k(body: Body, default: int, catalog: Catalog) -> int:
    """``k`` of a body: register tokens from the first.

    Raises:
        ApiError: 400.
    """
    total = catalog.manifest.num_register_tokens
    return read_integer(body, "k", min(default, total), total)


async def embed_one(engine: Engine, request: EmbedRequest, deadline: float) -> Answer:
    """`Engine.embed` of one item, whose errors name the field of the body.

    Raises:
        ApiError: see `Engine.embed`.
    """
    try:
        return await engine.embed(request, deadline)
    except ApiError as error:
        if error.param != "input[0]":
            raise
        field = request.items[0].modality
        raise ApiError(error.status, error.message.removeprefix("input 0: "), error.code, field) from None


def _reader(content_type: str) -> Callable[[bytes, str], Body]:
    readers = {"application/json": read_json, "multipart/form-data": _read_form}
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in readers:
        raise ApiError(415, f"The Content-Type is one of {', '.join(readers)}.", "unsupported_media_type")
    return readers[media_type]


def _read_form(data: bytes, content_type: str) -> Body:
    """A form as JSON would have said it: whole numbers are numbers, and files are their bytes.

    Raises:
        ApiError: 400.
    """
    body: Body = {}
    for part in read_parts(data, content_type, _MAX_PARTS):
        if part.name in body:
            raise bad_request(f"A form gives each field once; got {part.name[:80]!r} again.", part.name[:80])
        body[part.name] = part.value if part.is_file else _said(part)
    return body


def _said(part: Part) -> str | int:
    try:
        text = part.value.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request(f"The part {part.name[:80]!r} of the form is no UTF-8.", part.name[:80]) from None
    is_number = part.name in _NUMBERS and text.isascii() and text.isdecimal() and len(text) < 19
    return int(text) if is_number else text
