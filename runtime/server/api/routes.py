"""The routes that embed, and the ways in which their bodies are written.

To add a way of writing `/v1/embeddings`, add a `Dialect`; a body that is not JSON gets a reader in
`_BODY_TYPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fluxtalk.runtime.server.answering import Respond, answer_embedding, body_reader
from fluxtalk.runtime.server.api import chat, cohere, forms, jina, openai_embeddings, tei, voyage
from fluxtalk.runtime.server.api.answers import EmbeddingsAnswer, write_answer
from fluxtalk.runtime.server.api.named_items import PICTURE, item_schemas
from fluxtalk.runtime.server.api.options import AnswerForm, EmbeddingOptions
from fluxtalk.runtime.server.execution.requests import EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import TEI_PATHS, json_response
from fluxtalk.runtime.server.http.json_body import convert, decode_json
from fluxtalk.runtime.server.operation import BODY_ERRORS, FILE, JSON, TIMEOUT, ApiRoute, Operation, exactly_one
from fluxtalk.runtime.server.service import Service

ReadEmbeddingBody = Callable[[bytes, str, Iterable[tuple[str, str]], ServedModel], tuple[EmbedRequest, AnswerForm]]
"""Reads a body, given its whole ``Content-Type``, the fields of the query, and the served model. Raises `ApiError`."""


@dataclass(frozen=True)
class Dialect:
    """One way to write a JSON body of `/v1/embeddings`."""

    body: type[EmbeddingOptions]
    matches: Callable[[dict[str, Any]], bool]
    """True if a body is written in it."""
    read: Callable[[Any, ServedModel], tuple[EmbedRequest, AnswerForm]]
    """Makes a body the typed request. Raises `ApiError`. Decodes no item: that is done in threads."""


DIALECTS = (
    Dialect(chat.ChatRequest, chat.matches, chat.read),
    Dialect(jina.JinaRequest, jina.matches, jina.read),
    Dialect(voyage.VoyageRequest, voyage.matches, voyage.read),
)
"""Dialects beside OpenAI's; the first that matches a body reads it."""


def read_json_body(
    data: bytes, _content_type: str, query: Iterable[tuple[str, str]], model: ServedModel
) -> tuple[EmbedRequest, AnswerForm]:
    """Read a JSON body in the dialect that it is written in.

    Raises:
        ApiError: 400 or 404, with the field at fault.
    """
    forms.refuse_options(query)
    body = decode_json(data)
    for dialect in DIALECTS:
        if dialect.matches(body):
            return dialect.read(convert(body, dialect.body), model)
    return openai_embeddings.read(convert(body, openai_embeddings.OpenAIRequest), model)


_BODY_TYPES: dict[str, ReadEmbeddingBody] = {
    JSON: read_json_body,
    "multipart/form-data": forms.read_form,
    "image/*": forms.read_file,
    "audio/*": forms.read_file,
}


def embedding_routes(service: Service) -> list[ApiRoute]:
    """Make ``/v1/embeddings``, Cohere's ``/v2/embed``, and ``/embed`` of Text Embeddings Inference."""

    async def embeddings(request: Request) -> Response:
        service.require_dispatcher()
        read_body = body_reader(request, _BODY_TYPES)  # refused before its body is read

        def read(data: bytes, model: ServedModel) -> tuple[EmbedRequest, Respond]:
            content_type = request.headers.get("content-type", "")
            typed, form = read_body(data, content_type, request.query_params.multi_items(), model)
            return typed, lambda answer: json_response(write_answer(answer, form, model))

        return await answer_embedding(request, service, read)

    async def embed(request: Request) -> Response:
        service.require_dispatcher()
        body_reader(request, {JSON: None})

        def read(data: bytes, model: ServedModel) -> tuple[EmbedRequest, Respond]:
            forms.refuse_options(request.query_params.multi_items())
            body = convert(decode_json(data), cohere.CohereRequest)
            types = body.embedding_types
            return cohere.read(body, model), lambda answer: json_response(cohere.write_answer(answer, types, model))

        return await answer_embedding(request, service, read)

    async def embed_texts(request: Request) -> Response:
        service.require_dispatcher()
        body_reader(request, {JSON: None})

        def read(data: bytes, model: ServedModel) -> tuple[EmbedRequest, Respond]:
            forms.refuse_options(request.query_params.multi_items())
            body = convert(decode_json(data), tei.TeiRequest)
            return tei.read(body, model), lambda answer: json_response(tei.write_answer(answer))

        return await answer_embedding(request, service, read)

    return [
        ApiRoute("/v1/embeddings", embeddings, _embeddings_operation, "POST"),
        ApiRoute("/v2/embed", embed, _embed_operation, "POST"),
        *(ApiRoute(path, embed_texts, _embed_texts_operation, "POST") for path in TEI_PATHS),
    ]


def _embeddings_operation(model: ServedModel) -> Operation:
    options = [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in forms.option_schemas(model).items()
    ]
    return Operation(
        "Embed items. The query is read with `image/*` and `audio/*` bodies only.",
        EmbeddingsAnswer,
        (*BODY_ERRORS, 404),
        {
            JSON: (openai_embeddings.OpenAIRequest, *(dialect.body for dialect in DIALECTS)),
            "multipart/form-data": forms.form_schema(model),
            "image/*": FILE,
            "audio/*": FILE,
        },
        (TIMEOUT, *options),
        examples=_examples(model),
        schemas={
            **item_schemas(model),
            **chat.element_schemas(),
            "ChatRequest": exactly_one(("messages", "input")),
        },
    )


def _embed_operation(_model: ServedModel) -> Operation:
    return Operation(
        "Embed items, in Cohere's dialect.",
        cohere.CohereAnswer,
        (*BODY_ERRORS, 404),
        {JSON: cohere.CohereRequest},
        (TIMEOUT,),
        schemas={"CohereRequest": exactly_one(cohere.SOURCES)},
    )


def _embed_texts_operation(_model: ServedModel) -> Operation:
    vectors = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    return Operation(
        "Embed texts, in the dialect of Text Embeddings Inference.",
        {JSON: vectors},
        BODY_ERRORS,
        {JSON: tei.TeiRequest},
        (TIMEOUT,),
        error="TeiError",
    )


def _examples(model: ServedModel) -> dict[str, Any]:
    kinds = list(model.kinds.values())
    examples: dict[str, Any] = {}
    if kinds.count("text") == 1:
        examples["texts"] = {"value": {"input": ["a cat", "a dog"], "encoding_format": "base64"}}
    if kinds.count("image") == 1:
        url = f"data:image/png;base64,{PICTURE}"
        examples["jina"] = {"value": {"input": [{"image": PICTURE}], "k": 1}}
        examples["infinity"] = {"value": {"input": [url], "modality": "image"}}
        part = {"type": "image_url", "image_url": {"url": url}}
        examples["chat"] = {"value": {"messages": [{"role": "user", "content": [part]}]}}
    return examples
