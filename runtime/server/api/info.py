"""What a server says about itself: health, metrics, models, limits."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxtalk.runtime.server.api.openai_embeddings import EMBEDDING_TYPES
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import error_body, json_response
from fluxtalk.runtime.server.metrics import CONTENT_TYPE
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import OUTPUT_KINDS


def fact_routes(service: Service) -> list[Route]:
    """``/livez``, ``/readyz``, ``/metrics``, ``/info``, ``/v1/models``."""

    async def livez(_request: Request) -> Response:
        return json_response({"alive": True})

    async def readyz(_request: Request) -> Response:
        why_not = service.why_not_ready
        if why_not is None:
            return json_response({"ready": True})
        return json_response({"ready": False, **error_body(503, f"Not ready: {why_not}.", "not_ready")}, 503)

    async def metrics(_request: Request) -> Response:
        service.metrics.ready.set(service.why_not_ready is None)
        return Response(service.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def info(_request: Request) -> Response:
        return json_response(_info(service))

    async def models(_request: Request) -> Response:
        return json_response({"object": "list", "data": [_model(service.require_engine().catalog)]})

    async def model(request: Request) -> Response:
        catalog = service.require_engine().catalog
        catalog.require_model(request.path_params["model"])
        return json_response(_model(catalog))

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/info", info),
        Route("/v1/models", models),
        Route("/v1/models/{model}", model),
    ]


def _model(catalog: Catalog) -> dict[str, Any]:
    return {
        "id": catalog.model,
        "object": "model",
        "created": catalog.created,
        "owned_by": "fluxtalk",
        "revision": catalog.revision,
    }


def _info(service: Service) -> dict[str, Any]:
    engine, settings = service.require_engine(), service.settings
    catalog = engine.catalog
    manifest = catalog.manifest
    outputs = [
        name
        for name in OUTPUT_KINDS
        if name != "complementary" or manifest.num_register_tokens > manifest.num_overlapping_tokens
    ]
    return {
        "model": catalog.model,
        "revision": catalog.revision,
        "precision": catalog.precision,
        "version": importlib.metadata.version("fluxtalk"),
        "num_register_tokens": manifest.num_register_tokens,
        "num_overlapping_tokens": manifest.num_overlapping_tokens,
        "dimension": manifest.dim,
        "modalities": {m: {"kind": kind, "engine": engine.sessions()[m]} for m, kind in catalog.kinds.items()},
        "outputs": {name: {"space_id": catalog.space_id(name)} for name in outputs},
        "embedding_types": list(EMBEDDING_TYPES),
        "limits": {
            "items": catalog.max_items,
            "body_bytes": settings.max_body_bytes,
            "seconds": settings.timeout_s,
            "queued_items": settings.queue,
            "batch_items": engine.max_batch_items,
        },
    }
