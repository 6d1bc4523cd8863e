"""Infinity's way to write `/v1/embeddings`: strings, and a top-level ``modality`` that says what they are.

::

    {"model": ..., "modality": "text" | "image" | "audio", "input": ["data:image/png;base64,..."], "dimensions": 0}

It differs from OpenAI's in that ``modality`` may name a kind, and that ``dimensions: 0`` is the size there is.
"""

from __future__ import annotations

from fluxtalk.runtime.server.api import openai_embeddings
from fluxtalk.runtime.server.api.named_items import Body, Writer, modality_called
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import Catalog


def speaks(body: Body) -> bool:
    """Whether there is a ``modality``."""
    return body.get("modality") is not None


def read(body: Body, catalog: Catalog) -> tuple[EmbedRequest, Writer]:
    """A parsed body to a typed request, and what writes its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    as_openai = {**body, "modality": modality_called(body["modality"], catalog, "modality")}
    if type(body.get("dimensions")) is int and body["dimensions"] == 0:
        del as_openai["dimensions"]
    request, form = openai_embeddings.read_request(as_openai, catalog)
    return request, lambda answer, of: openai_embeddings.write_answer(answer, form, of)
