"""The OpenAPI description of `/v1/embeddings` and `/v2/embed`: one schema for each dialect."""

from __future__ import annotations

from typing import Any

from fluxtalk.runtime.server.api import chat, cohere, jina
from fluxtalk.runtime.server.api.openai_embeddings import EMBEDDING_TYPES, ENCODINGS, FIELDS
from fluxtalk.runtime.server.api.openapi_parts import (
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
    ref,
    timeout_header,
)
from fluxtalk.runtime.server.execution.served_model import Catalog
from fluxtalk.runtime.server.http.multipart import OPTIONS
from fluxtalk.tokens import OUTPUT_KINDS

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAF0lEQVR42mNkYIEARgUog4UUBuMDKAMAR1gCmCOa8dUAAAAASUVORK5CYII="
"""An image of 8 x 8 pixels, for examples."""


def embedding_paths(catalog: Catalog) -> Paths:
    """Both routes."""
    errors = (*OF_BODY, 404)
    names = ("OpenAIRequest", "JinaRequest", "ChatRequest")
    of_json = json_content({"anyOf": [ref(name) for name in names]}, examples=_examples(catalog))
    options = [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in _form_options(catalog).items()
    ]
    file: Schema = {"type": "string", "format": "binary"}
    bodies: dict[str, Any] = {
        **of_json,
        "multipart/form-data": {"schema": _form(catalog)},
        "image/*": {"schema": file},
        "audio/*": {"schema": file},
    }
    return {
        "/v1/embeddings": {
            "post": {
                **operation(
                    "Embed items. The query is read with `image/*` and `audio/*` bodies only.",
                    json_content(ref("EmbeddingsAnswer")),
                    errors,
                    bodies,
                    [timeout_header(), *options],
                )
            }
        },
        "/v2/embed": {
            "post": operation(
                "Embed items, in Cohere's dialect.",
                json_content(ref("CohereAnswer")),
                errors,
                json_content(ref("CohereRequest")),
                [timeout_header()],
            )
        },
    }


def embedding_schemas(catalog: Catalog) -> dict[str, Schema]:
    """What those routes refer to."""
    common = _common(catalog)
    message = closed({"role": one_of(["user"]), "content": ref("Content")}, ("role", "content"))
    element = {"anyOf": [TEXT, ref("ContentPart"), closed({"content": ref("Content")}, ("content",))]}
    item = {"anyOf": [TEXT, *(closed({name: schema}, (name,)) for name, schema in _named(catalog).items())]}
    number_of_items = {"minItems": 1, "maxItems": catalog.max_items}
    own = {name: common[name] for name in FIELDS if name != "input"}
    openai = {**own, "input": {"anyOf": [TEXT, listed(COUNT, minItems=1), _items(catalog)]}}
    of_jina = {
        **own,
        "input": {"anyOf": [TEXT, listed(item, **number_of_items)]},
        "embedding_type": maybe({"anyOf": [one_of(jina.EMBEDDING_TYPES), listed(one_of(jina.EMBEDDING_TYPES))]}),
        "task": maybe(TEXT),
        "normalized": maybe({"type": "boolean", "enum": [True]}),
        "truncate": maybe({"type": "boolean", "enum": [True]}),
        "late_chunking": maybe({"type": "boolean", "enum": [False]}),
    }
    of_chat = {
        **{name: common[name] for name in chat.FIELDS if name in common},
        "input": listed(element, **number_of_items),
        "messages": listed(message, **number_of_items),
    }
    of_cohere = {
        "model": common["model"],
        "input_type": maybe(one_of(cohere.INPUT_TYPES)),
        "texts": listed(TEXT, **number_of_items),
        "images": listed(_file_text(), **number_of_items),
        "inputs": listed(closed({"content": ref("Content")}, ("content",)), **number_of_items),
        "embedding_types": maybe(listed(one_of(cohere.EMBEDDING_TYPES), minItems=1)),
        "output_dimension": common["dimensions"],
        "truncate": maybe(one_of(["END"])),
        "tokens": common["tokens"],
        "output": maybe(one_of(cohere.OUTPUTS)),
    }
    return {
        "OpenAIRequest": closed(openai, ("input",)),
        "JinaRequest": closed(of_jina, ("input",)),
        "ChatRequest": {
            **closed(of_chat),
            "oneOf": [{"required": ["messages"]}, {"required": ["input"]}],
        },
        "CohereRequest": {
            **closed(of_cohere),
            "oneOf": [{"required": [source]} for source in cohere.SOURCES],
        },
        "ContentPart": {
            "anyOf": [
                closed({"type": one_of(["text"]), "text": TEXT}, ("type", "text")),
                closed(
                    {"type": one_of(["image_url"]), "image_url": {"anyOf": [_file_text(), _image_url()]}},
                    ("type", "image_url"),
                ),
            ]
        },
        "Content": {"anyOf": [TEXT, listed(ref("ContentPart"), minItems=1, maxItems=1)]},
        "EmbeddingsAnswer": _answer(),
        "CohereAnswer": opened(
            {
                "id": TEXT,
                "embeddings": {"type": "object", "additionalProperties": listed(_vector())},
                "response_type": one_of(["embeddings_by_type"]),
                "meta": {"type": "object"},
                "model": TEXT,
                **_described(),
            }
        ),
    }


def _common(catalog: Catalog) -> dict[str, Schema]:
    manifest = catalog.manifest
    sizes = [manifest.dim * count for count in range(1, manifest.num_overlapping_tokens + 1)]
    return {
        "model": maybe(one_of([catalog.model])),
        "encoding_format": maybe(one_of(ENCODINGS)),
        "dimensions": maybe({"type": "integer", "enum": sizes}),
        "user": maybe(TEXT),
        "modality": maybe(one_of(_names(catalog))),
        "tokens": maybe({"type": "integer", "minimum": 1, "maximum": manifest.num_register_tokens}),
        "output": maybe(one_of(OUTPUT_KINDS)),
        "embedding_types": maybe(listed(one_of(EMBEDDING_TYPES))),
    }


def _names(catalog: Catalog) -> list[str]:
    """What a request may call a modality: its name, or its kind where no other has it."""
    kinds = list(catalog.kinds.values())
    return list(dict.fromkeys([*catalog.kinds, *(kind for kind in kinds if kinds.count(kind) == 1)]))


def _named(catalog: Catalog) -> dict[str, Schema]:
    """Each of those names, and what an item of it is in JSON."""
    schemas = {
        "text": {"anyOf": [TEXT, listed(COUNT, minItems=1)]},
        "features": {"anyOf": [_file_text(), listed(NUMBER, minItems=1), listed(listed(NUMBER), minItems=1)]},
    }
    return {name: schemas.get(catalog.kinds.get(name, name), _file_text()) for name in _names(catalog)}


def _items(catalog: Catalog) -> Schema:
    """A list of items of one modality."""
    item = {"anyOf": [TEXT, listed(COUNT, minItems=1)]}
    if "features" in catalog.kinds.values():
        item["anyOf"].append(listed(listed(NUMBER), minItems=1))
    return listed(item, minItems=1, maxItems=catalog.max_items)


def _file_text() -> Schema:
    return {
        "type": "string",
        "description": "A file in base64 or as a data: URL; with --allow_url, an https URL of such a host.",
        "examples": [PICTURE, f"data:image/png;base64,{PICTURE}"],
    }


def _image_url() -> Schema:
    return closed({"url": _file_text(), "detail": maybe(TEXT)}, ("url",))


def _form_options(catalog: Catalog) -> dict[str, Schema]:
    """Of a form or a query, where everything is a text."""
    common = _common(catalog)
    plain = {name: common[name]["anyOf"][0] for name in OPTIONS}
    return {**plain, "embedding_types": listed(one_of(EMBEDDING_TYPES), minItems=1)}


def _form(catalog: Catalog) -> Schema:
    items = {
        name: TEXT if catalog.kinds.get(name, name) == "text" else {"type": "string", "format": "binary"}
        for name in _names(catalog)
    }
    return {**closed({**_form_options(catalog), **items}), "minProperties": 1}


def _vector() -> Schema:
    return {"anyOf": [listed(NUMBER), listed(listed(NUMBER)), TEXT]}


def _described() -> dict[str, Schema]:
    return {"k": COUNT, "output": one_of(OUTPUT_KINDS), "dimension": COUNT, "revision": TEXT, "space_id": TEXT}


def _answer() -> Schema:
    item = opened(
        {
            "object": one_of(["embedding"]),
            "index": COUNT,
            "embedding": _vector(),
            "embeddings": {"type": "object", "additionalProperties": _vector()},
            "shape": listed(COUNT, minItems=2, maxItems=2),
        },
        ("object", "index", "embedding"),
    )
    return opened(
        {
            "object": one_of(["list"]),
            "data": listed(item, minItems=1),
            "model": TEXT,
            "usage": opened({"prompt_tokens": COUNT, "total_tokens": COUNT}),
            **_described(),
        }
    )


def _examples(catalog: Catalog) -> dict[str, Any]:
    kinds = list(catalog.kinds.values())
    examples: dict[str, Any] = {}
    if kinds.count("text") == 1:
        examples["texts"] = {"value": {"input": ["a cat", "a dog"], "encoding_format": "base64"}}
    if kinds.count("image") == 1:
        url = f"data:image/png;base64,{PICTURE}"
        examples["jina"] = {"value": {"input": [{"image": PICTURE}], "tokens": 1}}
        examples["infinity"] = {"value": {"input": [url], "modality": "image"}}
        part = {"type": "image_url", "image_url": {"url": url}}
        examples["chat"] = {"value": {"messages": [{"role": "user", "content": [part]}]}}
    return examples
