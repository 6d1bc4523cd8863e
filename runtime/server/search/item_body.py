"""Bodies about one item: ``{"text": ...}`` or ``{"image": ...}``, as JSON or as a form, with options beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from fluxtalk.preprocess import Prompting
from fluxtalk.preprocess.prompts import DEFAULT
from fluxtalk.runtime.server.execution.admission import Caller
from fluxtalk.runtime.server.execution.dispatcher import Dispatcher
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.runtime.server.http.form_parts import Part, read_parts
from fluxtalk.runtime.server.http.json_body import Body, convert, decode_json
from fluxtalk.runtime.server.operation import JSON, MediaTypes, Schema, exactly_one
from fluxtalk.tokens import Selection

Options = TypeVar("Options", bound="ItemOptions")
_MAX_PARTS = 16
_ITEM = Annotated[Any, Meta(extra_json_schema={"type": ["string", "array"]})]
ReadItemBody = Callable[[bytes, str], tuple[dict[str, Any], bool]]
"""Reads a body, given its ``Content-Type``: the decoded fields, and whether they are of JSON, and so of JSON's types.
Raises `ApiError`."""


class ItemOptions(Body):
    """Options beside an item."""

    k: Annotated[int, Meta(extra_json_schema={"description": "an integer"})] | None = None


def read_item(
    fields: dict[str, Any], strict: bool, options: type[Options], modalities: Iterable[str]
) -> tuple[Item, Options]:
    """Check a body: the one item, in the field that is called like its modality, and the options.

    Args:
        strict: see `convert`.

    Raises:
        ApiError: 400: there is no item, or more than one, or a field is unknown or of another type.
    """
    names = tuple(modalities)
    body = convert(fields, _with_items(options, names), strict=strict)
    given = [name for name in names if fields.get(name) is not None]
    if len(given) != 1:
        raise bad_request(
            f"Give one item, in one of the fields {', '.join(names)}; got {len(given)}.",
            given[1] if given else names[0],
            "missing" if not given else "invalid_value",
        )
    return Item(given[0], fields[given[0]]), body


def item_body(options: type[ItemOptions], modalities: Iterable[str]) -> tuple[MediaTypes, Schema]:
    """Describe such a body for a bundle: its content, and its schema."""
    names = tuple(modalities)
    body = _with_items(options, names)
    return {JSON: body, "multipart/form-data": body}, {body.__name__: exactly_one(names)}


async def embed_item(
    dispatcher: Dispatcher,
    item: Item,
    selection: Selection,
    deadline: float,
    caller: Caller,
    prompting: Prompting = DEFAULT,
) -> Answer:
    """`Dispatcher.embed` of one item, whose errors name the field of the body.

    Raises:
        ApiError: see `Dispatcher.embed`; or the item is a text as token ids, which this server does not take.
    """
    dispatcher.model.require_no_token_ids(item.modality, item.value, item.modality)
    try:
        return await dispatcher.embed(EmbedRequest([item], selection, prompting), deadline, caller)
    except ApiError as error:
        if error.param != "input[0]":
            raise
        message = error.message.removeprefix("input 0: ")
        raise ApiError(error.status, message, error.code, item.modality) from None


@functools.cache
def _with_items(options: type[Options], modalities: tuple[str, ...]) -> type[Options]:
    """The options with a field for each modality, whose names are a bundle's."""
    fields = {f"item_{number}": name for number, name in enumerate(modalities)}
    return msgspec.defstruct(  # type: ignore[return-value]
        options.__name__.replace("Options", "Request"),
        [(field, _ITEM | None, None) for field in fields],
        bases=(options,),
        rename=fields,
        kw_only=True,
    )


def _read_json(data: bytes, _content_type: str) -> tuple[dict[str, Any], bool]:
    return decode_json(data), True


def _read_form(data: bytes, content_type: str) -> tuple[dict[str, Any], bool]:
    """The fields of a form: texts, and files as their bytes.

    Raises:
        ApiError: 400.
    """
    fields: dict[str, Any] = {}
    for part in read_parts(data, content_type, _MAX_PARTS):
        if part.name in fields:
            raise bad_request(f"A form gives each field once; got {part.name[:80]!r} again.", part.name[:80])
        fields[part.name] = part.value if part.is_file else _text(part)
    return fields, False


def _text(part: Part) -> str:
    try:
        return part.value.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request(f"The part {part.name[:80]!r} of the form is not UTF-8.", part.name[:80]) from None


READERS: Mapping[str, ReadItemBody] = {JSON: _read_json, "multipart/form-data": _read_form}
