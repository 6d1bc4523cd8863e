"""KServe's Open Inference Protocol (v2) with its binary extension: every modality is a model.

A request's outputs are those of the graph, ``tokens`` and ``embeddings``, FP32 (n, k, dim): row j - 1 of ``embeddings``
is the pooled embedding of the first j tokens, or, if the bundle's summary is ``concat``, the direction of token j: the
first j rows side by side, divided by sqrt(j), are then that embedding. An error is ``{"error": "a sentence"}``, as the
clients of this protocol read it; `errors.is_kserve` says where.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import orjson
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from fluxtalk import tokens as token_algebra
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.server.answering import Respond, answer_embedding
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.http.json_body import Body, convert, decode_json
from fluxtalk.runtime.server.kserve.models import VERSION, ModelMetadata, metadata, read_items, read_k
from fluxtalk.runtime.server.kserve.tensors import MOST_TENSORS, InferTensor, pack, read_tensors
from fluxtalk.runtime.server.operation import (
    ANYTHING,
    BODY_ERRORS,
    BUNDLE_ERRORS,
    FILE,
    JSON,
    KEY_ERRORS,
    TIMEOUT,
    ApiRoute,
    MediaTypes,
    Operation,
    Schema,
    one_of,
    path_parameter,
)
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import CONCAT, POOLED, TOKENS, TokenLayout

HEADER_LENGTH = "Inference-Header-Content-Length"
_BINARY = "application/octet-stream"


class OutputParameters(Body):
    """Parameters of an output."""

    binary_data: bool | None = None


class RequestedOutput(Body):
    """An output that a request asks for."""

    name: Literal["tokens", "embeddings"]
    parameters: OutputParameters | None = None


class InferParameters(Body):
    """Parameters of a request."""

    k: int | None = None
    binary_data_output: bool | None = None
    """True if the data of outputs that do not say it themselves follow the JSON."""


class InferRequest(Body):
    """Body of an inference request."""

    inputs: Annotated[list[InferTensor], Meta(min_length=1, max_length=MOST_TENSORS)]
    id: str | None = None
    outputs: Annotated[list[RequestedOutput], Meta(max_length=len(OUTPUTS))] | None = None
    parameters: InferParameters | None = None

    def wanted(self) -> dict[str, bool]:
        """Map the name of each output to True if its data follow the JSON.

        Raises:
            ApiError: 400: one is named twice.
        """
        binary = bool(self.parameters and self.parameters.binary_data_output)
        if not self.outputs:
            return dict.fromkeys(OUTPUTS, binary)
        wanted: dict[str, bool] = {}
        for output in self.outputs:
            if output.name in wanted:
                raise bad_request(f"outputs must have {' and '.join(OUTPUTS)} each once.", "outputs")
            own = None if output.parameters is None else output.parameters.binary_data
            wanted[output.name] = binary if own is None else own
        return wanted


class InferAnswer(TypedDict):
    """Answer, or its JSON before the data."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: dict[str, Any]
    outputs: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class ServerMetadata(TypedDict):
    """The server's name, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


def kserve_routes(service: Service) -> list[ApiRoute]:
    """Make ``/v2``, health, and for each model its metadata, readiness and inference, with and without a version."""

    async def server(_request: Request) -> Response:
        version = importlib.metadata.version("fluxtalk")
        told: ServerMetadata = {"name": "fluxtalk", "version": version, "extensions": ["binary_tensor_data"]}
        return json_response(told)

    async def live(_request: Request) -> Response:
        return json_response({"live": True})

    async def ready(_request: Request) -> Response:
        why_not = service.why_not_ready
        return json_response({"ready": True}) if why_not is None else _not_ready(why_not)

    return [
        ApiRoute("/v2", server, _operation("The server's name and extensions.", ServerMetadata, KEY_ERRORS)),
        ApiRoute("/v2/health/live", live, _operation("True as long as the process answers.", None, ())),
        ApiRoute("/v2/health/ready", ready, _operation("True if requests should be sent here.", None, (400,))),
        *_model_routes(service, "/v2/models/{model}"),
        *_model_routes(service, "/v2/models/{model}/versions/{version}"),
    ]


def _model_routes(service: Service, prefix: str) -> list[ApiRoute]:
    async def describe_model(request: Request) -> Response:
        return json_response(metadata(*_model(request, service)))

    async def model_ready(request: Request) -> Response:
        modality, _, _ = _model(request, service)
        why_not = service.why_not_ready
        return json_response({"name": modality, "ready": True}) if why_not is None else _not_ready(why_not)

    async def infer(request: Request) -> Response:
        modality, preprocess, _ = _model(request, service)

        def read(data: bytes, model: ServedModel) -> tuple[EmbedRequest, Respond]:
            length = _header_length(request.headers.get(HEADER_LENGTH), len(data))
            body = convert(decode_json(data[:length]), InferRequest)
            wanted = body.wanted()
            tensors = read_tensors(body.inputs, data[length:], model.max_items)
            items = read_items(tensors, modality, preprocess, model)
            k = read_k(tensors, body.parameters.k if body.parameters else None, len(items))
            typed = EmbedRequest(items, model.select(k, TOKENS), forms=len(wanted))
            return typed, lambda answer: _respond(answer, wanted, body.id, modality, model)

        return await answer_embedding(request, service, read)

    def described(
        summary: str, answer: Any, errors: tuple[int, ...], **more: Any
    ) -> Callable[[ServedModel], Operation]:
        def of(model: ServedModel) -> Operation:
            parameters: tuple[Schema, ...] = (path_parameter("model", one_of(model.kinds)),)
            if "{version}" in prefix:
                parameters += (path_parameter("version", one_of([VERSION])),)
            parameters += more.get("parameters", ())
            return _operation(summary, answer, errors, **{**more, "parameters": parameters})

        return of

    body: MediaTypes = {JSON: InferRequest, _BINARY: FILE}
    answer: MediaTypes = {JSON: InferAnswer, _BINARY: FILE}
    headers = (TIMEOUT, _HEADER_LENGTH)
    embed = "Embed. Its outputs are FP32 (n, k, dim)."
    return [
        ApiRoute(prefix, describe_model, described("A model's tensors.", ModelMetadata, (*BUNDLE_ERRORS, 404))),
        ApiRoute(
            f"{prefix}/ready", model_ready, described("True if a model answers.", None, (*BUNDLE_ERRORS, 400, 404))
        ),
        ApiRoute(
            f"{prefix}/infer",
            infer,
            described(embed, answer, (*BODY_ERRORS, 404), body=body, parameters=headers, schemas=_EXAMPLES),
            "POST",
        ),
    ]


def _operation(summary: str, answer: Any, errors: tuple[int, ...], **more: Any) -> Operation:
    return Operation(summary, {JSON: ANYTHING} if answer is None else answer, errors, error="KServeError", **more)


_HEADER_LENGTH: Schema = {
    "name": HEADER_LENGTH,
    "in": "header",
    "required": False,
    "description": "Bytes of the body that are JSON; the data of tensors follow.",
    "schema": {"type": "integer", "minimum": 0},
}
_EXAMPLES: dict[str, Schema] = {
    "InferRequest": {
        "examples": [
            {
                "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a cat"]}],
                "parameters": {"k": 1},
            }
        ]
    }
}


def _not_ready(why: str) -> Response:
    # The protocol knows 200 and 4xx here.
    return json_response({"ready": False, "error": f"Not ready: {why}."}, 400)


def _model(request: Request, service: Service) -> tuple[str, Preprocessor, ServedModel]:
    dispatcher = service.require_dispatcher()
    name, version = request.path_params["model"], request.path_params.get("version", VERSION)
    if name not in dispatcher.model.kinds:
        known = ", ".join(dispatcher.model.kinds)
        raise ApiError(404, f"The model {name[:80]!r} is not served here; there is {known}.", "model_not_found")
    if version != VERSION:
        raise ApiError(
            404, f"The model {name} has the version {VERSION} only; got {version[:80]!r}.", "model_not_found"
        )
    return name, dispatcher.preprocess(name), dispatcher.model


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) <= size):
        raise bad_request(f"{HEADER_LENGTH} must be how many bytes of the body are JSON.", HEADER_LENGTH)
    return int(text)


def _respond(
    answer: Answer, wanted: dict[str, bool], identifier: str | None, modality: str, model: ServedModel
) -> Response:
    arrays = {"tokens": answer.vectors}
    if "embeddings" in wanted:
        arrays["embeddings"] = _embeddings(answer.vectors, model.layout)
    entries: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for name, binary in wanted.items():
        array = arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            buffers.append(pack(array))
            entry["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            entry["data"] = np.ascontiguousarray(array).reshape(math.prod(array.shape))
        entries.append(entry)
    parameters = {name: value for name, value in model.describe(answer).items() if name != "output"}
    if "embeddings" in wanted:
        parameters["space_id"] = model.manifest.space_id(POOLED)
    content: InferAnswer = {
        "model_name": modality,
        "model_version": VERSION,
        "parameters": {**parameters, "tokens_space_id": model.manifest.space_id(TOKENS)},
        "outputs": entries,
    }
    if identifier is not None:
        content["id"] = identifier
    if not buffers:
        return json_response(content)
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(
        b"".join((header, *buffers)),
        headers={HEADER_LENGTH: str(len(header))},
        media_type=_BINARY,
    )


def _embeddings(tokens: NDArray[np.float32], layout: TokenLayout) -> NDArray[np.float32]:
    """Compute ``embeddings`` of tokens (n, k, dim), of the same shape, as the graph does."""
    if layout.summary == CONCAT:
        return token_algebra.l2_normalize(tokens)
    overlapping = layout.num_overlapping_tokens
    return np.stack([token_algebra.pool(tokens, overlapping, j) for j in range(1, tokens.shape[1] + 1)], axis=1)
