"""Search over HTTP.

::

    POST /v1/search                        {"text": ... or "image": base64, "index", "n", "how", "k", "item_k"}
    GET  /v1/indexes                       the indexes
    GET  /v1/indexes/{name}/items/{row}    a small picture of an indexed image below --serve-items

``min_recall``, ``max_bytes`` and ``deadline_ms`` choose k and item_k from the curve that the export measured.

The field that holds the query is called like its modality. A text gets the bundle's prompt for queries, if it has one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from fluxtalk.preprocess import Prompting
from fluxtalk.preprocess.prompts import QUERY
from fluxtalk.runtime.index.limits import Choice, Limits
from fluxtalk.runtime.server.answering import answer_body, in_thread
from fluxtalk.runtime.server.execution.admission import Caller
from fluxtalk.runtime.server.execution.requests import Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError, bad_request, json_response
from fluxtalk.runtime.server.operation import (
    BODY_ERRORS,
    BUNDLE_ERRORS,
    FILE,
    TEXT,
    TIMEOUT,
    ApiRoute,
    Count,
    Operation,
    path_parameter,
)
from fluxtalk.runtime.server.search.indexes import RERANK, Indexes, ServedIndex
from fluxtalk.runtime.server.search.item_body import READERS, ItemOptions, embed_item, item_body, read_item
from fluxtalk.runtime.server.search.thumbnails import thumbnail
from fluxtalk.runtime.server.service import Service
from fluxtalk.tokens import Comparison

MAX_HITS = 1000
THUMBNAIL_SIDE = 256
"""Pixels."""
_DEFAULT_HITS = 10


class SearchOptions(ItemOptions):
    """Body, beside its item."""

    index: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_HITS)] | None = None
    how: str | None = None
    item_k: Annotated[int, Meta(extra_json_schema={"description": "an integer"})] | None = None
    min_recall: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_bytes: Annotated[int, Meta(ge=1)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None


class Hit(TypedDict):
    """Item that was found."""

    object: Literal["hit"]
    row: Count
    item: str
    score: float


class Chosen(TypedDict):
    """Measurements of the export, by which limits chose k and item_k."""

    recall: float
    """Recall on held-out pairs, at ``cutoff``."""
    cutoff: Count
    recall_share: float
    """Share of the recall of all tokens on both sides."""
    embed_ms: float | None
    """Milliseconds of the query in the session, on the export's machine."""


class SearchAnswer(TypedDict):
    """Items that were found, best first."""

    object: Literal["list"]
    data: list[Hit]
    index: str
    modality: str
    model: str
    how: str
    k: Count
    item_k: Count
    chosen: Chosen | None
    tokens_compared: Count
    bytes_per_item: Count
    milliseconds: dict[str, float]
    revision: str
    space_id: str


class IndexList(TypedDict):
    """List of the indexes."""

    object: Literal["list"]
    data: list[dict[str, Any]]


@dataclass(frozen=True)
class SearchRequest:
    """Query, with the index and the way to search it."""

    item: Item
    index: ServedIndex
    how: str
    comparison: Comparison
    choice: Choice | None
    n: int


def read_search(fields: dict[str, Any], strict: bool, model: ServedModel, indexes: Indexes) -> SearchRequest:
    """Make a body the typed request.

    Args:
        strict: see `convert`.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    item, asked = read_item(fields, strict, SearchOptions, model.kinds)
    index = indexes.require(asked.index)
    how = index.ways[0] if asked.how is None else asked.how
    if how not in index.ways:
        ways = " or ".join(index.ways)
        raise bad_request(f"The index {index.name} is searched by how = {ways}; got {how[:80]!r}.", "how")
    limits = Limits(asked.min_recall, asked.max_bytes, asked.deadline_ms)
    comparison, choice = index.compare(how, item.modality, asked.k, asked.item_k, limits)
    return SearchRequest(item, index, how, comparison, choice, asked.n or _DEFAULT_HITS)


def search_routes(service: Service, indexes: Indexes) -> list[ApiRoute]:
    """Make ``/v1/search``, ``/v1/indexes``, and the pictures of their items."""
    # One picture is decoded at a time: a page full of them must not keep requests from their threads.
    decoding = asyncio.Semaphore(1)
    roots = [folder.resolve() for folder in service.settings.serve_items]

    async def search(request: Request) -> Response:
        async def work(body: tuple[dict[str, Any], bool], deadline: float, caller: Caller) -> Response:
            asked = read_search(*body, service.require_dispatcher().model, indexes)
            return json_response(await _search(service, asked, deadline, caller))

        return await answer_body(request, service, READERS, work)

    async def listed(_request: Request) -> Response:
        service.require_dispatcher()
        shown = [describe_index(index, bool(roots)) for index in indexes.by_name.values()]
        answer: IndexList = {"object": "list", "data": shown}
        return json_response(answer)

    async def item(request: Request) -> Response:
        dispatcher = service.require_dispatcher()
        path = _image_path(roots, indexes, request.path_params["name"], request.path_params["row"])
        deadline = time.monotonic() + service.settings.timeout_s
        try:
            async with asyncio.timeout(service.settings.timeout_s), decoding:
                content, media_type = await thumbnail(dispatcher.decode_pool, path, THUMBNAIL_SIDE, deadline)
        except TimeoutError:
            raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded") from None
        headers = {
            "cache-control": "private, max-age=3600",
            "cross-origin-resource-policy": "same-origin",
            "x-content-type-options": "nosniff",
        }
        return Response(content, headers=headers, media_type=media_type)

    return [
        ApiRoute("/v1/search", search, _search_operation, "POST"),
        ApiRoute("/v1/indexes", listed, Operation("What can be searched.", IndexList)),
        ApiRoute("/v1/indexes/{name}/items/{row:int}", item, _ITEM_OPERATION),
    ]


def _search_operation(model: ServedModel) -> Operation:
    body, schemas = item_body(SearchOptions, model.kinds)
    summary = "The items of an index that are nearest to one item."
    return Operation(summary, SearchAnswer, (*BODY_ERRORS, 404), body, (TIMEOUT,), schemas=schemas)


_ITEM_OPERATION = Operation(
    "A small picture of an indexed image.",
    dict.fromkeys(("image/jpeg", "image/png", "image/webp"), FILE),
    (*BUNDLE_ERRORS, 403, 404, 422, 429, 500, 504),
    parameters=(
        path_parameter("name", {**TEXT, "minLength": 1}),
        path_parameter("row", {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}),
    ),
)


def describe_index(index: ServedIndex, serve_items: bool) -> dict[str, Any]:
    """Describe an index for ``/v1/indexes``.

    Args:
        serve_items: True if the server gives out indexed images.
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


async def _search(service: Service, asked: SearchRequest, deadline: float, caller: Caller) -> SearchAnswer:
    dispatcher = service.require_dispatcher()
    index, comparison = asked.index, asked.comparison
    begin = time.perf_counter()
    answer = await embed_item(dispatcher, asked.item, comparison.query, deadline, caller, Prompting(QUERY))
    embedded = time.perf_counter()
    rows, scores = await in_thread(dispatcher, index.search, answer.vectors[0], comparison, asked.n)
    found = time.perf_counter()
    return {
        "object": "list",
        "data": [
            {"object": "hit", "row": row, "item": index.items[row], "score": float(score)}
            for row, score in zip(rows, scores, strict=True)
        ],
        "index": index.name,
        "modality": index.manifest.modality,
        "model": dispatcher.model.name,
        "how": asked.how,
        "k": comparison.query.k,
        "item_k": comparison.item_k,
        "chosen": None if asked.choice is None else _chosen(asked.choice),
        "tokens_compared": comparison.item_tokens if asked.how == RERANK else 1,
        "bytes_per_item": index.bytes_per_item(comparison),
        "milliseconds": {
            "embed": round(1000 * (embedded - begin), 3),
            "search": round(1000 * (found - embedded), 3),
        },
        "revision": dispatcher.model.revision,
        "space_id": index.manifest.space_id,
    }


def _chosen(choice: Choice) -> Chosen:
    return {
        "recall": choice.recall,
        "cutoff": choice.cutoff,
        "recall_share": round(choice.recall_share, 4),
        "embed_ms": choice.embed_ms,
    }


def _image_path(roots: Sequence[Path], indexes: Indexes, name: str, row: int) -> Path:
    """Find the file of an indexed image below one of the folders.

    Raises:
        ApiError: 403 if the server does not give out files, 404 if the index lists no such image below the folders.
    """
    if not roots:
        raise ApiError(
            403, "This server does not give out indexed files; start it with --serve-items DIR.", "items_not_served"
        )
    index = indexes.require(name)
    if index.kind != "image" or row >= len(index.items):
        raise ApiError(404, f"The index {index.name} has no image {row}.", "item_not_found")
    path = index.item_below(row, roots)
    if path is None:
        # The same for a file that is elsewhere and for one that is not there: an index must not ask which exist.
        raise ApiError(404, f"This server gives out no file of the image {row} of {index.name}.", "item_not_found")
    return path
