"""vLLM's way to write `/v1/embeddings`: a chat, whose content parts are what is embedded.

::

    {"model": ..., "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}]}
    {"model": ..., "input": [{"type": "text", "text": "a cat"}, {"content": [{"type": "image_url", ...}]}]}

Each message, and each element of ``input``, is one item with one part: the bundle embeds an item by itself, and makes
no one vector of several. Instructions (other roles than ``user``) are refused, since nothing would read them. Every
field of `openai_embeddings` but ``modality`` may stand beside it.
"""

from __future__ import annotations

from typing import Any

from fluxtalk.runtime.server.api.named_items import Body, Writer, finish, item_of_part, named_item
from fluxtalk.runtime.server.api.openai_embeddings import FIELDS as OPENAI_FIELDS
from fluxtalk.runtime.server.api.openai_embeddings import refuse_unknown_fields
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import bad_request

FIELDS = tuple(field for field in (*OPENAI_FIELDS, "messages") if field != "modality")


def speaks(body: Body) -> bool:
    """Whether there are messages, or an element of ``input`` is a content part or holds some."""
    items = body.get("input")
    return "messages" in body or (
        isinstance(items, list)
        and any(isinstance(item, dict) and ("type" in item or "content" in item) for item in items)
    )


def read(body: Body, catalog: Catalog) -> tuple[EmbedRequest, Writer]:
    """A parsed body to a typed request, and what writes its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    refuse_unknown_fields(body, FIELDS)
    if "messages" in body:
        if body.get("input") is not None:
            raise bad_request("Give input or messages, not both.", "input")
        items = _messages(body["messages"], catalog)
    else:
        catalog.require_count(len(body["input"]))
        items = [_element(value, catalog, f"input[{position}]") for position, value in enumerate(body["input"])]
    return finish(body, items, catalog)


def item_of_content(content: Any, catalog: Catalog, param: str) -> Item:
    """The one item of a content: a text, or a list of one part.

    Raises:
        ApiError: 400: it is neither.
    """
    if isinstance(content, str):
        return named_item(catalog.default_modality(), content, catalog, param)
    if not isinstance(content, list):
        raise bad_request(f"{param} is a string or a list of one part.", param, "invalid_type")
    if len(content) != 1:
        raise bad_request(
            f"{param} holds one part, for every item is embedded by itself; got {len(content)}: "
            "give each its own message, or its own element of input.",
            param,
        )
    return item_of_part(content[0], catalog, f"{param}[0]")


def _messages(messages: Any, catalog: Catalog) -> list[Item]:
    if not isinstance(messages, list):
        raise bad_request("messages is a list.", "messages", "invalid_type")
    if not messages:
        raise bad_request("messages holds nothing to embed; give at least one.", "messages", "empty")
    catalog.require_count(len(messages))
    items = []
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise bad_request(f'{param} is written {{"role": "user", "content": ...}}.', param, "invalid_type")
        if message["role"] != "user":
            raise bad_request(
                f"{param} has the role user: instructions and answers are not embedded, so leave them out.",
                f"{param}.role",
            )
        items.append(item_of_content(message["content"], catalog, f"{param}.content"))
    return items


def _element(value: Any, catalog: Catalog, param: str) -> Item:
    if isinstance(value, dict) and set(value) == {"content"}:
        return item_of_content(value["content"], catalog, f"{param}.content")
    if isinstance(value, str):
        return named_item(catalog.default_modality(), value, catalog, param)
    return item_of_part(value, catalog, param)
