"""Bodies that are no JSON, as the JSON would have said it: forms, and a file alone.

A form's items are its files, and its parts that are called like a modality or kind (``image``, ``text``); the order of
the parts is that of the items. A part called ``file`` or ``input`` is what its Content-Type says. Everything else is an
option. A file alone (``image/*``, ``audio/*``) has its options in the query: ``/v1/embeddings?tokens=2``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import python_multipart
from python_multipart.exceptions import FormParserError

from fluxtalk.runtime.server.errors import ApiError, bad_request
from fluxtalk.runtime.server.named_items import Body
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
    form = _Form()
    refuse_options(query)
    try:
        # The body is in memory as it is; nothing of it goes to a disk.
        parser = python_multipart.create_form_parser(
            {"Content-Type": content_type.encode("latin-1", "replace")},
            form.on_field,
            form.on_file,
            config={"MAX_MEMORY_FILE_SIZE": float("inf"), "MAX_BODY_SIZE": float("inf")},
        )
        parser.on_end = form.on_end
        parser.write(data)
        parser.finalize()
    except (FormParserError, ValueError):
        raise bad_request("The body is no form as its Content-Type says.", code="invalid_form") from None
    return form.body()


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


class _Form:
    """What a parser found in a form."""

    def __init__(self) -> None:
        self._items: list[tuple[str, str | None, str | bytes]] = []
        self._fields: list[tuple[str, str]] = []
        self._parts = 0
        self._complete = False

    def on_field(self, field: Any) -> None:
        """A part without a file name."""
        name, value = self._name(field), field.value or b""
        if field.content_type and not field.content_type.lower().startswith("text/"):
            self._items.append((name, field.content_type, value))
            return
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_request(f"The part {name[:80]!r} of the form is no UTF-8.", name[:80]) from None
        if name in OPTIONS:
            self._fields.append((name, text))
        else:
            self._items.append((name, "text/plain", text))

    def on_file(self, file: Any) -> None:
        """A part with one."""
        self._items.append((self._name(file), file.content_type, file.file_object.getvalue()))

    def on_end(self) -> None:
        """The last boundary."""
        self._complete = True

    def body(self) -> Body:
        """The form as JSON would have said it.

        Raises:
            ApiError: 400: it is cut off, or does not say what a file is.
        """
        if not self._complete:
            raise bad_request("The form is cut off: its last boundary is missing.", code="invalid_form")
        body = _options(self._fields)
        modality = body.pop("modality", None)
        body["input"] = [{_called(name, kind, modality): value} for name, kind, value in self._items]
        return body

    def _name(self, part: Any) -> str:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise ApiError(400, f"A form has at most {_MAX_PARTS:,} parts.", "too_many_items", "input")
        return str((part.field_name or b"").decode("utf-8", "replace"))


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
