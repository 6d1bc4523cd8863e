"""`GET /openapi.json`: every route, and every way of writing a request, for the bundle that is served."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxtalk.runtime.server.api.openapi_embeddings import embedding_paths, embedding_schemas
from fluxtalk.runtime.server.api.openapi_parts import (
    ALWAYS,
    COUNT,
    OF_GUARD,
    TEXT,
    Paths,
    Schema,
    json_content,
    listed,
    maybe,
    one_of,
    opened,
    operation,
    path_parameter,
    ref,
)
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import json_response
from fluxtalk.runtime.server.http.guard import OPEN_PATHS
from fluxtalk.runtime.server.kserve.openapi import kserve_paths, kserve_schemas
from fluxtalk.runtime.server.search.openapi import search_paths, search_schemas
from fluxtalk.runtime.server.service import Service

PATH = "/openapi.json"


def openapi_routes(service: Service) -> list[Route]:
    """``/openapi.json``."""

    async def openapi(_request: Request) -> Response:
        return json_response(document(service.require_engine().catalog, bool(service.settings.api_keys)))

    return [Route(PATH, openapi)]


def document(catalog: Catalog, with_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        with_key: whether requests need one.
    """
    paths = {
        **embedding_paths(catalog),
        **search_paths(catalog),
        **kserve_paths(catalog),
        **_fact_paths(catalog),
    }
    for path in OPEN_PATHS & set(paths):
        for described in paths[path].values():
            described["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FluxTalk",
            "version": importlib.metadata.version("fluxtalk"),
            "summary": f"Embeddings of {', '.join(catalog.kinds)} in one space.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **embedding_schemas(catalog),
                **search_schemas(),
                **kserve_schemas(catalog),
                **_fact_schemas(),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if with_key else [],
    }


def _fact_paths(catalog: Catalog) -> Paths:
    anything: Schema = {"type": "object"}
    model = path_parameter("model", one_of([catalog.model]))
    text = {"text/plain": {"schema": TEXT}}
    return {
        "/v1/models": {"get": operation("What is served.", json_content(ref("Models")))},
        "/v1/models/{model}": {
            "get": operation("One model.", json_content(ref("ServedModel")), (*ALWAYS, 404), None, [model])
        },
        "/info": {"get": operation("Modalities, tokens, spaces, limits.", json_content(anything))},
        "/livez": {"get": operation("Whether the process answers.", json_content(anything), ())},
        "/readyz": {"get": operation("Whether requests should be sent here.", json_content(anything), (503,))},
        "/metrics": {"get": operation("For Prometheus.", text, OF_GUARD)},
        PATH: {"get": operation("This document.", json_content(anything))},
    }


def _fact_schemas() -> dict[str, Schema]:
    error = opened({"message": TEXT, "type": TEXT, "param": maybe(TEXT), "code": TEXT})
    served = opened({"id": TEXT, "object": one_of(["model"]), "created": COUNT, "owned_by": TEXT, "revision": TEXT})
    return {
        "Error": opened({"error": error}),
        "ServedModel": served,
        "Models": opened({"object": one_of(["list"]), "data": listed(ref("ServedModel"))}),
    }
