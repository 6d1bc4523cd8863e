"""Cohere's `/v2/embed`.

::

    {"model": ..., "input_type": ..., "texts": ["a cat"] | "images": ["data:image/png;base64,..."]
        | "inputs": [{"content": [{"type": "text", "text": ...}]}],
     "embedding_types": ["float", "int8", "uint8", "binary", "ubinary", "base64"], "truncate": "END" | "NONE",
     "output_dimension": D}

and FluxTalk's ``k`` and ``output`` (``pooled`` or ``concat``). Texts of ``search_query`` and ``search_document`` get
the bundle's prompt for queries or documents, if it has one; the other input types change nothing. ``int8`` is
``round(127 x / max|x|)`` of each vector, ``uint8`` the same plus 128.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fluxtalk.preprocess import Prompting
from fluxtalk.preprocess.prompts import DOCUMENT, QUERY
from fluxtalk.runtime.server.api.answers import Vector, in_base64, typed_vectors
from fluxtalk.runtime.server.api.chat import WithContent
from fluxtalk.runtime.server.api.named_items import FILE_TEXT, item_of_content
from fluxtalk.runtime.server.api.options import K, Tokens, select
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import AnswerDescription, ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_body import Body

SOURCES = ("texts", "images", "inputs")
_ROLES = {"search_query": QUERY, "search_document": DOCUMENT}
CohereType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
ImageText = Annotated[str, Meta(extra_json_schema=FILE_TEXT)]


class CohereRequest(Body):
    """Body in Cohere's dialect, with one of ``texts``, ``images`` and ``inputs``."""

    model: str | None = None
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = None
    texts: list[str] | None = None
    images: list[ImageText] | None = None
    inputs: list[WithContent] | None = None
    embedding_types: Annotated[list[CohereType], Meta(min_length=1)] | None = None
    output_dimension: int | None = None
    truncate: Literal["END", "NONE"] | None = None
    k: K | None = None
    tokens: Tokens | None = None
    output: Literal["pooled", "concat"] | None = None


class CohereAnswer(AnswerDescription):
    """Answer in Cohere's dialect."""

    id: str
    embeddings: dict[str, list[Vector]]
    response_type: Literal["embeddings_by_type"]
    meta: dict[str, Any]
    model: str


def read(body: CohereRequest, model: ServedModel) -> EmbedRequest:
    """Make a body the typed request.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    model.require_model(body.model)
    items = _items(body, model)
    selection = select(model, body.k, body.tokens, body.output, body.output_dimension, "output_dimension")
    prompting = Prompting(_ROLES.get(body.input_type or ""))
    forms = max(1, len(set(body.embedding_types or ())))
    return EmbedRequest(items, selection, prompting, truncate=body.truncate != "NONE", forms=forms)


def write_answer(answer: Answer, types: list[CohereType] | None, model: ServedModel) -> CohereAnswer:
    """Write an answer in some embedding types; None is ``float`` alone."""
    return {
        "id": str(uuid.uuid4()),
        "embeddings": {name: _written(answer.vectors, name) for name in dict.fromkeys(types or ("float",))},
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.num_input_tokens}},
        "model": model.name,
        **model.describe(answer),
    }


def _items(body: CohereRequest, model: ServedModel) -> list[Item]:
    given = [source for source in SOURCES if getattr(body, source) is not None]
    if len(given) != 1:
        raise bad_request(
            f"Give one of {', '.join(SOURCES)}; got {' and '.join(given) or 'none'}.",
            given[1] if given else SOURCES[0],
            "invalid_value" if given else "missing",
        )
    source = given[0]
    values = getattr(body, source)
    model.require_count(len(values), source)
    if body.inputs is not None:
        return [item_of_content(v.content, model, f"inputs[{at}].content") for at, v in enumerate(body.inputs)]
    return [model.item(source.removesuffix("s"), value, f"{source}[{at}]") for at, value in enumerate(values)]


def _written(vectors: NDArray[np.float32], name: str) -> Any:
    if name == "base64":
        return in_base64(vectors)
    return np.ascontiguousarray(typed_vectors(vectors, name))
