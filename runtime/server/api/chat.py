"""vLLM's way to write `/v1/embeddings`: a chat, whose content parts are what is embedded.

::

    {"model": ..., "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}]}
    {"model": ..., "input": [{"type": "text", "text": "a cat"}, {"content": [{"type": "image_url", ...}]}]}

Each message, and each element of ``input``, is one item with one part: the bundle embeds an item by itself, and makes
no one vector of several. Instructions (other roles than ``user``) are refused, since nothing would read them. Every
field of `openai_embeddings` but ``modality`` may stand beside it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from fluxtalk.runtime.server.api.named_items import Content, item_of_content, item_of_part
from fluxtalk.runtime.server.api.options import AnswerForm, EmbeddingOptions
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_body import Body, convert
from fluxtalk.runtime.server.operation import TEXT, Schema, ref, schemas_of

User = Annotated[
    Literal["user"],
    Meta(extra_json_schema={"description": "user: instructions and answers are not embedded, so leave them out"}),
]


Element = Annotated[Any, Meta(extra_json_schema=ref("Element"))]
"""A text, a content part, or a `WithContent`: of the last two, msgspec cannot tell which one came."""


class WithContent(Body):
    """Object around a content."""

    content: Content


class Message(WithContent):
    """Element of ``messages``."""

    role: User


class ChatRequest(EmbeddingOptions):
    """Body in vLLM's dialect, with either ``messages`` or ``input``."""

    input: list[Element] | None = None
    messages: list[Message] | None = None


def element_schemas() -> dict[str, Schema]:
    """Describe `Element`."""
    return {**schemas_of(WithContent), "Element": {"anyOf": [TEXT, ref("ContentPart"), ref("WithContent")]}}


def matches(body: dict[str, Any]) -> bool:
    """True if there are messages, or an element of ``input`` is a content part or holds some."""
    items = body.get("input")
    return "messages" in body or (
        isinstance(items, list)
        and any(isinstance(item, dict) and ("type" in item or "content" in item) for item in items)
    )


def read(body: ChatRequest, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Make a body the typed request, and the form of its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    if body.input is None:
        messages = body.messages or []
        model.require_count(len(messages), "messages")
        items = [item_of_content(m.content, model, f"messages[{at}].content") for at, m in enumerate(messages)]
    elif body.messages is not None:
        raise bad_request("Give input or messages, not both.", "input")
    else:
        model.require_count(len(body.input))
        items = [_element(value, model, f"input[{at}]") for at, value in enumerate(body.input)]
    return body.request(items, model), body.form()


def _element(value: Any, model: ServedModel, param: str) -> Item:
    if isinstance(value, str):
        return model.item(model.default_modality(), value, param)
    if isinstance(value, dict) and "content" in value:
        return item_of_content(convert(value, WithContent, at=param).content, model, f"{param}.content")
    return item_of_part(value, model, param)
