"""The parts of a ``multipart/form-data`` body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import python_multipart
from python_multipart.exceptions import FormParserError

from fluxtalk.runtime.server.http.errors import bad_request


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    value: bytes
    is_file: bool
    content_type: str | None = None


def read_parts(data: bytes, content_type: str, at_most: int) -> list[Part]:
    """Read the parts of a form, in their order.

    Args:
        data: the body.
        content_type: its whole ``Content-Type``.
        at_most: how many parts are taken.

    Raises:
        ApiError: 400: it is not a form, is cut off, or has more parts.
    """
    parts: list[Part] = []
    ended: list[bool] = []

    def take(part: Any, value: bytes, is_file: bool) -> None:
        if len(parts) == at_most:
            raise bad_request(f"This form has at most {at_most:,} parts.", code="too_many_items")
        name = (part.field_name or b"").decode("utf-8", "replace")
        parts.append(Part(name, value, is_file, part.content_type))

    def on_field(field: Any) -> None:
        take(field, field.value or b"", False)

    def on_file(file: Any) -> None:
        take(file, file.file_object.getvalue(), True)

    try:
        # The body is in memory already; nothing of it is written to a disk.
        parser = python_multipart.create_form_parser(
            {"Content-Type": content_type.encode("latin-1", "replace")},
            on_field,
            on_file,
            config={
                "MAX_MEMORY_FILE_SIZE": float("inf"),
                "MAX_BODY_SIZE": float("inf"),
                "UPLOAD_ERROR_ON_BAD_CTE": True,
            },
        )
        parser.on_end = lambda: ended.append(True)
        parser.write(data)
        parser.finalize()
    except (FormParserError, ValueError):
        raise bad_request(
            "The body is not a form as its Content-Type says, or a part has an encoding other than 7bit, 8bit, binary, "
            "base64 or quoted-printable.",
            code="invalid_form",
        ) from None
    if not ended:
        raise bad_request("The form is cut off: its last boundary is missing.", code="invalid_form")
    return parts
