"""Bodies that are no JSON, as the JSON would have said it: forms, and a file alone.

A form's items are its files, and its parts that are called like a modality or kind (``image``, ``text``); the order of
the parts is that of the items. A part called ``file`` or ``input`` is what its Content-Type says. Everything else is an
option. A file alone (``image/*``, ``audio/*``) has its options in the query: ``/v1/embeddings?tokens=2``.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluxtalk.runtime.server.api.named_items import Body
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.form_parts import Part, read_parts
from fluxtalk.runtime.server.settings import MAX_ITEMS

OPTIONS = ("model", "modality", "tokens", "output", "encoding_format", "embedding_types", "dimensions", "user")
_GENERIC = ("file", "input")
_NUMBERS = ("tokens", "dimensions")
_MAX_PARTS = MAX_ITEMS + 64
"""So many items, and the options."""


def read_form(data: bytes, content_type: str, query: Iterable[tuple[str, str]]) -> Body:
    """A ``multipart/form-data`` body.

    Raises:
        ApiError: 400: it is broken, or a part is not understood.
    """
    refuse_options(query)
    options: list[tuple[str, str]] = []
    items: list[tuple[str, str | None, str | bytes]] = []
    for part in read_parts(data, content_type, _MAX_PARTS):
        value = part.value if _holds_bytes(part) else _text(part)
        if isinstance(value, bytes):
            items.append((part.name, part.content_type, value))
        elif part.name in OPTIONS:
            options.append((part.name, value))
        else:
            items.append((part.name, "text/plain", value))
    body = _options(options)
    modality = body.pop("modality", None)
    body["input"] = [{_called(name, kind, modality): value} for name, kind, value in items]
    return body


def read_file(data: bytes, content_type: str, query: Iterable[tuple[str, str]]) -> Body:
    """A body that is one image or sound.

    Raises:
        ApiError: 400: an option of the query is unknown.
    """
    options = _options(query)
    kind = content_type.partition("/")[0].strip().lower()
    return {**options, "input": [{str(options.pop("modality", kind)): data}]}


def refuse_options(query: Iterable[tuple[str, str]]) -> None:
    """Refuse an option in the query of a body that has a place for it. What else a client puts there is its own.

    Raises:
        ApiError: 400.
    """
    for name, _ in query:
        if name in OPTIONS:
            raise bad_request(f"The option {name} belongs into the body, and not into the query.", name)


def _holds_bytes(part: Part) -> bool:
    return part.is_file or bool(part.content_type and not part.content_type.lower().startswith("text/"))


def _text(part: Part) -> str:
    try:
        return part.value.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request(f"The part {part.name[:80]!r} of the form is no UTF-8.", part.name[:80]) from None


def _called(name: str, content_type: str | None, modality: str | None) -> str:
    """The modality or kind of a part."""
    if name not in _GENERIC:
        return name
    if modality is not None:
        return modality
    kind = (content_type or "").partition("/")[0].strip().lower()
    if kind in ("image", "audio", "text"):
        return kind
    raise bad_request(
        f"The part {name} of the form does not say what it is: call it like its modality, "
        "give it a Content-Type, or the form a modality.",
        name,
    )


def _options(pairs: Iterable[tuple[str, str]]) -> Body:
    """Texts to what JSON would hold; embedding_types may be repeated, or separated by commas."""
    options: Body = {}
    for name, text in pairs:
        if name not in OPTIONS:
            raise bad_request(
                f"The option {name[:80]!r} is unknown; known are {', '.join(OPTIONS)}.", name[:80], "unknown_field"
            )
        if name == "embedding_types":
            options.setdefault(name, []).extend(part.strip() for part in text.split(","))
        elif name in options:
            raise bad_request(f"The option {name} is given twice.", name)
        else:
            number = name in _NUMBERS and text.isascii() and text.isdecimal() and len(text) < 19
            options[name] = int(text) if number else text
    return options
