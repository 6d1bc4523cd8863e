"""The OpenAPI description of search and attention."""

from __future__ import annotations

from typing import Any

from fluxtalk.runtime.server.api.openapi_parts import (
    ALWAYS,
    COUNT,
    NUMBER,
    OF_BODY,
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
from fluxtalk.runtime.server.search import attention
from fluxtalk.runtime.server.search import routes as search


def search_paths(catalog: Catalog) -> Paths:
    """``/v1/search``, ``/v1/indexes``, ``/v1/attention``."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    row = path_parameter("row", {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1})
    return {
        "/v1/search": {
            "post": operation(
                "The items of an index that are nearest to one item.",
                json_content(ref("SearchAnswer")),
                (*OF_BODY, 404),
                _bodies(_query(catalog, search.OPTIONS)),
                [timeout_header()],
            )
        },
        "/v1/attention": {
            "post": operation(
                "Where each register looks in an image.",
                json_content(ref("AttentionAnswer")),
                OF_BODY,
                _bodies(_query(catalog, attention.OPTIONS, images_only=True)),
                [timeout_header()],
            )
        },
        "/v1/indexes": {"get": operation("What can be searched.", json_content(ref("Indexes")))},
        "/v1/indexes/{name}/items/{row}": {
            "get": operation(
                "A small picture of an indexed image.",
                {"image/jpeg": picture, "image/png": picture, "image/webp": picture},
                (*ALWAYS, 403, 404, 422, 500, 504),
                None,
                [path_parameter("name", {"type": "string", "minLength": 1}), row],
            )
        },
    }


def search_schemas() -> dict[str, Schema]:
    """What those routes refer to."""
    hit = opened({"object": one_of(["hit"]), "row": COUNT, "item": TEXT, "score": NUMBER})
    return {
        "SearchAnswer": opened(
            {
                "object": one_of(["list"]),
                "data": listed(hit),
                "index": TEXT,
                "modality": TEXT,
                "how": TEXT,
                "k": COUNT,
                "bytes_per_item": COUNT,
                "milliseconds": {"type": "object", "additionalProperties": NUMBER},
                "space_id": TEXT,
            }
        ),
        "AttentionAnswer": opened(
            {
                "object": one_of(["attention"]),
                "modality": TEXT,
                "k": COUNT,
                "length": COUNT,
                "grid": maybe(listed(COUNT, minItems=2, maxItems=2)),
                "attention": listed(listed(NUMBER)),
            }
        ),
        "Indexes": opened({"object": one_of(["list"]), "data": listed({"type": "object"})}),
    }


def _bodies(schema: Schema) -> dict[str, Any]:
    return {**json_content(schema), "multipart/form-data": {"schema": schema}}


def _query(catalog: Catalog, options: tuple[str, ...], images_only: bool = False) -> Schema:
    """One item in the field that is called like its modality, and options."""
    of_options = {
        "index": maybe(TEXT),
        "n": maybe({"type": "integer", "minimum": 1, "maximum": search.MAX_ANSWERS}),
        "k": maybe({"type": "integer", "minimum": 1, "maximum": catalog.manifest.num_register_tokens}),
        "how": maybe(TEXT),
    }
    modalities = [m for m, kind in catalog.kinds.items() if kind == "image" or not images_only]
    return {
        **closed({**dict.fromkeys(modalities, TEXT), **{name: of_options[name] for name in options}}),
        "oneOf": [{"required": [modality]} for modality in modalities] or [False],
    }
