"""Bodies that are not JSON: forms, and a file alone.

A form's items are its files, and its parts that are called like a modality or kind (``image``, ``text``); the order of
the parts is that of the items. A part called ``file`` or ``input`` is what its Content-Type says. Everything else is an
option. A file alone (``image/*``, ``audio/*``) has its options in the query: ``/v1/embeddings?k=2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fluxtalk.runtime.server.api.options import AnswerForm, EmbeddingOptions
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.form_parts import Part, read_parts
from fluxtalk.runtime.server.http.json_body import convert
from fluxtalk.runtime.server.operation import FILE, TEXT, Schema, narrow, schemas_of
from fluxtalk.runtime.server.settings import MAX_ITEMS

Pairs = Iterable[tuple[str, str]]
_GENERIC = ("file", "input")
_MAX_PARTS = MAX_ITEMS + 64
"""Parts of a form: so many items, and the options."""


class FormOptions(EmbeddingOptions):
    """The options of a form or a query, where everything is a text."""

    modality: str | None = None


OPTIONS = FormOptions.__struct_fields__


def read_form(data: bytes, content_type: str, query: Pairs, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Read a ``multipart/form-data`` body.

    Raises:
        ApiError: 400 or 404: it is broken, or a part is not understood.
    """
    refuse_options(query)
    options: list[tuple[str, str]] = []
    parts: list[tuple[Part, str | bytes]] = []
    for part in read_parts(data, content_type, _MAX_PARTS):
        value = part.value if _holds_bytes(part) else _text(part)
        if isinstance(value, str) and part.name in OPTIONS:
            options.append((part.name, value))
        else:
            parts.append((part, value))
    asked = _options(options)
    model.require_count(len(parts))
    items = [
        model.item(_called(part, asked.modality), value, f"input[{position}]")
        for position, (part, value) in enumerate(parts)
    ]
    return _request(asked, items, model)


def read_file(data: bytes, content_type: str, query: Pairs, model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    """Read a body that is one image or sound.

    Raises:
        ApiError: 400 or 404: an option of the query is unknown.
    """
    asked = _options(query)
    kind = content_type.partition("/")[0].strip().lower()
    return _request(asked, [model.item(asked.modality or kind, data, "input[0]")], model)


def refuse_options(query: Pairs) -> None:
    """Refuse an option in the query of a body that has a place for it. What else a client puts there is its own.

    Raises:
        ApiError: 400.
    """
    for name, _ in query:
        if name in OPTIONS:
            raise bad_request(f"The option {name} belongs into the body, and not into the query.", name)


def option_schemas(model: ServedModel) -> dict[str, Schema]:
    """Describe each option for a bundle."""
    schemas = schemas_of(FormOptions)
    narrow(schemas, model)
    found = {}
    for name, schema in schemas["FormOptions"]["properties"].items():
        # None cannot be written in a form.
        written = [one for one in schema["anyOf"] if one.get("type") != "null"]
        found.update({name: written[0]} if written else {})
    return found


def form_schema(model: ServedModel) -> Schema:
    """Describe a form for a bundle."""
    items = {name: TEXT if model.kinds.get(name, name) == "text" else FILE for name in model.modality_names()}
    properties = {**option_schemas(model), **items}
    return {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 1}


def _request(asked: FormOptions, items: Sequence[Item], model: ServedModel) -> tuple[EmbedRequest, AnswerForm]:
    asked.dimensions = asked.dimensions or None
    return asked.request(items, model), asked.form()


def _holds_bytes(part: Part) -> bool:
    return part.is_file or bool(part.content_type and not part.content_type.lower().startswith("text/"))


def _text(part: Part) -> str:
    try:
        return part.value.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request(f"The part {part.name[:80]!r} of the form is not UTF-8.", part.name[:80]) from None


def _called(part: Part, modality: str | None) -> str:
    """The modality or kind of a part."""
    if part.name not in _GENERIC:
        return part.name
    if modality is not None:
        return modality
    content_type = part.content_type if _holds_bytes(part) else "text/plain"
    kind = (content_type or "").partition("/")[0].strip().lower()
    if kind in ("image", "audio", "text"):
        return kind
    raise bad_request(
        f"The part {part.name} of the form does not say what it is: call it like its modality, "
        "give it a Content-Type, or the form a modality.",
        part.name,
    )


def _options(pairs: Pairs) -> FormOptions:
    """Read options; embedding_types may be repeated, or separated by commas."""
    options: dict[str, Any] = {}
    for name, text in pairs:
        if name == "embedding_types":
            options.setdefault(name, []).extend(part.strip() for part in text.split(","))
        elif name in options:
            raise bad_request(f"The option {name[:80]} is given twice.", name[:80])
        else:
            options[name] = text
    return convert(options, FormOptions, strict=False)
