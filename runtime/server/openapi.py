"""`GET /openapi.json`: every route, and every way of writing a request, for the bundle that is served.

Schemas come from the types of bodies and answers. Known here alone is what a bundle adds: its largest k, its names.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import json_response
from fluxtalk.runtime.server.http.middleware import is_open
from fluxtalk.runtime.server.operation import (
    ANYTHING,
    JSON,
    ApiRoute,
    Error,
    KServeError,
    Operation,
    Schema,
    TeiError,
    narrow,
    ref,
    schemas_of,
)

PATH = "/openapi.json"
_REASONS = {
    400: "The request has no meaning; `param` names the field.",
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


def openapi_route(routes: Sequence[ApiRoute], model: Callable[[], ServedModel], with_key: bool) -> ApiRoute:
    """Make ``/openapi.json``.

    Args:
        routes: the others.
        model: gives the served model; raises `ApiError` before it is loaded.
        with_key: True if requests need a key.
    """

    async def openapi(_request: Request) -> Response:
        return json_response(document([*routes, route], model(), with_key))

    route = ApiRoute(PATH, openapi, Operation("This document.", {JSON: ANYTHING}))
    return route


def document(routes: Sequence[ApiRoute], model: ServedModel, with_key: bool) -> dict[str, Any]:
    """Write the OpenAPI 3.1 document."""
    operations = [(route, route.describe(model)) for route in routes]
    types = list(dict.fromkeys(t for _, operation in operations for t in _types(operation)))
    schemas = schemas_of(Error, KServeError, TeiError, *types)
    narrow(schemas, model)
    for _, operation in operations:
        for name, more in operation.schemas.items():
            schemas[name] = {**schemas.get(name, {}), **more}
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in operations:
        # Starlette writes a converter into the parameter: {row:int}.
        path = re.sub(r":\w+}", "}", route.path)
        paths.setdefault(path, {})[route.method] = _written(operation, open_to_all=is_open(path, route.method))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FluxTalk",
            "version": importlib.metadata.version("fluxtalk"),
            "summary": f"Embeddings of {', '.join(model.kinds)} in one space.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}] if with_key else [],
    }


def _types(operation: Operation) -> Iterator[type]:
    for content in (_answer(operation), operation.body or {}):
        for found in content.values():
            if not isinstance(found, dict):
                yield from found if isinstance(found, tuple) else (found,)


def _answer(operation: Operation) -> Mapping[str, Any]:
    return operation.answer if isinstance(operation.answer, dict) else {JSON: operation.answer}


def _written(operation: Operation, open_to_all: bool) -> dict[str, Any]:
    errors = {
        str(status): {"description": _REASONS[status], "content": {JSON: {"schema": ref(operation.error)}}}
        for status in sorted(operation.errors)
    }
    found: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "Done.", "content": _contents(_answer(operation))}, **errors},
    }
    if operation.body is not None:
        content = _contents(operation.body)
        if operation.examples:
            content[JSON]["examples"] = dict(operation.examples)
        found["requestBody"] = {"required": True, "content": content}
    if operation.parameters:
        found["parameters"] = list(operation.parameters)
    if open_to_all:
        found["security"] = []
    return found


def _contents(content: Mapping[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": _schema(described)} for media_type, described in content.items()}


def _schema(described: Any) -> Schema:
    if isinstance(described, dict):
        return described
    if isinstance(described, tuple):
        return {"anyOf": [_schema(one) for one in described]}
    return ref(described.__name__)
