"""Routes with their OpenAPI descriptions: each room declares them beside its handlers, `openapi` puts them together.

A body or an answer is described by its type (a `msgspec.Struct`, a ``TypedDict``), from which the schema is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta
from starlette.routing import Route

from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.tokens import SHARED_KINDS

Schema = dict[str, Any]
MediaTypes = Mapping[str, Any]
"""Media type to its content: a type, several of which one is sent, or a ready schema."""
Count = Annotated[int, Meta(ge=0)]

JSON = "application/json"
TEXT: Schema = {"type": "string"}
FILE: Schema = {"type": "string", "format": "binary"}
ANYTHING: Schema = {"type": "object"}

KEY_ERRORS = (401, 421)
"""Errors of every route that needs a key."""
BUNDLE_ERRORS = (*KEY_ERRORS, 503)
"""Errors of every route that needs a key and a bundle."""
BODY_ERRORS = (400, *BUNDLE_ERRORS, 408, 413, 415, 422, 429, 500, 504)
"""Errors of every route with items in its body."""

TIMEOUT: Schema = {
    "name": "X-Request-Timeout",
    "in": "header",
    "required": False,
    "description": "Seconds that this request may take, if fewer than the server allows.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class ErrorDetail(TypedDict):
    """Error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class Error(TypedDict):
    """Answer of a route that cannot give the one asked for."""

    error: ErrorDetail


class KServeError(TypedDict):
    """Error as the clients of KServe's protocol read it."""

    error: str


class TeiError(TypedDict):
    """Error as the clients of Text Embeddings Inference read it."""

    error: str
    error_type: str


@dataclass(frozen=True)
class Operation:
    """Description of one method of one path."""

    summary: str
    answer: Any
    """Type of a JSON answer, or `MediaTypes`."""
    errors: tuple[int, ...] = BUNDLE_ERRORS
    body: MediaTypes | None = None
    parameters: tuple[Schema, ...] = ()
    error: Literal["Error", "KServeError", "TeiError"] = "Error"
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Examples of a JSON body, by name."""
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    """Facts of this bundle that types cannot say, by the name of a schema: keys to add to it, or the schema itself."""


class ApiRoute(Route):
    """Route that describes itself.

    Args:
        path: with its parameters in braces.
        endpoint: handler.
        operation: description, or a function that describes the route for a bundle.
        method: the HTTP method.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        operation: Operation | Callable[[ServedModel], Operation],
        method: str = "GET",
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method = method.lower()
        self._operation = operation

    def describe(self, model: ServedModel) -> Operation:
        """Describe the route for a bundle."""
        return self._operation if isinstance(self._operation, Operation) else self._operation(model)


def schemas_of(*types: type) -> dict[str, Schema]:
    """Generate the schemas of types, by name, and of all that they refer to."""
    return msgspec.json.schema_components(types, ref_template=ref("{name}")["$ref"])[1]


def narrow(schemas: Mapping[str, Schema], model: ServedModel) -> None:
    """Add a bundle's limits to the fields of bodies that have them."""
    layout = model.layout
    sizes = sorted({size for output in SHARED_KINDS for size in layout.dimensions(output)})
    prompts = list(dict.fromkeys(name for modality in model.kinds for name in model.prompts(modality)))
    k = ("integer", {"minimum": 1, "maximum": layout.num_register_tokens})
    items = ("array", {"minItems": 1, "maxItems": model.max_items})
    limits: dict[str, tuple[str, Schema]] = {
        **dict.fromkeys(("k", "tokens", "item_k"), k),
        **dict.fromkeys(("input", "messages", "texts", "images", "inputs"), items),
        **dict.fromkeys(("dimensions", "output_dimension"), ("integer", {"enum": sizes})),
        "model": ("string", {"enum": list(model.names)}),
        "prompt_name": ("string", {"enum": prompts}),
        "modality": ("string", {"enum": model.modality_names()}),
    }
    for schema in schemas.values():
        if schema.get("additionalProperties") is not False:
            continue  # not a body
        if not prompts and "prompt_name" in schema["properties"]:
            schema["properties"]["prompt_name"] = {"anyOf": [{"type": "null"}], "description": "there are no prompts"}
        for name, described in schema["properties"].items():
            wanted, more = limits.get(name, ("", {}))
            for branch in described.get("anyOf", [described]):
                if branch.get("type") == wanted:
                    branch.update(more)


def ref(name: str) -> Schema:
    """Refer to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def one_of(values: Iterable[str]) -> Schema:
    """Describe a choice."""
    return {"type": "string", "enum": list(values)}


def exactly_one(names: Iterable[str]) -> Schema:
    """Describe an object that must have one of some fields."""
    return {"oneOf": [{"required": [name]} for name in names] or [False]}


def path_parameter(name: str, schema: Schema) -> Schema:
    """Describe a part of a path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}
