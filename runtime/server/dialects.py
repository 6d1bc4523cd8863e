"""The bodies that are understood. A dialect is met in one small file of its own; behind it everything is typed.

To add a way of writing `/v1/embeddings`, put a `Dialect` before the last; to add a route, add an `Endpoint`. A body
that is no JSON gets a reader in `BODY_TYPES`, which makes of it what the JSON would have said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from fluxtalk.runtime.server import openai_embeddings
from fluxtalk.runtime.server.catalogue import Catalogue
from fluxtalk.runtime.server.errors import bad_request
from fluxtalk.runtime.server.requests import Answer, EmbedRequest

Body = dict[str, Any]
Writer = Callable[[Answer, Catalogue], dict[str, Any]]
"""An answer to its JSON, with arrays of numpy where lists of numbers stand."""


@dataclass(frozen=True)
class Dialect:
    """One way to write a request and its answer."""

    name: str
    speaks: Callable[[Body], bool]
    """Whether a body is written in it."""
    read: Callable[[Body, Catalogue], tuple[EmbedRequest, Writer]]
    """The typed request, and what writes its answer. Raises `ApiError`. Decodes nothing: that is done in threads."""


@dataclass(frozen=True)
class Endpoint:
    """A route that takes embedding requests by POST."""

    path: str
    dialects: tuple[Dialect, ...]
    """The first that speaks a body reads it."""


def _read_openai(body: Body, catalogue: Catalogue) -> tuple[EmbedRequest, Writer]:
    request, form = openai_embeddings.read_request(body, catalogue)
    return request, lambda answer, of: openai_embeddings.write_answer(answer, form, of)


def read_json(data: bytes, _content_type: str) -> Body:
    """A JSON body.

    Raises:
        ApiError: 400: it is none, or no object.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is no valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("The body is a JSON object.", code="invalid_json")
    return body


OPENAI = Dialect("openai", lambda body: True, _read_openai)
ENDPOINTS: tuple[Endpoint, ...] = (Endpoint("/v1/embeddings", (OPENAI,)),)
BODY_TYPES: dict[str, Callable[[bytes, str], Body]] = {"application/json": read_json}
"""Media type to what reads it, given the body and the whole ``Content-Type``; a key may end in ``/*``."""
