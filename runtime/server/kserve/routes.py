"""KServe's Open Inference Protocol (v2) with its binary extension: every modality is a model.

A request's outputs are those of the graph, ``tokens`` and ``embeddings``, FP32 (n, k, dim): row j - 1 of ``embeddings``
is the pooled embedding of the first j tokens. An error is ``{"error": "a sentence"}``, as the clients of this protocol
read it; `errors.speaks_kserve` says where.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxtalk import tokens as token_algebra
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.server.api.dialects import read_json
from fluxtalk.runtime.server.api.endpoint import Respond, answer_request
from fluxtalk.runtime.server.api.openai_embeddings import describe
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.kserve.models import OUTPUTS, VERSION, metadata, read_items, read_k
from fluxtalk.runtime.server.kserve.tensors import pack, read_tensors
from fluxtalk.runtime.server.service import Service

HEADER_LENGTH = "Inference-Header-Content-Length"
FIELDS = ("id", "inputs", "outputs", "parameters")


def kserve_routes(service: Service) -> list[Route]:
    """``/v2``, health, and for each model its metadata, readiness and inference, with and without a version."""

    async def server(_request: Request) -> Response:
        version = importlib.metadata.version("fluxtalk")
        return json_response({"name": "fluxtalk", "version": version, "extensions": ["binary_tensor_data"]})

    async def live(_request: Request) -> Response:
        return json_response({"live": True})

    async def ready(_request: Request) -> Response:
        why_not = service.why_not_ready
        return json_response({"ready": True}) if why_not is None else _not_ready(why_not)

    def model_routes(prefix: str) -> list[Route]:
        async def describe_model(request: Request) -> Response:
            modality, preprocess, catalog = _model(request, service)
            return json_response(metadata(modality, preprocess, catalog))

        async def model_ready(request: Request) -> Response:
            modality, _, _ = _model(request, service)
            why_not = service.why_not_ready
            return json_response({"name": modality, "ready": True}) if why_not is None else _not_ready(why_not)

        async def infer(request: Request) -> Response:
            modality, preprocess, _ = _model(request, service)
            return await answer_request(request, service, functools.partial(_read, modality, preprocess))

        return [
            Route(prefix, describe_model),
            Route(f"{prefix}/ready", model_ready),
            Route(f"{prefix}/infer", infer, methods=["POST"]),
        ]

    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *model_routes("/v2/models/{model}"),
        *model_routes("/v2/models/{model}/versions/{version}"),
    ]


@dataclass(frozen=True)
class _Wanted:
    """What a response holds."""

    id: str | None
    modality: str
    outputs: dict[str, bool]
    """Name to whether its data stand behind the JSON."""


def _not_ready(why: str) -> Response:
    # The protocol knows 200 and 4xx here.
    return json_response({"ready": False, "error": f"Not ready: {why}."}, 400)


def _model(request: Request, service: Service) -> tuple[str, Preprocessor, Catalog]:
    engine = service.require_engine()
    name, version = request.path_params["model"], request.path_params.get("version", VERSION)
    if name not in engine.catalog.kinds:
        known = ", ".join(engine.catalog.kinds)
        raise ApiError(404, f"The model {name[:80]!r} is not served here; there is {known}.", "model_not_found")
    if version != VERSION:
        raise ApiError(
            404, f"The model {name} has the version {VERSION} only; got {version[:80]!r}.", "model_not_found"
        )
    return name, engine.preprocess(name), engine.catalog


def _read(
    modality: str, preprocess: Preprocessor, request: Request, data: bytes, catalog: Catalog
) -> tuple[EmbedRequest, Respond]:
    length = _header_length(request.headers.get(HEADER_LENGTH), len(data))
    body = read_json(data[:length], "application/json")
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise bad_request(f"The field {unknown[0][:80]!r} is unknown; known are {', '.join(FIELDS)}.", unknown[0][:80])
    identifier = body.get("id")
    if not isinstance(identifier, str | None):
        raise bad_request("id is a string.", "id", "invalid_type")
    k, binary = _parameters(body.get("parameters"))
    wanted = _Wanted(identifier, modality, _outputs(body.get("outputs"), binary))
    tensors = read_tensors(body.get("inputs"), data[length:], catalog.max_items)
    items = read_items(tensors, modality, preprocess, catalog)
    typed = catalog.request(items, read_k(tensors, k, len(items)), "tokens")
    return typed, functools.partial(_respond, wanted)


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) <= size):
        raise bad_request(f"{HEADER_LENGTH} is how many bytes of the body are JSON.", HEADER_LENGTH)
    return int(text)


def _parameters(given: Any) -> tuple[Any, bool]:
    """``k``, and whether outputs that do not say so stand behind the JSON."""
    parameters = {} if given is None else given
    if not isinstance(parameters, dict) or set(parameters) - {"k", "binary_data_output"}:
        raise bad_request("A request takes the parameters k and binary_data_output, and no other.", "parameters")
    return parameters.get("k"), _flag(parameters, "binary_data_output", False)


def _outputs(given: Any, binary: bool) -> dict[str, bool]:
    if given is None or given == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(given, list) or len(given) > len(OUTPUTS):
        raise bad_request(f"outputs is a list of {' and '.join(OUTPUTS)}.", "outputs")
    wanted: dict[str, bool] = {}
    for entry in given:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS or name in wanted or set(entry) - {"name", "parameters"}:
            raise bad_request(f'outputs is a list of {{"name": ...}}, {" and ".join(OUTPUTS)}, each once.', "outputs")
        parameters = entry.get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict) or set(parameters) - {"binary_data"}:
            raise bad_request(f"The output {name} takes the parameter binary_data and no other.", "outputs")
        wanted[name] = _flag(parameters, "binary_data", binary)
    return wanted


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name)
    if not isinstance(value, bool | None):
        raise bad_request(f"{name} is true or false.", "parameters", "invalid_type")
    return default if value is None else value


def _respond(wanted: _Wanted, answer: Answer, catalog: Catalog) -> Response:
    arrays = {"tokens": answer.vectors}
    if "embeddings" in wanted.outputs:
        arrays["embeddings"] = _prefixes(answer.vectors, catalog.manifest.num_overlapping_tokens)
    entries: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for name, binary in wanted.outputs.items():
        array = arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            buffers.append(pack(array))
            entry["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            entry["data"] = np.ascontiguousarray(array).reshape(math.prod(array.shape))
        entries.append(entry)
    described = {name: value for name, value in describe(answer, catalog).items() if name != "output"}
    if "embeddings" in wanted.outputs:
        described["space_id"] = catalog.space_id("pooled")
    content: dict[str, Any] = {
        "model_name": wanted.modality,
        "model_version": VERSION,
        "parameters": {**described, "tokens_space_id": catalog.space_id("tokens")},
        "outputs": entries,
    }
    if wanted.id is not None:
        content["id"] = wanted.id
    if not buffers:
        return json_response(content)
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(
        b"".join((header, *buffers)),
        headers={HEADER_LENGTH: str(len(header))},
        media_type="application/octet-stream",
    )


def _prefixes(tokens: NDArray[np.float32], overlapping: int) -> NDArray[np.float32]:
    """The pooled embedding of each prefix, (n, k, dim), as the graph computes it."""
    return np.stack([token_algebra.pool(tokens, overlapping, j) for j in range(1, tokens.shape[1] + 1)], axis=1)
