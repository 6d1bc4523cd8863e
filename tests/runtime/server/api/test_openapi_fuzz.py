"""The OpenAPI document: it describes what is served, and nothing written after it, or against it, breaks the server."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import time
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from fluxtalk.errors import InputError
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.server.api.chat import ChatRequest
from fluxtalk.runtime.server.api.cohere import CohereRequest
from fluxtalk.runtime.server.api.jina import JinaRequest
from fluxtalk.runtime.server.api.openai_embeddings import OpenAIRequest
from fluxtalk.runtime.server.app import routes
from fluxtalk.runtime.server.execution.decoding import decode
from fluxtalk.runtime.server.http.page_routes import PAGE_FILES
from fluxtalk.runtime.server.kserve.routes import HEADER_LENGTH, InferRequest
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import Process

SECONDS = 25
"""Of all that schemathesis sends, whatever the machine."""
EXAMPLES = 25
"""Of a route with a body, in each mode."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SILENT = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def document(server: Process) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_every_route_is_described_and_no_other(document: dict[str, Any], made: Made) -> None:
    served = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in routes(Service(ServerSettings(made.bundle.folder), lambda: None))
        for method in (route.methods or set()) - {"HEAD"}
        if method != "GET" or route.path not in PAGE_FILES
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == served


def test_requests_have_the_fields_that_are_read(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, fields in [
        ("OpenAIRequest", OpenAIRequest),
        ("JinaRequest", JinaRequest),
        ("ChatRequest", ChatRequest),
        ("CohereRequest", CohereRequest),
        ("InferRequest", InferRequest),
    ]:
        assert set(schemas[name]["properties"]) == set(fields.__struct_fields__)
        assert schemas[name]["additionalProperties"] is False


def test_its_examples_are_answered(document: dict[str, Any], client: httpx.Client) -> None:
    content = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) == 4
    for example in content["examples"].values():
        answer = client.post("/v1/embeddings", json=example["value"])
        assert answer.status_code == 200, answer.text
        assert_is(document, "EmbeddingsAnswer", answer.json())
    for example in document["components"]["schemas"]["InferRequest"]["examples"]:
        answer = client.post("/v2/models/text/infer", json=example)
        assert answer.status_code == 200, answer.text
        assert_is(document, "InferAnswer", answer.json())


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/v1/embeddings", "OpenAIRequest", {"input": "a", "encoding_format": "base64", "user": None}),
        ("/v1/embeddings", "OpenAIRequest", {"input": ["a", "b"], "output": "tokens", "model": None}),
        ("/v1/embeddings", "OpenAIRequest", {"input": ["a"], "output": "concat", "tokens": 2, "dimensions": 96}),
        ("/v1/embeddings", "OpenAIRequest", {"input": "a", "embedding_types": ["int8", "binary"]}),
        ("/v1/embeddings", "JinaRequest", {"input": [{"text": "a"}, "b"], "embedding_type": ["float"], "task": "x"}),
        ("/v1/embeddings", "ChatRequest", {"messages": [{"role": "user", "content": "a"}], "tokens": 1}),
        ("/v1/embeddings", "ChatRequest", {"input": [{"content": "a"}, {"type": "text", "text": "b"}]}),
        ("/v2/embed", "CohereRequest", {"texts": ["a"], "truncate": "END", "input_type": "clustering"}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_answered_is_described(
    document: dict[str, Any], client: httpx.Client, path: str, name: str, body: dict[str, Any]
) -> None:
    assert_is(document, name, body)
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert_is(document, "CohereAnswer" if path == "/v2/embed" else "EmbeddingsAnswer", answer.json())


def assert_is(document: dict[str, Any], name: str, value: Any) -> None:
    """A value is as the document's schema says."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    Draft202012Validator(schema).validate(value)


def described(found: Any) -> Any:
    """An operation that schemathesis understands."""
    return found.ok()


def test_schemathesis_finds_nothing(document: dict[str, Any], server: Process) -> None:
    operations = [described(found) for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert len(operations) == sum(len(methods) for methods in document["paths"].values())
    end = time.monotonic() + SECONDS
    sent = 0
    # The most important first, lest a slow machine leaves it out.
    for operation in sorted(operations, key=lambda o: (o.path != "/v1/embeddings", not o.body)):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not operation.body:
                continue

            @settings(SILENT, max_examples=EXAMPLES if operation.body else 5)
            @given(operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                nonlocal sent
                if time.monotonic() < end:
                    # Of a request that may take no time, 504 is the answer.
                    case.headers.pop("X-Request-Timeout", None)
                    response = case.call(base_url=server.url, timeout=20)
                    case.validate_response(response, checks=CHECKS)
                    sent += 1

            send()
    assert sent >= 2 * EXAMPLES
    with server.client() as client:
        assert client.get("/readyz").status_code == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "video"]), "text": VALUES}) | VALUES
FIELDS = {
    "input": st.lists(PARTS, max_size=3) | VALUES,
    "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": PARTS}), max_size=2) | VALUES,
    **dict.fromkeys({*JinaRequest.__struct_fields__, *ChatRequest.__struct_fields__} - {"input", "messages"}, VALUES),
}
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "input_ids", "mask", "token_index", "image", "pixels"]) | VALUES,
        "datatype": st.sampled_from(["BYTES", "INT64", "BOOL", "UINT8"]) | VALUES,
        "shape": st.lists(st.integers(0, 3), max_size=3) | VALUES,
    },
    optional={"data": VALUES, "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)}) | VALUES},
)
INFER = {
    "inputs": st.lists(TENSOR, max_size=3) | VALUES,
    "outputs": VALUES,
    "parameters": st.fixed_dictionaries({"k": VALUES}) | VALUES,
    "id": VALUES,
}


@SILENT
@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_any_values_in_known_fields(server: Process, body: Any) -> None:
    refused_or_answered(server, "/v1/embeddings", body)


@SILENT
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(CohereRequest.__struct_fields__, VALUES)))
def test_any_values_in_coheres_fields(server: Process, body: Any) -> None:
    refused_or_answered(server, "/v2/embed", body)


@SILENT
@given(st.fixed_dictionaries({}, optional=INFER), st.binary(max_size=40))
def test_any_tensors(server: Process, body: Any, behind: bytes) -> None:
    start = json.dumps(body).encode("utf-8", "surrogatepass")
    for content, header in ((start, {}), (start + behind, {HEADER_LENGTH: str(len(start))})):
        answer = httpx.post(f"{server.url}/v2/models/text/infer", content=content, headers=header, trust_env=False)
        assert answer.status_code in (200, 400, 422), (answer.text, content)


@SILENT
@given(st.binary(max_size=300), st.sampled_from(["image/png", "application/json", "multipart/form-data; boundary=b"]))
def test_any_bytes(server: Process, body: bytes, content_type: str) -> None:
    if content_type.startswith("multipart"):
        body = b'--b\r\nContent-Disposition: form-data; name="text"\r\n' + body + b"\r\n--b--\r\n"
    headers = {"content-type": content_type}
    answer = httpx.post(f"{server.url}/v1/embeddings", content=body, headers=headers, trust_env=False)
    assert answer.status_code in (200, 400, 422), answer.text


@st.composite
def feature_files(draw: st.DrawFn) -> bytes:
    """A `.npy` file in which some bytes are others."""
    file = io.BytesIO()
    np.save(file, np.ones((2, 3), draw(st.sampled_from(["<f4", ">f8", "<i2"]))))
    data = bytearray(file.getvalue())
    for position in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[position] = draw(st.integers(0, 255) | st.sampled_from(b"0123456789(),'{}[]-<|OVe"))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@settings(SILENT, max_examples=300)
@given(feature_files() | st.lists(st.lists(VALUES, max_size=3), max_size=3) | VALUES)
def test_any_features(value: Any) -> None:
    preprocess = FeaturesPreprocessor(3)
    for given_value in (value, base64.b64encode(value).decode()) if isinstance(value, bytes) else (value,):
        with contextlib.suppress(InputError):
            assert np.asarray(decode(preprocess, given_value)).dtype == np.float32


def refused_or_answered(server: Process, path: str, body: Any) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")  # NaN and lone surrogates, too
    headers = {"content-type": "application/json"}
    answer = httpx.post(server.url + path, content=content, headers=headers, trust_env=False)
    assert answer.status_code in (200, 400, 404, 422), (answer.text, body)
    assert answer.status_code == 200 or answer.json()["error"]["message"].endswith(".")
