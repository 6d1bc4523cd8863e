"""`POST /v1/attention`: where each register looks in an image.

::

    {"image": base64, "k": 4}, or a form with a file

The field is called like its modality.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.runtime.server.api.dialects import Body
from fluxtalk.runtime.server.execution.engine import Engine
from fluxtalk.runtime.server.http.errors import bad_request, json_response
from fluxtalk.runtime.server.search.item_request import embed_one, read_item, read_k, with_body
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import ATTENTION

OPTIONS = ("k",)
_MOST_OTHERS = 16


def attention_routes(service: Service) -> list[Route]:
    """``/v1/attention``."""

    async def attention(request: Request) -> Response:
        async def work(body: Body, deadline: float) -> Response:
            return json_response(await _attention(service.require_engine(), body, deadline))

        return await with_body(request, service, work)

    return [Route("/v1/attention", attention, methods=["POST"])]


def grid_of(length: int, height: int, width: int) -> tuple[int, int] | None:
    """How the frozen features of an image lie over it, which a bundle does not say.

    The most cells, at most `length`, that have the image's proportions; what comes before them (a class token,
    register tokens of the encoder) belongs to no place.

    Args:
        length: of the features.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        rows and columns; None where no grid fits.
    """
    for cells in range(length, max(0, length - _MOST_OTHERS - 1), -1):
        rows = round((cells * height / width) ** 0.5)
        if rows and cells % rows == 0 and rows * width == cells // rows * height:
            return rows, cells // rows
    return None


async def _attention(engine: Engine, body: Body, deadline: float) -> dict[str, Any]:
    catalog = engine.catalog
    images = [m for m, kind in catalog.kinds.items() if kind == "image"]
    if not images:
        raise bad_request("This bundle embeds no images, and attention is shown over images.", code="no_image")
    if ATTENTION not in catalog.manifest.outputs:
        raise bad_request(
            "The bundle was exported without attention; export the run again: fluxtalk-export onnx RUN --attention.",
            code="no_attention",
        )
    item = read_item(body, OPTIONS, images)
    request = catalog.request([item], read_k(body, catalog.manifest.num_register_tokens, catalog), "tokens")
    answer = await embed_one(engine, dataclasses.replace(request, output=ATTENTION), deadline)
    weights = answer.vectors[0]
    shape = _image_shape(catalog.manifest, item.modality)
    grid = grid_of(weights.shape[1], shape["height"], shape["width"])
    return {
        "object": "attention",
        "model": catalog.model,
        "modality": item.modality,
        "k": request.k,
        "length": weights.shape[1],
        "grid": grid,
        "before_grid": weights.shape[1] - grid[0] * grid[1] if grid else None,
        "image": shape,
        "attention": weights,
        "revision": catalog.revision,
    }


def _image_shape(manifest: Manifest, modality: str) -> dict[str, Any]:
    """What the encoder sees: pixels, and how images get there (``crop`` or ``squash``)."""
    settings = manifest.modalities[modality].preprocess
    return {name: settings[name] for name in ("height", "width", "resize")}
