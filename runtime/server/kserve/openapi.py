"""The OpenAPI description of KServe's routes."""

from __future__ import annotations

from typing import Any

from fluxtalk.runtime.server.api.openapi_parts import (
    ALWAYS,
    COUNT,
    OF_BODY,
    OF_GUARD,
    TEXT,
    Paths,
    Schema,
    closed,
    json_content,
    listed,
    maybe,
    one_of,
    opened,
    operation,
    path_parameter,
    ref,
    timeout_header,
)
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.kserve.models import OUTPUTS, VERSION
from fluxtalk.runtime.server.kserve.routes import HEADER_LENGTH
from fluxtalk.runtime.server.kserve.tensors import BYTES, DTYPES

_BINARY: Schema = {"type": "string", "format": "binary"}


def kserve_paths(catalog: Catalog) -> Paths:
    """Every route under ``/v2`` but Cohere's."""
    health = {"type": "object", "additionalProperties": True}
    paths: Paths = {
        "/v2": {
            "get": operation(
                "The server's name and extensions.", json_content(ref("Server")), OF_GUARD, error="KServeError"
            )
        },
        "/v2/health/live": {"get": operation("Whether the process answers.", json_content(health), ())},
        "/v2/health/ready": {
            "get": operation("Whether requests should be sent here.", json_content(health), (400,), error="KServeError")
        },
    }
    model = path_parameter("model", one_of(catalog.kinds))
    version = path_parameter("version", one_of([VERSION]))
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        paths[prefix] = {
            "get": operation(
                "A model's tensors.", json_content(ref("Model")), (*ALWAYS, 404), None, parameters, "KServeError"
            )
        }
        paths[f"{prefix}/ready"] = {
            "get": operation(
                "Whether a model answers.", json_content(health), (*ALWAYS, 400, 404), None, parameters, "KServeError"
            )
        }
        paths[f"{prefix}/infer"] = {
            "post": operation(
                "Embed. Its outputs are FP32 (n, k, dim).",
                {**json_content(ref("InferAnswer")), "application/octet-stream": {"schema": _BINARY}},
                (*OF_BODY, 404),
                {**json_content(ref("InferRequest")), "application/octet-stream": {"schema": _BINARY}},
                [*parameters, timeout_header(), _header_length()],
                "KServeError",
            )
        }
    return paths


def kserve_schemas(catalog: Catalog) -> dict[str, Schema]:
    """What those routes refer to."""
    datatypes = one_of([*DTYPES, BYTES])
    shape = listed({"type": "integer", "minimum": -1})
    described = opened({"name": TEXT, "datatype": datatypes, "shape": shape})
    tensor = closed(
        {
            "name": TEXT,
            "datatype": datatypes,
            "shape": listed(COUNT, minItems=1, maxItems=8),
            "data": {"type": "array", "description": "In the tensor's shape, or flat."},
            "parameters": maybe(closed({"binary_data_size": COUNT})),
        },
        ("name", "datatype", "shape"),
    )
    flag = maybe({"type": "boolean"})
    output = closed({"name": one_of(OUTPUTS), "parameters": maybe(closed({"binary_data": flag}))}, ("name",))
    k = {"type": "integer", "minimum": 1, "maximum": catalog.manifest.num_register_tokens}
    request: dict[str, Any] = {
        "id": maybe(TEXT),
        "inputs": listed(tensor, minItems=1),
        "outputs": maybe(listed(output, maxItems=len(OUTPUTS))),
        "parameters": maybe(closed({"k": maybe(k), "binary_data_output": flag})),
    }
    return {
        "KServeError": opened({"error": TEXT}),
        "Server": opened({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}),
        "Model": opened(
            {
                "name": TEXT,
                "versions": listed(TEXT),
                "platform": TEXT,
                "inputs": listed(described),
                "outputs": listed(described),
            }
        ),
        "InferRequest": {**closed(request, ("inputs",)), "examples": _examples(catalog)},
        "InferAnswer": opened(
            {
                "model_name": TEXT,
                "model_version": TEXT,
                "id": TEXT,
                "parameters": {"type": "object"},
                "outputs": listed({"type": "object"}, minItems=1),
            },
            ("model_name", "model_version", "parameters", "outputs"),
        ),
    }


def _header_length() -> dict[str, Any]:
    return {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "Bytes of the body that are JSON; the data of tensors follow.",
        "schema": COUNT,
    }


def _examples(catalog: Catalog) -> list[Any]:
    if "text" not in catalog.kinds.values():
        return []
    tensor = {"name": "text", "datatype": BYTES, "shape": [1], "data": ["a cat"]}
    return [{"inputs": [tensor], "parameters": {"k": 1}}]
