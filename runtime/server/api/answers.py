"""Answers of `/v1/embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fluxtalk.runtime.server.api.options import AnswerForm
from fluxtalk.runtime.server.execution.requests import Answer
from fluxtalk.runtime.server.execution.served_model import AnswerDescription, ServedModel
from fluxtalk.runtime.server.operation import Count
from fluxtalk.runtime.vectors import quantize

_NUMBERS = {"type": "array", "items": {"type": "number"}}
Vector = Annotated[
    Any, Meta(extra_json_schema={"anyOf": [_NUMBERS, {"type": "array", "items": _NUMBERS}, {"type": "string"}]})
]
"""Numbers, several lists of them, or base64; a numpy array until it is written."""


class Embedding(TypedDict):
    """One item's vectors."""

    object: Literal["embedding"]
    index: Count
    embedding: Vector
    embeddings: NotRequired[dict[str, Vector]]
    shape: NotRequired[list[Count]]


class Usage(TypedDict):
    """Units that were read, as OpenAI counts them."""

    prompt_tokens: Count
    total_tokens: Count


class EmbeddingsAnswer(AnswerDescription):
    """An answer."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


def write_answer(answer: Answer, form: AnswerForm, model: ServedModel) -> EmbeddingsAnswer:
    """Write an answer in a form."""
    vectors = answer.vectors
    plain = form.dtype or form.encoding
    written = {name: _written(vectors, name, form.encoding) for name in form.types or (plain,)}
    data: list[Embedding] = []
    for index in range(len(vectors)):
        if form.types:
            named = {name: rows[index] for name, rows in written.items()}
            item: Embedding = {"object": "embedding", "index": index, "embedding": [], "embeddings": named}
        else:
            item = {"object": "embedding", "index": index, "embedding": written[plain][index]}
        if vectors.ndim == 3:
            item["shape"] = list(vectors.shape[1:])
        data.append(item)
    return {
        "object": "list",
        "data": data,
        "model": model.name,
        "usage": {"prompt_tokens": answer.num_input_tokens, "total_tokens": answer.num_input_tokens},
        **model.describe(answer),
    }


def typed_vectors(vectors: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Convert vectors to one `EmbeddingType`, or to ``uint8`` (``int8`` plus 128), as numbers."""
    if name in ("float", "base64"):
        return vectors
    if name == "uint8":
        return (quantize(vectors, "int8").astype(np.int16) + 128).astype(np.uint8)
    if name == "binary":
        # Signed, as people know it: the bits' byte minus 128.
        return (quantize(vectors, "binary").astype(np.int16) - 128).astype(np.int8)
    return quantize(vectors, "binary" if name == "ubinary" else name)


def in_base64(rows: NDArray[Any]) -> list[str]:
    """Encode the little-endian bytes of each row."""
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little]


def _written(vectors: NDArray[np.float32], name: str, encoding: str) -> Sequence[Any]:
    """Convert the vectors of every item to one embedding type, as they are written."""
    rows = typed_vectors(vectors, name)
    if name == "base64" or encoding == "base64":
        return in_base64(rows)
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)  # the same numbers
    return np.ascontiguousarray(rows)  # type: ignore[return-value]
