"""What the OpenAPI document is put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]
Paths = dict[str, dict[str, Any]]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_REASONS = {
    400: "The request cannot be meant; `param` names the field.",
    401: "A key is asked for, and none or another was given.",
    403: "This server does not give it out.",
    404: "No such thing is served here.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken, or compressed.",
    421: "The request came for a host name as which this server does not answer.",
    422: "An item cannot be embedded; the message says which and why.",
    429: "There is no room; try again after `Retry-After` seconds.",
    500: "The server failed at this request.",
    503: "The server is not ready, or will not be again.",
    504: "The time that the request may take is over.",
}
OF_GUARD = (401, 421)
"""Answers that every route may give which needs a key."""
ALWAYS = (*OF_GUARD, 503)
"""Answers that every route may give which needs a key and a bundle."""
OF_BODY = (400, *ALWAYS, 408, 413, 415, 422, 429, 500, 504)
"""Answers to a body with items."""


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema, **limits: int) -> Schema:
    """A list of these."""
    return {"type": "array", "items": schema, **limits}


def one_of(values: Iterable[str]) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(values)}


def closed(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    """An object with these fields and no other, as every request is read."""
    return {**opened(properties, required), "additionalProperties": False}


def opened(properties: Mapping[str, Schema], required: Iterable[str] | None = None) -> Schema:
    """An object with these fields, all of them required unless it is said which.

    Answers may gain fields, so they are not closed.
    """
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), **({"required": needed} if needed else {})}


def ref(name: str) -> Schema:
    """A schema of the document by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: Schema, **more: Any) -> dict[str, Any]:
    """JSON of a schema, in a request or a response."""
    return {"application/json": {"schema": schema, **more}}


def operation(
    summary: str,
    answer: Mapping[str, Any],
    errors: Iterable[int] = ALWAYS,
    body: Mapping[str, Any] | None = None,
    parameters: Iterable[Mapping[str, Any]] = (),
    error: str = "Error",
) -> dict[str, Any]:
    """One method of one path.

    Args:
        answer: media type to what a good answer is.
        errors: statuses of other answers.
        body: media type to what is sent.
        error: the schema of errors.
    """
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": dict(answer)},
            **{
                str(status): {"description": _REASONS[status], "content": json_content(ref(error))}
                for status in sorted(errors)
            },
        },
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": dict(body)}
    named = list(parameters)
    if named:
        found["parameters"] = named
    return found


def path_parameter(name: str, schema: Schema) -> dict[str, Any]:
    """A part of a path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def timeout_header() -> dict[str, Any]:
    """``X-Request-Timeout``, which every route with a body reads."""
    return {
        "name": "X-Request-Timeout",
        "in": "header",
        "required": False,
        "description": "Seconds that this request may take, if fewer than the server allows.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
