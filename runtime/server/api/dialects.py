"""The bodies that are understood. A dialect is met in one small file of its own; behind it everything is typed.

To add a way of writing `/v1/embeddings`, put a `Dialect` before the last; to add a route, add an `Endpoint`. A body
that is no JSON gets a reader in its `body_types`, which makes of it what the JSON would have said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from fluxtalk.runtime.server.api import chat, cohere, infinity, jina, openai_embeddings
from fluxtalk.runtime.server.api.named_items import Body as Body
from fluxtalk.runtime.server.api.named_items import Writer as Writer
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http import multipart
from fluxtalk.runtime.server.http.errors import bad_request

BodyReader = Callable[[bytes, str, Iterable[tuple[str, str]]], Body]
"""A body, its whole ``Content-Type``, and the fields of the query. Raises `ApiError`."""


@dataclass(frozen=True)
class Dialect:
    """One way to write a request and its answer."""

    name: str
    speaks: Callable[[Body], bool]
    """Whether a body is written in it."""
    read: Callable[[Body, Catalog], tuple[EmbedRequest, Writer]]
    """The typed request, and what writes its answer. Raises `ApiError`. Decodes nothing: that is done in threads."""


def _read_openai(body: Body, catalog: Catalog) -> tuple[EmbedRequest, Writer]:
    request, form = openai_embeddings.read_request(body, catalog)
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


def _read_json_body(data: bytes, content_type: str, query: Iterable[tuple[str, str]]) -> Body:
    multipart.refuse_options(query)
    return read_json(data, content_type)


@dataclass(frozen=True)
class Endpoint:
    """A route that takes embedding requests by POST."""

    path: str
    dialects: tuple[Dialect, ...]
    """The first that speaks a body reads it."""
    body_types: Mapping[str, BodyReader] = field(default_factory=lambda: {"application/json": _read_json_body})
    """Media type to what reads it; a key may end in ``/*``."""


CHAT = Dialect("chat", chat.speaks, chat.read)
JINA = Dialect("jina", jina.speaks, jina.read)
INFINITY = Dialect("infinity", infinity.speaks, infinity.read)
OPENAI = Dialect("openai", lambda body: True, _read_openai)
COHERE = Dialect("cohere", cohere.speaks, cohere.read)
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "/v1/embeddings",
        (CHAT, JINA, INFINITY, OPENAI),
        {
            "application/json": _read_json_body,
            "multipart/form-data": multipart.read_form,
            "image/*": multipart.read_file,
            "audio/*": multipart.read_file,
        },
    ),
    Endpoint("/v2/embed", (COHERE,)),
)
