"""Errors as a client sees them: a status, and a body in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from fluxtalk.errors import FluxTalkError, InputError, TooLargeError, UsageError


class ApiError(Exception):
    """An answer that is not the one asked for.

    Args:
        status: the HTTP status.
        message: one sentence for the client.
        code: a word for programs; it stays the same when the sentence changes.
        param: the field of the body that is at fault.
        retry_after_s: seconds until trying again makes sense.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, at least one; ``WWW-Authenticate`` if a key is missing."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Make the error of a request that has no meaning: 400."""
    return ApiError(400, message, code, param)


def as_api_error(error: FluxTalkError) -> ApiError:
    """Turn an error of the library into the client's (400, 413, 422) or the server's (500)."""
    if isinstance(error, UsageError):
        return bad_request(str(error))
    if isinstance(error, TooLargeError):
        return ApiError(413, str(error), "input_too_large", "input")
    if isinstance(error, InputError):
        return ApiError(422, str(error), "invalid_input", "input")
    return ApiError(500, "The server failed at this request; its log says more.", "internal_error")


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Make the body of an error, in OpenAI's shape."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_kserve(path: str) -> bool:
    """True on the routes of KServe's protocol, whose clients cannot read an error that is an object."""
    return path == "/v2" or (path.startswith("/v2/") and path != "/v2/embed")


TEI_PATHS = ("/embed", "/")
"""Routes of Text Embeddings Inference; its clients post to the root, too."""
_TEI_TYPES = {413: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def route_path(scope: Scope) -> str:
    """The path of a request behind the prefix under which a proxy shows this server."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root else path


def error_response(error: ApiError, path: str) -> Response:
    """Make the answer that the clients of that route's protocol can read."""
    if is_kserve(path):
        content: dict[str, Any] = {"error": error.message}
    elif path in TEI_PATHS:
        kind = _TEI_TYPES.get(error.status, "Validation" if error.status < 500 else "Backend")
        content = {"error": error.message, "error_type": kind}
    else:
        content = error_body(error.status, error.message, error.code, error.param)
    return json_response(content, error.status, error.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Make a JSON answer; arrays of numpy are written as lists."""
    # Not msgspec, which knows no numpy: float32 by way of Python's floats takes 1.8 times the bytes, 3 times as long.
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Render an error of Starlette: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    elsewhere = _with_other_slash(request) if error.status_code == 404 else None
    if elsewhere is not None:
        return Response(status_code=307, headers={"location": elsewhere})
    sentences = {
        404: (f"There is no route {request.url.path}; GET /info says what is served.", "not_found"),
        405: (f"{request.url.path} does not take {request.method}.", "method_not_allowed"),
    }
    message, code = sentences.get(error.status_code, (str(error.detail), "http_error"))
    response = error_response(ApiError(error.status_code, message, code), route_path(request.scope))
    response.headers.update(error.headers or {})
    return response


async def on_api_error(request: Request, error: Exception) -> Response:
    """Render an `ApiError`."""
    assert isinstance(error, ApiError)
    return error_response(error, route_path(request.scope))


async def on_fluxtalk_error(request: Request, error: Exception) -> Response:
    """Render an error of the library."""
    assert isinstance(error, FluxTalkError)
    return error_response(as_api_error(error), route_path(request.scope))


def _with_other_slash(request: Request) -> str | None:
    """Find a route whose path has a slash at its end that this one lacks, or the other way round.

    Returns:
        its address relative to this one, which holds behind any proxy; None if there is no such route.
    """
    path = str(request.scope["path"])
    other = path[:-1] if path.endswith("/") else f"{path}/"
    scope = {**request.scope, "path": other}
    if not any(route.matches(scope)[0] is not Match.NONE for route in request.app.router.routes):
        return None
    last = other.rstrip("/").rpartition("/")[2]
    query = f"?{request.url.query}" if request.url.query else ""
    return (f"./{last}/" if other.endswith("/") else f"../{last}") + query
