"""Routes that describe the server: health, metrics, models, limits."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.runtime.server.api.options import EMBEDDING_TYPES
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import error_body, json_response
from fluxtalk.runtime.server.metrics import CONTENT_TYPE, WorkerState
from fluxtalk.runtime.server.operation import (
    ANYTHING,
    BUNDLE_ERRORS,
    JSON,
    KEY_ERRORS,
    TEXT,
    ApiRoute,
    Count,
    Operation,
    one_of,
    path_parameter,
)
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import OUTPUT_KINDS


class ModelEntry(TypedDict):
    """One model, as OpenAI lists them."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    revision: str


class ModelList(TypedDict):
    """List of the models, which are one."""

    object: Literal["list"]
    data: list[ModelEntry]


def info_routes(service: Service) -> list[ApiRoute]:
    """Make ``/livez``, ``/readyz``, ``/health``, ``/metrics``, ``/info``, ``/v1/models``."""

    async def livez(_request: Request) -> Response:
        return json_response({"alive": True})

    async def readyz(_request: Request) -> Response:
        why_not = service.why_not_ready
        workers = WorkerState.read()
        if why_not is None:
            shown = {} if workers is None else {"workers": {"expected": workers.expected, "running": workers.running}}
            return json_response({"ready": True, **shown})
        return json_response({"ready": False, **error_body(503, f"Not ready: {why_not}.", "not_ready")}, 503)

    async def metrics(_request: Request) -> Response:
        service.metrics.ready.set(service.why_not_ready is None)
        service.metrics.memory.set(service.memory.held)
        return Response(service.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def info(_request: Request) -> Response:
        return json_response(_info(service))

    async def models(_request: Request) -> Response:
        served = service.require_dispatcher().model
        listed: ModelList = {"object": "list", "data": [_model(served, name) for name in served.names]}
        return json_response(listed)

    async def model(request: Request) -> Response:
        served = service.require_dispatcher().model
        name = request.path_params["model"]
        served.require_model(name)
        return json_response(_model(served, name))

    anything = {JSON: ANYTHING}

    def one_model(served: ServedModel) -> Operation:
        return Operation(
            "One model.",
            ModelEntry,
            (*BUNDLE_ERRORS, 404),
            parameters=(path_parameter("model", one_of(served.names)),),
        )

    return [
        ApiRoute("/livez", livez, Operation("True as long as the process answers.", anything, ())),
        ApiRoute("/readyz", readyz, Operation("True if requests should be sent here.", anything, (503,))),
        ApiRoute("/health", readyz, Operation("/readyz, as clients of other servers call it.", anything, (503,))),
        ApiRoute("/metrics", metrics, Operation("Counters for Prometheus.", {"text/plain": TEXT}, KEY_ERRORS)),
        ApiRoute("/info", info, Operation("Modalities, tokens, spaces, recall by k, limits.", anything)),
        ApiRoute("/v1/models", models, Operation("What is served.", ModelList)),
        ApiRoute("/v1/models/{model:path}", model, one_model),
    ]


def _model(served: ServedModel, name: str) -> ModelEntry:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "fluxtalk",
        "revision": served.revision,
    }


def _prompts(model: ServedModel, modality: str) -> dict[str, Any]:
    settings = model.manifest.modalities[modality].preprocess
    return {name: settings[name] for name in ("prompts", "default_prompt_name") if name in settings}


def _curve(model: ServedModel) -> dict[str, Any] | None:
    """Describe the curve from which a search with limits chooses its k; None if the export measured none."""
    curve = model.manifest.precisions[model.precision].serving_curve
    if curve is None:
        return None
    latency = {m: {str(k): ms for k, ms in by_k.items()} for m, by_k in curve.latency_ms.items()}
    return {**curve.recall.to_dict(), "latency_ms": latency, "latency_of": curve.latency_of}


def _tei_info(service: Service) -> dict[str, Any]:
    """Describe the server as Text Embeddings Inference does, for its clients."""
    dispatcher, settings = service.require_dispatcher(), service.settings
    model = dispatcher.model
    texts = [dispatcher.preprocess(m) for m, kind in model.kinds.items() if kind == "text"]
    max_tokens = max((p.max_length for p in texts if isinstance(p, TextPreprocessor)), default=0)
    return {
        "model_id": model.name,
        "model_sha": model.revision,
        "model_dtype": {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(model.precision, model.precision),
        "model_type": {"embedding": {"pooling": model.layout.summary}},
        "max_concurrent_requests": settings.queue,
        "max_input_length": max_tokens,
        "max_batch_tokens": max_tokens * dispatcher.max_batch_items,
        "max_batch_requests": dispatcher.max_batch_items,
        "max_client_batch_size": model.max_items,
        "auto_truncate": True,
        "tokenization_workers": dispatcher.decode_pool.num_threads,
        "version": importlib.metadata.version("fluxtalk"),
        "sha": None,
        "docker_label": None,
    }


def _info(service: Service) -> dict[str, Any]:
    dispatcher, settings = service.require_dispatcher(), service.settings
    model = dispatcher.model
    return {
        **_tei_info(service),
        "model": model.name,
        "models": list(model.names),
        "revision": model.revision,
        "precision": model.precision,
        "backend_reason": dispatcher.reason,
        "verified": service.verification is None or service.verification.done,
        "num_register_tokens": model.layout.num_register_tokens,
        "num_overlapping_tokens": model.layout.num_overlapping_tokens,
        "dimension": model.layout.dim,
        "summary": model.layout.summary,
        "modalities": {
            m: {"kind": kind, "engine": dispatcher.sessions()[m], **_prompts(model, m)}
            for m, kind in model.kinds.items()
        },
        "outputs": {
            name: {"space_id": model.manifest.space_id(name), "dimensions": sorted(model.layout.dimensions(name))}
            for name in OUTPUT_KINDS
            if model.layout.selections(name)
        },
        "curve": _curve(model),
        "embedding_types": list(EMBEDDING_TYPES),
        "throughput": dispatcher.throughput(),
        "limits": {
            "items": model.max_items,
            "body_bytes": settings.max_body_bytes,
            "memory_bytes": settings.memory,
            "seconds": settings.timeout_s,
            "queued_items": settings.queue,
            "batch_items": dispatcher.max_batch_items,
        },
    }
