"""Jina's way to write `/v1/embeddings`: items that say what they are.

::

    {"model": ..., "input": [{"text": "a cat"}, {"image": base64 or data: URL}, "a text"],
     "embedding_type": "float" | "base64" | "binary" | "ubinary", "task": ..., "normalized": true,
     "truncate": true, "late_chunking": false}

An item's field is called like its modality, or the kind of it (``text``, ``image``, ``audio``, ``features``). A string
is an item of the top-level ``modality``. Every field of `openai_embeddings` may stand beside it. Vectors are the same
for every ``task``: the bundle has one space.
"""

from __future__ import annotations

from typing import Any

from fluxtalk.runtime.server.api.named_items import Body, Writer, finish, item_of_object, modality_called, named_item
from fluxtalk.runtime.server.api.openai_embeddings import FIELDS as OPENAI_FIELDS
from fluxtalk.runtime.server.api.openai_embeddings import AnswerForm, read_form, refuse_unknown_fields
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import bad_request

_FIXED = {"normalized": True, "truncate": True, "late_chunking": False}
"""What this server does anyway; the other value is refused."""
_OWN = ("embedding_type", "task", *_FIXED)
FIELDS = (*OPENAI_FIELDS, *_OWN)
EMBEDDING_TYPES = ("float", "base64", "binary", "ubinary")


def speaks(body: Body) -> bool:
    """Whether an item is an object, or a field is only Jina's."""
    items = body.get("input")
    return any(field in body for field in _OWN) or (
        isinstance(items, list) and any(isinstance(item, dict) for item in items)
    )


def read(body: Body, catalog: Catalog) -> tuple[EmbedRequest, Writer]:
    """A parsed body to a typed request, and what writes its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    refuse_unknown_fields(body, FIELDS)
    for name, value in _FIXED.items():
        if body.get(name) not in (None, value):
            raise bad_request(f"{name} is {str(value).lower()} here.", name)
    if not isinstance(body.get("task"), str | None):
        raise bad_request("task is a string.", "task", "invalid_type")
    values = body.get("input")
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list):
        raise bad_request(
            'input is a list of {"text": ...}, {"image": ...} or strings.',
            "input",
            "missing" if values is None else "invalid_type",
        )
    catalog.require_count(len(values))
    items = [
        named_item(_modality(body, catalog), value, catalog, f"input[{position}]")
        if isinstance(value, str)
        else item_of_object(value, catalog, f"input[{position}]")
        for position, value in enumerate(values)
    ]
    return finish(body, items, catalog, _form(body))


def _modality(body: Body, catalog: Catalog) -> str:
    named = body.get("modality")
    return catalog.default_modality() if named is None else modality_called(named, catalog, "modality")


def _form(body: Body) -> AnswerForm:
    form = read_form(body)
    asked: Any = body.get("embedding_type")
    if asked is None:
        return form
    types = asked if isinstance(asked, list) else [asked]
    if not types or not all(isinstance(name, str) and name in EMBEDDING_TYPES for name in types):
        raise bad_request(f"embedding_type is one of {', '.join(EMBEDDING_TYPES)}, or a list.", "embedding_type")
    if form.types or body.get("encoding_format") is not None:
        raise bad_request(
            "embedding_type says the same as encoding_format and embedding_types; give one of them.", "embedding_type"
        )
    if isinstance(asked, str):
        return AnswerForm(asked)
    return AnswerForm(types=list(dict.fromkeys(types)))
