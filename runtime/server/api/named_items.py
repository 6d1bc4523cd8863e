"""Items that say what they are: ``{"image": ...}``, or a content part of a chat.

Their fields are called like the bundle's modalities, so they are read here, and `item_schemas` describes them.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from fluxtalk.runtime.server.execution.requests import Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.operation import TEXT, Schema, one_of, ref

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAF0lEQVR42mNkYIEARgUog4UUBuMDKAMAR1gCmCOa8dUAAAAASUVORK5CYII="
"""An image of 8 x 8 pixels, for examples."""
FILE_TEXT: Schema = {
    "type": "string",
    "description": "A file in base64 or as a data: URL; with --allow-url, an https URL of such a host.",
    "examples": [PICTURE, f"data:image/png;base64,{PICTURE}"],
}

PlainItem = Annotated[Any, Meta(extra_json_schema=ref("PlainItem"))]
NamedItem = Annotated[Any, Meta(extra_json_schema=ref("NamedItem"))]
ContentPart = Annotated[Any, Meta(extra_json_schema=ref("ContentPart"))]
Content = (
    str
    | Annotated[
        list[ContentPart],
        Meta(
            min_length=1,
            max_length=1,
            extra_json_schema={
                "description": "a list of one part: every item is embedded by itself, so give each part its own "
                "message, or its own element of input"
            },
        ),
    ]
)
"""One item of a chat: a text, or a list of one part, for every item is embedded by itself."""


def item_of_object(value: Any, model: ServedModel, param: str) -> Item:
    """Read an item written as an object of one field, which is called like its modality.

    Raises:
        ApiError: 400.
    """
    if not isinstance(value, dict) or len(value) != 1:
        got = f"{len(value)} fields" if isinstance(value, dict) else type(value).__name__
        raise bad_request(f'{param} must be {{"MODALITY": ITEM}}, with one field; got {got}.', param, "invalid_type")
    ((name, item),) = value.items()
    return model.item(name, item, param)


def item_of_part(part: Any, model: ServedModel, param: str) -> Item:
    """Read an item written as a content part: ``{"type": "text", "text": ...}``, ``{"type": "image_url", ...}``.

    Raises:
        ApiError: 400.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or set(part) != {"type", kind}:
        raise bad_request(
            f'{param} must be {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": '
            '{"url": ...}}, with nothing beside it.',
            param,
            "invalid_type",
        )
    value = part[kind]
    if kind.endswith("_url") and isinstance(value, dict):
        if "url" not in value or set(value) - {"url", "detail"}:
            raise bad_request(f'{param} must have an {kind} of the form {{"url": ...}}.', param, "invalid_type")
        value = value["url"]
    return model.item(kind.removesuffix("_url"), value, param)


def item_of_content(content: str | list[Any], model: ServedModel, param: str) -> Item:
    """Read a `Content`.

    Raises:
        ApiError: 400.
    """
    if isinstance(content, str):
        return model.item(model.default_modality(), content, param)
    return item_of_part(content[0], model, f"{param}[0]")


def item_schemas(model: ServedModel) -> dict[str, Schema]:
    """Describe these items for a bundle."""
    ids: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    vector: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    vectors: Schema = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "minItems": 1}
    by_kind = {"text": {"anyOf": [TEXT, ids]}, "features": {"anyOf": [FILE_TEXT, vector, vectors]}}
    named = [_closed({name: by_kind.get(model.kinds.get(name, name), FILE_TEXT)}) for name in model.modality_names()]
    url = {**_closed({"url": FILE_TEXT}), "properties": {"url": FILE_TEXT, "detail": {"type": ["string", "null"]}}}
    return {
        "PlainItem": {"anyOf": [TEXT, ids, *[vectors] * ("features" in model.kinds.values())]},
        "NamedItem": {"anyOf": [TEXT, *named]},
        "ContentPart": {
            "anyOf": [
                _closed({"type": one_of(["text"]), "text": TEXT}),
                _closed({"type": one_of(["image_url"]), "image_url": {"anyOf": [FILE_TEXT, url]}}),
            ]
        },
    }


def _closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
