"""`POST /v1/attention`: the places of an image at which each register looks.

::

    {"image": base64, "k": 4}, or a form with a file

The field is called like its modality.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.runtime.server.answering import answer_body
from fluxtalk.runtime.server.execution.admission import Caller
from fluxtalk.runtime.server.execution.dispatcher import Dispatcher
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request, json_response
from fluxtalk.runtime.server.operation import BODY_ERRORS, TIMEOUT, ApiRoute, Count, Operation
from fluxtalk.runtime.server.search.item_body import READERS, ItemOptions, embed_item, item_body, read_item
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import ATTENTION

_MOST_OTHERS = 16
"""Features before the grid, at most."""


class AttentionOptions(ItemOptions):
    """Body, beside its image."""


class AttentionAnswer(TypedDict):
    """Attention over an image."""

    object: Literal["attention"]
    model: str
    modality: str
    k: Count
    length: Count
    grid: Annotated[list[Count], Meta(min_length=2, max_length=2)] | None
    before_grid: Count | None
    image: dict[str, Any]
    attention: Any
    """Weights, (k, length)."""
    revision: str


def attention_route(service: Service) -> ApiRoute:
    """Make ``/v1/attention``."""

    async def attention(request: Request) -> Response:
        async def work(body: tuple[dict[str, Any], bool], deadline: float, caller: Caller) -> Response:
            return json_response(await _attention(service.require_dispatcher(), *body, deadline, caller))

        return await answer_body(request, service, READERS, work)

    def operation(model: ServedModel) -> Operation:
        body, schemas = item_body(AttentionOptions, _images(model))
        summary = "The places of an image at which each register looks."
        return Operation(summary, AttentionAnswer, BODY_ERRORS, body, (TIMEOUT,), schemas=schemas)

    return ApiRoute("/v1/attention", attention, operation, "POST")


def grid_of(length: int, height: int, width: int) -> tuple[int, int] | None:
    """Lay the frozen features of an image over it, which a bundle does not say.

    The grid has the most cells, at most `length`, with the image's proportions; the features before it (a class token,
    register tokens of the encoder) belong to no place.

    Args:
        length: number of features.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        rows and columns; None if no grid fits.
    """
    for cells in range(length, max(0, length - _MOST_OTHERS - 1), -1):
        rows = round((cells * height / width) ** 0.5)
        if rows and cells % rows == 0 and rows * width == cells // rows * height:
            return rows, cells // rows
    return None


async def _attention(
    dispatcher: Dispatcher, fields: dict[str, Any], strict: bool, deadline: float, caller: Caller
) -> AttentionAnswer:
    model = dispatcher.model
    images = _images(model)
    if not images:
        raise bad_request("This bundle embeds no images, and attention is shown over images.", code="no_image")
    if not model.layout.attention:
        raise bad_request(
            "The bundle was exported without attention; export the run again: fluxtalk-export onnx RUN --attention.",
            code="no_attention",
        )
    item, asked = read_item(fields, strict, AttentionOptions, images)
    answer = await embed_item(dispatcher, item, model.select(asked.k, ATTENTION), deadline, caller)
    weights = answer.vectors[0]
    shape = _image_shape(model.manifest, item.modality)
    grid = grid_of(weights.shape[1], shape["height"], shape["width"])
    return {
        "object": "attention",
        "model": model.name,
        "modality": item.modality,
        "k": answer.selection.k,
        "length": weights.shape[1],
        "grid": None if grid is None else list(grid),
        "before_grid": weights.shape[1] - grid[0] * grid[1] if grid else None,
        "image": shape,
        "attention": weights,
        "revision": model.revision,
    }


def _images(model: ServedModel) -> list[str]:
    return [modality for modality, kind in model.kinds.items() if kind == "image"]


def _image_shape(manifest: Manifest, modality: str) -> dict[str, Any]:
    """Shape of the image that the encoder sees, in pixels, how images get it, and the color under transparency.

    The color is absent if transparency is dropped.
    """
    settings = manifest.modalities[modality].preprocess
    return {name: settings[name] for name in ("height", "width", "resize", "background") if name in settings}
