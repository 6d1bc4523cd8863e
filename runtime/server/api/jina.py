"""Jina's way to write `/v1/embeddings`: items that say what they are.

::

    {"model": ..., "input": [{"text": "a cat"}, {"image": base64 or data: URL}, "a text"],
     "embedding_type": "float" | "base64" | "binary" | "ubinary", "task": ..., "normalized": true,
     "truncate": true, "late_chunking": false}

An item's field is called like its modality, or the kind of it (``text``, ``image``, ``audio``, ``features``). A string
is an item of the top-level ``modality``. Every field of `openai_embeddings` may stand beside it. Texts
of a ``task`` ``retrieval.query`` or ``retrieval.passage`` (``code.query``, ...) get the bundle's prompt for queries or
documents, if it has one; other tasks change nothing. ``truncate`` false refuses a text of which not all would be read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from fluxtalk.preprocess.prompts import DOCUMENT, QUERY
from fluxtalk.runtime.server.api.named_items import NamedItem, item_of_object
from fluxtalk.runtime.server.api.options import AnswerForm, EmbeddingOptions
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request

JinaType = Literal["float", "base64", "binary", "ubinary"]
Always = Annotated[bool, Meta(extra_json_schema={"enum": [True]})]
Never = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]
_INPUT = Meta(extra_json_schema={"description": 'a list of {"text": ...}, {"image": ...} or strings'})
_FIXED = {"normalized": True, "late_chunking": False}
"""Options whose value is fixed here; the other value is refused."""
_ROLES = {"query": QUERY, "passage": DOCUMENT}
"""Last part of a task to the role of its texts."""
_OWN = ("embedding_type", "task", "truncate", *_FIXED)


class JinaRequest(EmbeddingOptions, kw_only=True):
    """Body in Jina's dialect."""

    input: Annotated[str | list[NamedItem], _INPUT]
    modality: str | None = None
    embedding_type: JinaType | Annotated[list[JinaType], Meta(min_length=1)] | None = None
    task: str | None = None
    normalized: Always | None = None
    truncate: bool | None = None
    late_chunking: Never | None = None

    def num_forms(self) -> int:
        """Count the ways in which vectors are written side by side."""
        return len(set(self.embedding_type)) if isinstance(self.embedding_type, list) else super().num_forms()

    def truncates(self) -> bool:
        """True if a text may be read in part."""
        return self.truncate is not False

    def role(self) -> tuple[str | None, str]:
        """Read the role of the texts, and the field that says it.

        Raises:
            ApiError: 400: two fields say it.
        """
        role = _ROLES.get((self.task or "").rpartition(".")[2])
        if role is None:
            return super().role()
        if self.input_type is not None:
            raise bad_request("task says what input_type says; give one of them.", "task")
        return role, "task"


def matches(body: dict[str, Any]) -> bool:
    """True if an item is an object, or a field is only Jina's."""
    items = body.get("input")
    return any(field in body for field in _OWN) or (
        isinstance(items, list) and any(isinstance(item, dict) for item in items)
    )


def read(body: JinaRequest, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Make a body the typed request, and the form of its answer.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    for name, value in _FIXED.items():
        if getattr(body, name) not in (None, value):
            raise bad_request(f"{name} must be {str(value).lower()} here.", name)
    values = [body.input] if isinstance(body.input, str) else body.input
    model.require_count(len(values))
    items = [
        model.item(_modality_of_strings(body, model), value, f"input[{position}]")
        if isinstance(value, str)
        else item_of_object(value, model, f"input[{position}]")
        for position, value in enumerate(values)
    ]
    return body.request(items, model), _form(body)


def _modality_of_strings(body: JinaRequest, model: ServedModel) -> str:
    return model.default_modality() if body.modality is None else model.require_modality(body.modality)


def _form(body: JinaRequest) -> AnswerForm:
    asked = body.embedding_type
    if asked is None:
        return body.form()
    if body.embedding_types or body.encoding_format is not None:
        raise bad_request(
            "embedding_type says the same as encoding_format and embedding_types; give one of them.", "embedding_type"
        )
    return AnswerForm(asked) if isinstance(asked, str) else AnswerForm(types=tuple(dict.fromkeys(asked)))
