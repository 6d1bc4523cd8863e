"""OpenAI's `/v1/embeddings`, and FluxTalk's own fields beside it.

::

    {"model": ..., "input": "text" | ["text", ...] | [id, ...] | [[id, ...], ...],
     "encoding_format": "float" | "base64", "dimensions": D, "user": ...,
     "modality": ..., "k": k, "output": "pooled" | "concat" | "tokens" | "complementary",
     "embedding_types": ["float", "base64", "float16", "int8", "binary", "ubinary"],
     "prompt_name": ..., "input_type": "query" | "document"}

``encoding_format`` says how numbers travel: as lists, or as base64 of their little-endian bytes. An item with several
vectors (``tokens``, ``complementary``) carries their ``shape``. With ``embedding_types`` each item has ``embeddings``,
type to vector, and its ``embedding`` is empty: OpenAI's clients would read any other base64 as float32.

``prompt_name`` names one of the bundle's prompts, ``input_type`` (as Voyage has it) the role of the texts, which
chooses one; without either, texts get the default prompt, if there is one. Token ids are refused unless the server was
told that they are those of the bundle's own tokenizer (``--accept-token-ids``); they take no prompt.

It is Infinity's way, too: there ``modality`` may name a kind, and ``dimensions: 0`` is the size there is.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fluxtalk.runtime.server.api.named_items import PlainItem
from fluxtalk.runtime.server.api.options import AnswerForm, EmbeddingOptions
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request

_KINDS_OF_NUMBERS = {"text": "strings or lists of token ids", "features": "lists of vectors, or .npy files in base64"}
"""The kinds whose items may be lists, and a list of such items in words."""
_INPUT = Meta(extra_json_schema={"description": "a string, a list of strings, token ids, or lists of them"})


class OpenAIRequest(EmbeddingOptions, kw_only=True):
    """Body in OpenAI's dialect."""

    input: Annotated[str | list[PlainItem], _INPUT]
    modality: str | None = None


def read(body: OpenAIRequest, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Make a body the typed request, and the form of its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    model.require_model(body.model)
    if body.modality is None:
        modality = model.default_modality()
    else:
        modality = model.require_modality(body.modality)
        body.dimensions = body.dimensions or None
    kind, values = model.kinds[modality], body.input
    if isinstance(values, str) or (kind == "text" and values and type(values[0]) is int):
        values = [values]
    model.require_count(len(values))
    wanted = (str, list) if kind in _KINDS_OF_NUMBERS else str
    items = []
    # The content of items is checked when they are decoded.
    for position, value in enumerate(values):
        if not isinstance(value, wanted):
            described = _KINDS_OF_NUMBERS.get(kind, f"{kind} files in base64")
            param = f"input[{position}]"
            raise bad_request(
                f"input must be a list of {described}; {param} is {type(value).__name__}.", param, "invalid_type"
            )
        model.require_no_token_ids(modality, value, f"input[{position}]")
        items.append(Item(modality, value))
    return body.request(items, model), body.form()
