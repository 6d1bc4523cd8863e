"""OpenAI's `/v1/embeddings`, and FluxTalk's own fields beside it.

::

    {"model": ..., "input": "text" | ["text", ...] | [id, ...] | [[id, ...], ...],
     "encoding_format": "float" | "base64", "dimensions": D, "user": ...,
     "modality": ..., "tokens": k, "output": "pooled" | "concat" | "tokens" | "complementary",
     "embedding_types": ["float", "base64", "float16", "int8", "binary", "ubinary"]}

``encoding_format`` says how numbers travel: as lists, or as base64 of their little-endian bytes. An item with several
vectors (``tokens``, ``complementary``) carries their ``shape``. With ``embedding_types`` each item has ``embeddings``,
type to vector, and its ``embedding`` is empty: OpenAI's clients would read any other base64 as float32.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.vectors import quantize

FIELDS = (
    "model",
    "input",
    "encoding_format",
    "dimensions",
    "user",
    "modality",
    "tokens",
    "output",
    "embedding_types",
)
ENCODINGS = ("float", "base64")
EMBEDDING_TYPES = ("float", "base64", "float16", "int8", "binary", "ubinary")


@dataclass(frozen=True)
class AnswerForm:
    """How vectors are written."""

    encoding: str = "float"
    types: Sequence[str] = ()
    """Of `EMBEDDING_TYPES`; none: ``embedding`` alone."""


def read_request(body: dict[str, Any], catalog: Catalog) -> tuple[EmbedRequest, AnswerForm]:
    """A parsed body to a typed request.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    refuse_unknown_fields(body, FIELDS)
    catalog.require_model(body.get("model"))
    if not isinstance(body.get("user", ""), str | None):
        raise bad_request("user is a string.", "user", "invalid_type")
    if "input" not in body:
        raise bad_request("input is missing: a text, a list of texts, token ids, or lists of them.", "input", "missing")
    named = body.get("modality")
    modality = catalog.default_modality() if named is None else catalog.require_modality(named)
    values = _items(body["input"], catalog.kinds[modality], catalog.max_items)
    request = catalog.request([Item(modality, value) for value in values], body.get("tokens"), body.get("output"))
    check_dimensions(body.get("dimensions"), request, catalog)
    return request, read_form(body)


def refuse_unknown_fields(body: dict[str, Any], known: Sequence[str]) -> None:
    """A field that nothing reads is a misspelt one.

    Raises:
        ApiError: 400.
    """
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise bad_request(
            f"The field {unknown[0][:80]!r} is unknown; known are {', '.join(known)}.", unknown[0][:80], "unknown_field"
        )


def read_form(body: dict[str, Any]) -> AnswerForm:
    """``encoding_format`` and ``embedding_types`` of a body.

    Raises:
        ApiError: 400.
    """
    encoding = body.get("encoding_format")
    encoding = ENCODINGS[0] if encoding is None else encoding
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise bad_request(f"encoding_format is {' or '.join(ENCODINGS)}.", "encoding_format")
    types = body.get("embedding_types")
    types = [] if types is None else types
    if not isinstance(types, list) or not all(isinstance(t, str) and t in EMBEDDING_TYPES for t in types):
        raise bad_request(f"embedding_types is a list of {', '.join(EMBEDDING_TYPES)}.", "embedding_types")
    return AnswerForm(encoding, list(dict.fromkeys(types)))


def check_dimensions(asked: Any, request: EmbedRequest, catalog: Catalog, field: str = "dimensions") -> None:
    """``dimensions`` cuts nothing: an embedding of another size was never trained.

    Args:
        field: what it is called in the body.

    Raises:
        ApiError: 400: it is not the size that the answer has.
    """
    manifest = catalog.manifest
    overlapping = min(request.k, manifest.num_overlapping_tokens)
    size = manifest.dim * (overlapping if request.output == "concat" else 1)
    if asked is not None and (type(asked) is not int or asked != size):
        shown = asked if type(asked) is int and abs(asked) < 1 << 63 else type(asked).__name__
        raise bad_request(
            f"{field} is {size} for this output, and cannot be cut; got {shown}: ask for fewer tokens instead.",
            field,
        )


def write_answer(answer: Answer, form: AnswerForm, catalog: Catalog) -> dict[str, Any]:
    """The answer's JSON, with arrays of numpy where lists of numbers stand."""
    vectors = answer.vectors
    several = vectors.ndim == 3
    written = {name: _written(vectors, name, form.encoding) for name in form.types or (form.encoding,)}
    data = []
    for index in range(len(vectors)):
        item: dict[str, Any] = {"object": "embedding", "index": index}
        if form.types:
            item |= {"embedding": [], "embeddings": {name: rows[index] for name, rows in written.items()}}
        else:
            item["embedding"] = written[form.encoding][index]
        if several:
            item["shape"] = list(vectors.shape[1:])
        data.append(item)
    return {
        "object": "list",
        "data": data,
        "model": catalog.model,
        "usage": {"prompt_tokens": answer.num_input_tokens, "total_tokens": answer.num_input_tokens},
        **describe(answer, catalog),
    }


def describe(answer: Answer, catalog: Catalog) -> dict[str, Any]:
    """What every answer says of its vectors, in whatever dialect."""
    return {
        "k": answer.request.k,
        "output": answer.request.output,
        "dimension": int(answer.vectors.shape[-1]),
        "revision": catalog.revision,
        "space_id": catalog.space_id(answer.request.output),
    }


def _items(value: Any, kind: str, max_items: int) -> list[Any]:
    """The items of an ``input``; what is in them is checked when they are decoded."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise bad_request(
            f"input is a string, a list of strings, token ids, or lists of them; got {_type_name(value)}.",
            "input",
            "invalid_type",
        )
    if kind == "text":
        if value and type(value[0]) is int:
            return [value]
        wanted: tuple[type, ...] = (str, list)
        described = "strings or lists of token ids"
    elif kind == "features":
        wanted, described = (str, list), "lists of vectors, or .npy files in base64"
    else:
        wanted, described = (str,), f"{kind} files in base64"
    for position, part in enumerate(value[:max_items]):
        if not isinstance(part, wanted):
            raise bad_request(
                f"input is a list of {described}; item {position} is {_type_name(part)}.",
                f"input[{position}]",
                "invalid_type",
            )
    return value


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else "a string")


def _written(vectors: NDArray[np.float32], name: str, encoding: str) -> Sequence[Any]:
    """Vectors of every item in one embedding type."""
    rows = typed_vectors(vectors, name)
    if name == "base64" or encoding == "base64":
        little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        return [base64.b64encode(row.tobytes()).decode("ascii") for row in little]
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)  # the same numbers
    return np.ascontiguousarray(rows)  # type: ignore[return-value]


def typed_vectors(vectors: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Vectors in one of `EMBEDDING_TYPES`, as numbers."""
    if name in ("float", "base64"):
        return vectors
    if name == "binary":
        # Signed, as people know it: the bits' byte minus 128.
        return (quantize(vectors, "binary").astype(np.int16) - 128).astype(np.int8)
    return quantize(vectors, "binary" if name == "ubinary" else name)
