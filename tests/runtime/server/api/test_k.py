"""The one name of k over HTTP, and the older one that stays: each error names the field that was sent."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fluxtalk.runtime import Embedder

EMBEDDINGS = "/v1/embeddings"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (EMBEDDINGS, {"input": "omega"}),
    (EMBEDDINGS, {"input": [{"text": "omega"}]}),
    (EMBEDDINGS, {"input": "omega", "modality": "text"}),
    (EMBEDDINGS, {"messages": [{"role": "user", "content": "omega"}]}),
    ("/v2/embed", {"texts": ["omega"]}),
]


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).astype(np.uint8).reshape(32, 32)).save(file, "PNG")
    return file.getvalue()


def vector(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["k"] == 2
    return np.array(body["embeddings"]["float"][0] if "embeddings" in body else body["data"][0]["embedding"])


@pytest.mark.parametrize(("path", "body"), BODIES, ids=str)
def test_both_names_on_every_body(client: httpx.Client, embedder: Embedder, path: str, body: dict[str, Any]) -> None:
    expected = embedder.embed("text", ["omega"], 2)[0]
    for named in ({"k": 2}, {"tokens": 2}, {"k": 2, "tokens": 2}, {"k": None, "tokens": 2}):
        assert np.abs(vector(client.post(path, json={**body, **named})) - expected).max() <= 1e-6


@pytest.mark.parametrize(("path", "body"), BODIES, ids=str)
def test_an_error_names_the_field_that_was_sent(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    for name in ("k", "tokens"):
        for value in (9, 0, "2", True, 2.5):
            answer = client.post(path, json={**body, name: value})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == name
            assert error["message"].startswith(f"{name} must be an integer"), error
    error = client.post(path, json={**body, "k": 1, "tokens": 2}).json()["error"]
    assert error["param"] == "tokens"
    assert error["message"] == "tokens is another name of k, so give one of them; got k 1 and tokens 2."


def test_both_names_in_forms_and_queries(client: httpx.Client, embedder: Embedder) -> None:
    expected = embedder.embed("image", [picture()], 2)[0]
    headers = {"content-type": "image/png"}
    for name in ("k", "tokens"):
        files = {"image": ("a.png", picture(), "image/png")}
        assert np.abs(vector(client.post(EMBEDDINGS, files=files, data={name: "2"})) - expected).max() <= 1e-6
        answer = client.post(f"{EMBEDDINGS}?{name}=2", content=picture(), headers=headers)
        assert np.abs(vector(answer) - expected).max() <= 1e-6
        for sent in (
            client.post(EMBEDDINGS, files=files, data={name: "9"}),
            client.post(EMBEDDINGS, files=files, data={name: "two"}),
            client.post(f"{EMBEDDINGS}?{name}=9", content=picture(), headers=headers),
            client.post(f"{EMBEDDINGS}?{name}=2", json={"input": "omega"}),
        ):
            assert sent.status_code == 400
            assert sent.json()["error"]["param"] == name


def test_tensors_say_k(client: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["omega"]}
    answer = client.post("/v2/models/text/infer", json={"inputs": [tensor], "parameters": {"k": 9}})
    assert answer.json()["error"].startswith("k must be an integer from 1 to 4")


def test_the_older_name_is_described_as_deprecated(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("OpenAIRequest", "JinaRequest", "ChatRequest", "CohereRequest"):
        k, tokens = (schemas[name]["properties"][field]["anyOf"][0] for field in ("k", "tokens"))
        assert (k["minimum"], k["maximum"]) == (tokens["minimum"], tokens["maximum"]) == (1, 4)
        assert tokens["deprecated"]
        assert "deprecated" not in k


def test_k_of_a_form_or_a_query_is_decimal_digits(client: httpx.Client, embedder: Embedder) -> None:
    expected = embedder.embed("image", [picture()], 2)[0]
    headers = {"content-type": "image/png"}
    for text in ("2", "02"):
        answer = client.post(f"{EMBEDDINGS}?k={text}", content=picture(), headers=headers)
        assert np.abs(vector(answer) - expected).max() <= 1e-6
    for text in ("2.0", "1e0", "null", "two", "9" * 4000):
        answer = client.post(f"{EMBEDDINGS}?k={text}", content=picture(), headers=headers)
        assert answer.status_code == 400, text
        assert answer.json()["error"]["param"] == "k"
        assert len(answer.text) < 500


def test_a_number_of_many_digits_is_not_repeated(client: httpx.Client) -> None:
    for field in ("k", "dimensions"):
        body = f'{{"input": "omega", "{field}": {"9" * 4000}}}'
        answer = client.post(EMBEDDINGS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert len(answer.text) < 500


def test_another_model_is_refused_before_its_items(client: httpx.Client) -> None:
    for value in ([], [1.5]):
        answer = client.post(EMBEDDINGS, json={"input": value, "model": "another"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_modality_beside_items_that_name_theirs_is_for_strings_alone(client: httpx.Client) -> None:
    items = [{"text": "omega"}]
    assert client.post(EMBEDDINGS, json={"input": items, "modality": "smell"}).status_code == 200
    assert client.post(EMBEDDINGS, json={"input": [*items, "omega"], "modality": "smell"}).status_code == 400
