"""Voyage's way to write `/v1/embeddings`.

::

    {"model": ..., "input": "a text" | ["a text", ...], "input_type": "query" | "document", "truncation": true,
     "output_dimension": D, "output_dtype": "float" | "int8" | "uint8" | "binary" | "ubinary",
     "encoding_format": "base64"}

Every field of `openai_embeddings` may stand beside it. Numbers of ``output_dtype`` are in ``embedding`` itself, as
lists or as base64 of their bytes. ``truncation`` false refuses a text of which not all would be read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from fluxtalk.runtime.server.api import openai_embeddings
from fluxtalk.runtime.server.api.openai_embeddings import OpenAIRequest
from fluxtalk.runtime.server.api.options import AnswerForm
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request

_OWN = ("truncation", "output_dimension", "output_dtype")


class VoyageRequest(OpenAIRequest, kw_only=True):
    """Body in Voyage's dialect."""

    truncation: bool | None = None
    output_dimension: int | None = None
    output_dtype: Literal["float", "int8", "uint8", "binary", "ubinary"] | None = None

    def truncates(self) -> bool:
        """True if a text may be read in part."""
        return self.truncation is not False

    def size(self) -> tuple[int | None, str]:
        """Read the size of a vector, and the field that says it.

        Raises:
            ApiError: 400: two fields say it.
        """
        if self.output_dimension is None:
            return super().size()
        if self.dimensions is not None:
            raise bad_request("output_dimension says what dimensions says; give one of them.", "output_dimension")
        return self.output_dimension, "output_dimension"

    def form(self) -> AnswerForm:
        """Read the form of the answer."""
        form = super().form()
        if self.output_dtype in (None, "float"):
            return form
        if form.types:
            raise bad_request("output_dtype says what embedding_types says; give one of them.", "output_dtype")
        return replace(form, dtype=self.output_dtype)


def matches(body: dict[str, Any]) -> bool:
    """True if a field is only Voyage's."""
    return any(field in body for field in _OWN)


def read(body: VoyageRequest, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Make a body the typed request, and the form of its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    return openai_embeddings.read(body, model)
