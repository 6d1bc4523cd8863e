"""Search over HTTP.

::

    POST /v1/search                        {"text": ... or "image": base64, "index", "n", "k", "how"}; or such a form
    GET  /v1/indexes                       what can be searched
    GET  /v1/indexes/{name}/items/{row}    a small picture of an indexed image, with --serve_items

The field that holds the query is called like its modality.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxtalk.runtime.server.api.dialects import Body
from fluxtalk.runtime.server.execution.requests import Item
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.search.indexes import ServedIndex, require_index
from fluxtalk.runtime.server.search.item_request import embed_one, read_integer, read_item, read_k, with_body
from fluxtalk.runtime.server.search.thumbnails import thumbnail
from fluxtalk.runtime.server.service import Service

OPTIONS = ("index", "n", "k", "how")
MAX_ANSWERS = 1000
THUMBNAIL_SIDE = 256
_DEFAULT_ANSWERS = 10


@dataclass(frozen=True)
class SearchRequest:
    """A query, and where and how to look for it."""

    item: Item
    index: ServedIndex
    how: str
    k: int
    n: int


def read_search(body: Body, catalog: Catalog, indexes: dict[str, ServedIndex]) -> SearchRequest:
    """A parsed body to a typed request.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    item = read_item(body, OPTIONS, list(catalog.kinds))
    index = require_index(indexes, body.get("index"))
    how = body.get("how")
    how = index.ways[0] if how is None else how
    if how not in index.ways:
        shown = repr(how[:80]) if isinstance(how, str) else type(how).__name__
        raise bad_request(f"The index {index.name} is searched by how = {' or '.join(index.ways)}; got {shown}.", "how")
    k = read_k(body, index.default_k, catalog)
    index.require_k(k)
    return SearchRequest(item, index, how, k, read_integer(body, "n", _DEFAULT_ANSWERS, MAX_ANSWERS))


def search_routes(service: Service) -> list[Route]:
    """``/v1/search``, ``/v1/indexes``, and the pictures of their items."""
    # One picture is decoded at a time: a page full of them must not keep requests from their threads.
    decoding = asyncio.Semaphore(1)

    async def search(request: Request) -> Response:
        async def work(body: Body, deadline: float) -> Response:
            engine = service.require_engine()
            asked = read_search(body, engine.catalog, service.indexes)
            return json_response(await _search(service, asked, deadline))

        return await with_body(request, service, work)

    async def indexes(_request: Request) -> Response:
        service.require_engine()
        shown = [describe_index(index, service.settings.serve_items) for index in service.indexes.values()]
        return json_response({"object": "list", "data": shown})

    async def item(request: Request) -> Response:
        path = _image_path(service, request.path_params["name"], request.path_params["row"])
        pool = service.require_engine().preparation.pool
        try:
            async with asyncio.timeout(service.settings.timeout_s), decoding:
                work = asyncio.get_running_loop().run_in_executor(pool, thumbnail, path, THUMBNAIL_SIDE)
                content, media_type = await work
        except TimeoutError:
            raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded") from None
        headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
        return Response(content, headers=headers, media_type=media_type)

    return [
        Route("/v1/search", search, methods=["POST"]),
        Route("/v1/indexes", indexes),
        Route("/v1/indexes/{name}/items/{row:int}", item),
    ]


def describe_index(index: ServedIndex, serve_items: bool) -> dict[str, Any]:
    """What ``/v1/indexes`` says of one.

    Args:
        serve_items: whether the server gives out indexed images.
    """
    manifest = index.manifest
    return {
        "name": index.name,
        "modality": manifest.modality,
        "kind": index.kind,
        "output": manifest.output,
        "k": manifest.k,
        "dtype": manifest.dtype,
        "dimension": manifest.dim,
        "items": manifest.items,
        "bytes_per_item": manifest.bytes_per_item,
        "how": list(index.ways),
        "space_id": manifest.space_id,
        "has_pictures": serve_items and index.kind == "image",
    }


async def _search(service: Service, asked: SearchRequest, deadline: float) -> dict[str, Any]:
    engine = service.require_engine()
    index = asked.index
    wanted = engine.catalog.request([asked.item], asked.k, index.output(asked.how))
    begin = time.perf_counter()
    answer = await embed_one(engine, wanted, deadline)
    embedded = time.perf_counter()
    rows, scores = await asyncio.get_running_loop().run_in_executor(
        engine.preparation.pool, index.search, answer.vectors[0], asked.how, asked.k, asked.n
    )
    found = time.perf_counter()
    return {
        "object": "list",
        "data": [
            {"object": "hit", "row": row, "item": index.items[row], "score": float(score)}
            for row, score in zip(rows, scores, strict=True)
        ],
        "index": index.name,
        "modality": index.manifest.modality,
        "model": engine.catalog.model,
        "how": asked.how,
        "k": asked.k,
        "tokens_compared": index.tokens_compared(asked.how, asked.k),
        "bytes_per_item": index.bytes_per_item(asked.how, asked.k),
        "milliseconds": {
            "embed": round(1000 * (embedded - begin), 3),
            "search": round(1000 * (found - embedded), 3),
        },
        "revision": engine.catalog.revision,
        "space_id": index.manifest.space_id,
    }


def _image_path(service: Service, name: str, row: int) -> Path:
    """The file of an indexed image.

    Raises:
        ApiError: 403 where the server does not give out files, 404 where the index lists no such image.
    """
    service.require_engine()
    if not service.settings.serve_items:
        raise ApiError(
            403, "This server does not give out indexed files; start it with --serve_items.", "items_not_served"
        )
    index = require_index(service.indexes, name)
    if index.kind != "image" or row >= len(index.items):
        raise ApiError(404, f"The index {index.name} has no image {row}.", "item_not_found")
    return index.item_path(row)
