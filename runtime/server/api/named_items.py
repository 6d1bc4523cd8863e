"""Items that say what they are: ``{"image": ...}``, or a content part of a chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxtalk.runtime.server.api.openai_embeddings import AnswerForm, check_dimensions, read_form, write_answer
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import bad_request

Body = dict[str, Any]
Writer = Callable[[Answer, Catalog], dict[str, Any]]

_TAKEN: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str, list, bytes), "a string or a list of token ids"),
    "features": ((str, list, bytes), "a list of vectors, or a .npy file in base64"),
}


def modality_called(name: object, catalog: Catalog, param: str) -> str:
    """The modality of that name, or the only one of that kind.

    Raises:
        ApiError: 400: there is none.
    """
    if isinstance(name, str):
        if name in catalog.kinds:
            return name
        of_kind = [modality for modality, kind in catalog.kinds.items() if kind == name]
        if len(of_kind) == 1:
            return of_kind[0]
    shown = repr(name[:80]) if isinstance(name, str) else type(name).__name__
    raise bad_request(f"An item is one of {', '.join(catalog.kinds)}; got {shown}.", param)


def named_item(name: object, value: Any, catalog: Catalog, param: str) -> Item:
    """An item of a modality. What is in it is checked when it is decoded.

    Args:
        name: see `modality_called`.
        param: where it stands in the body, for errors.

    Raises:
        ApiError: 400: there is no such modality, or its items are of another type.
    """
    modality = modality_called(name, catalog, param)
    kind = catalog.kinds[modality]
    types, described = _TAKEN.get(kind, ((str, bytes), f"a file of kind {kind} in base64"))
    if not isinstance(value, types):
        raise bad_request(f"{param} is {described}; got {type(value).__name__}.", param, "invalid_type")
    if kind == "text" and isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_request(f"{param} is a text in UTF-8; these bytes are none.", param) from None
    return Item(modality, value)


def item_of_object(value: Any, catalog: Catalog, param: str) -> Item:
    """An item written as an object of one field, which is called like its modality.

    Raises:
        ApiError: 400.
    """
    if not isinstance(value, dict) or len(value) != 1:
        got = f"{len(value)} fields" if isinstance(value, dict) else type(value).__name__
        raise bad_request(f'{param} is written {{"MODALITY": ITEM}}, with one field; got {got}.', param, "invalid_type")
    ((name, item),) = value.items()
    return named_item(name, item, catalog, param)


def item_of_part(part: Any, catalog: Catalog, param: str) -> Item:
    """An item written as a content part: ``{"type": "text", "text": ...}``, ``{"type": "image_url", ...}``.

    Raises:
        ApiError: 400.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or set(part) != {"type", kind}:
        raise bad_request(
            f'{param} is written {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": '
            '{"url": ...}}, and has nothing beside it.',
            param,
            "invalid_type",
        )
    value = part[kind]
    if kind.endswith("_url") and isinstance(value, dict):
        unread = sorted(set(value) - {"url", "detail"})
        if "url" not in value or unread:
            raise bad_request(f'{param} has an {kind} written {{"url": ...}}.', param, "invalid_type")
        value = value["url"]
    return named_item(kind.removesuffix("_url"), value, catalog, param)


def finish(
    body: Body, items: Sequence[Item], catalog: Catalog, form: AnswerForm | None = None
) -> tuple[EmbedRequest, Writer]:
    """The fields that every body of `/v1/embeddings` may have, around its items.

    Args:
        form: of the answer; None takes what the body says.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    catalog.require_model(body.get("model"))
    if not isinstance(body.get("user"), str | None):
        raise bad_request("user is a string.", "user", "invalid_type")
    request = catalog.request(items, body.get("tokens"), body.get("output"))
    check_dimensions(body.get("dimensions"), request, catalog)
    written = read_form(body) if form is None else form
    return request, lambda answer, of: write_answer(answer, written, of)
