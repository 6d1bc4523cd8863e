"""Cohere's `/v2/embed`.

::

    {"model": ..., "input_type": ..., "texts": ["a cat"] | "images": ["data:image/png;base64,..."]
        | "inputs": [{"content": [{"type": "text", "text": ...}]}],
     "embedding_types": ["float", "int8", "uint8", "binary", "ubinary", "base64"], "truncate": "END"}

and FluxTalk's ``tokens`` (k) and ``output`` (``pooled`` or ``concat``). ``input_type`` is accepted and changes nothing:
queries and documents share one space. ``int8`` is ``round(127 x / max|x|)`` of each vector, ``uint8`` the same
plus 128.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.runtime.server.api.chat import item_of_content
from fluxtalk.runtime.server.api.named_items import Body, Writer, named_item
from fluxtalk.runtime.server.api.openai_embeddings import (
    check_dimensions,
    describe,
    refuse_unknown_fields,
    typed_vectors,
)
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import bad_request

SOURCES = ("texts", "images", "inputs")
EMBEDDING_TYPES = ("float", "int8", "uint8", "binary", "ubinary", "base64")
INPUT_TYPES = ("search_document", "search_query", "classification", "clustering", "image")
OUTPUTS = ("pooled", "concat")
FIELDS = (
    "model",
    "input_type",
    *SOURCES,
    "embedding_types",
    "output_dimension",
    "truncate",
    "tokens",
    "output",
)


def speaks(_body: Body) -> bool:
    """It is the only dialect of its route."""
    return True


def read(body: Body, catalog: Catalog) -> tuple[EmbedRequest, Writer]:
    """A parsed body to a typed request, and what writes its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    refuse_unknown_fields(body, FIELDS)
    catalog.require_model(body.get("model"))
    _one_of(body, "input_type", INPUT_TYPES)
    _one_of(body, "truncate", ("END",))
    _one_of(body, "output", OUTPUTS)
    types = body.get("embedding_types")
    types = ["float"] if types is None else types
    if (
        not isinstance(types, list)
        or not types
        or not all(isinstance(name, str) and name in EMBEDDING_TYPES for name in types)
    ):
        raise bad_request(f"embedding_types is a list of {', '.join(EMBEDDING_TYPES)}.", "embedding_types")
    request = catalog.request(_items(body, catalog), body.get("tokens"), body.get("output"))
    check_dimensions(body.get("output_dimension"), request, catalog, "output_dimension")
    return request, lambda answer, of: _write(answer, types, of)


def _one_of(body: Body, field: str, known: tuple[str, ...]) -> None:
    value = body.get(field)
    if value is not None and (not isinstance(value, str) or value not in known):
        raise bad_request(f"{field} is one of {', '.join(known)}.", field)


def _items(body: Body, catalog: Catalog) -> list[Item]:
    given = [source for source in SOURCES if body.get(source) is not None]
    if len(given) != 1:
        raise bad_request(
            f"Give one of {', '.join(SOURCES)}; got {' and '.join(given) or 'none'}.",
            given[1] if given else SOURCES[0],
            "invalid_value" if given else "missing",
        )
    source = given[0]
    values = body[source]
    if not isinstance(values, list):
        raise bad_request(f"{source} is a list.", source, "invalid_type")
    if not values:
        raise bad_request(f"{source} holds nothing to embed; give at least one item.", source, "empty")
    catalog.require_count(len(values))
    return [_item(source, value, catalog, f"{source}[{position}]") for position, value in enumerate(values)]


def _item(source: str, value: Any, catalog: Catalog, param: str) -> Item:
    if source == "inputs":
        if not isinstance(value, dict) or set(value) != {"content"}:
            raise bad_request(f'{param} is written {{"content": [PART]}}.', param, "invalid_type")
        return item_of_content(value["content"], catalog, f"{param}.content")
    if not isinstance(value, str):
        raise bad_request(f"{param} is a string; got {type(value).__name__}.", param, "invalid_type")
    return named_item(source.removesuffix("s"), value, catalog, param)


def _write(answer: Answer, types: list[str], catalog: Catalog) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "embeddings": {name: _written(answer.vectors, name) for name in dict.fromkeys(types)},
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.num_input_tokens}},
        "model": catalog.model,
        **describe(answer, catalog),
    }


def _written(vectors: NDArray[np.float32], name: str) -> Any:
    if name == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in vectors]
    if name == "uint8":
        return (typed_vectors(vectors, "int8").astype(np.int16) + 128).astype(np.uint8)
    return np.ascontiguousarray(typed_vectors(vectors, name))
