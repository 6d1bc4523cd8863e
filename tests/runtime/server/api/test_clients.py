"""Clients that people have, unchanged, against a running server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import huggingface_hub
import numpy as np
import openai
import pytest
import voyageai
import voyageai.client
import voyageai.error

from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.api.test_dialects import data_url, picture
from tests.runtime.server.conftest import Process, running

TEXTS = ["black chess queen", "omega"]
NAMES = ("icons/base", "text-embedding-3-small")
LONG = "black chess queen " * 40


@pytest.fixture(scope="module")
def server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of two names."""
    options = [word for name in NAMES for word in ("--served-model-name", name)]
    with running(made.bundle.folder, tmp_path_factory.mktemp("server") / "log", *options) as up:
        yield up


@pytest.fixture(scope="module")
def expected(embedder: Embedder) -> np.ndarray:
    return embedder.embed("text", TEXTS)


def close(found: Any, expected: np.ndarray) -> bool:
    rows = np.asarray(found, dtype=np.float32)
    return rows.shape == expected.shape and bool(np.abs(rows - expected).max() <= 1e-6)


def test_openai_asks_for_any_name_of_the_model(server: Process, expected: np.ndarray) -> None:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as api:
        assert [model.id for model in api.models.list()] == list(NAMES)
        for name in NAMES:
            assert api.models.retrieve(name).id == name
            answer = api.embeddings.create(model=name, input=TEXTS)
            assert close([item.embedding for item in answer.data], expected)
            assert answer.model == NAMES[0]
        with pytest.raises(openai.NotFoundError, match="'bundle' is not served here; 'icons/base' and 'text-"):
            api.embeddings.create(model="bundle", input=TEXTS)


def test_cohere_embeds_texts_and_images(server: Process, embedder: Embedder, expected: np.ndarray) -> None:
    with httpx.Client() as http:
        ask_as_cohere(cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http), embedder, expected)


def ask_as_cohere(api: cohere.ClientV2, embedder: Embedder, expected: np.ndarray) -> None:
    asked: dict[str, Any] = {"model": NAMES[0], "input_type": "search_document", "embedding_types": ["float"]}
    assert close(api.embed(texts=TEXTS, **asked).embeddings.float_, expected)
    image = api.embed(images=[data_url(picture())], **{**asked, "input_type": "image"})
    assert close(image.embeddings.float_, embedder.embed("image", [picture()]))
    small = api.embed(texts=TEXTS, **{**asked, "embedding_types": ["int8", "ubinary"]}).embeddings
    assert np.array_equal(small.ubinary or [], np.packbits(expected > 0, axis=-1))
    assert np.array(small.int8).shape == expected.shape
    with pytest.raises(cohere.errors.UnprocessableEntityError, match="more than the 32 tokens"):
        api.embed(texts=[LONG], truncate="NONE", **asked)
    assert close(api.embed(texts=[LONG], truncate="END", **asked).embeddings.float_, embedder.embed("text", [LONG]))


def test_voyage_says_roles_and_types(server: Process, expected: np.ndarray) -> None:
    api = voyageai.client.Client(api_key="none", base_url=server.url + "/v1", max_retries=0)
    for role in (None, "query", "document"):
        answer = api.embed(TEXTS, model=NAMES[1], input_type=role)
        assert close(answer.embeddings, expected)
        assert answer.total_tokens > 0
    assert close(api.embed(TEXTS, model=NAMES[0], output_dimension=48).embeddings, expected)
    bits = api.embed(TEXTS, model=NAMES[0], output_dtype="ubinary").embeddings
    assert np.array_equal(bits, np.packbits(expected > 0, axis=-1))
    unsigned, signed = (
        np.array(api.embed(TEXTS, model=NAMES[0], output_dtype=dtype).embeddings) for dtype in ("uint8", "int8")
    )
    assert np.array_equal(unsigned - 128, signed)
    with pytest.raises(voyageai.error.APIError, match="more than the 32 tokens"):
        api.embed([LONG], model=NAMES[0], truncation=False)


def test_clients_of_text_embeddings_inference(server: Process, expected: np.ndarray, embedder: Embedder) -> None:
    for url in (server.url, server.url + "/embed"):
        api = huggingface_hub.InferenceClient(model=url)
        assert close(api.feature_extraction("omega", normalize=True, truncate=True), expected[1:])
    api = huggingface_hub.InferenceClient(model=server.url, provider="hf-inference")
    assert close(api.feature_extraction(LONG), embedder.embed("text", [LONG]))
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="more than the 32 tokens"):
        api.feature_extraction(LONG, truncate=False)
    assert api.health_check()
    info = api.get_endpoint_info()
    assert info["model_id"] == info["model"] == NAMES[0]
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_input_length"] == 32
    assert info["max_client_batch_size"] == info["limits"]["items"] == 2048


def test_tei_s_bodies_and_errors(server: Process, expected: np.ndarray, embedder: Embedder) -> None:
    with server.client() as client:
        assert close(client.post("/embed", json={"inputs": TEXTS}).json(), expected)
        one = client.post("/embed", json={"inputs": TEXTS, "k": 1, "output": "concat"}).json()
        assert close(one, embedder.embed("text", TEXTS, 1, "concat"))
        for body, sentence in (
            ({"inputs": []}, "inputs holds nothing to embed"),
            ({"inputs": "omega", "truncation_direction": "Left"}, "truncation_direction must be right here"),
            ({"inputs": "omega", "prompt_name": "query"}, "There are no prompts here; got 'query'"),
            ({"input": "omega"}, "'input' is unknown"),
        ):
            refused = client.post("/embed", json=body)
            assert refused.status_code == 400, refused.text
            assert refused.json()["error_type"] == "Validation"
            assert sentence in refused.json()["error"]


def test_the_root_needs_a_key_for_what_is_posted_to_it(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", FLUXTALK_API_KEY="secret") as up, up.client() as client:
        assert client.get("/").status_code == 200
        assert client.get("/health").status_code == 200
        for path in ("/", "/embed"):
            assert client.post(path, json={"inputs": "omega"}).status_code == 401
            with_key = client.post(path, json={"inputs": "omega"}, headers={"authorization": "Bearer secret"})
            assert with_key.status_code == 200


def test_voyage_takes_one_field_for_each_thing(server: Process) -> None:
    with server.client() as client:
        for more, param in (
            ({"output_dimension": 48, "dimensions": 48}, "output_dimension"),
            ({"output_dtype": "int8", "embedding_types": ["float"]}, "output_dtype"),
        ):
            refused: httpx.Response = client.post("/v1/embeddings", json={"input": TEXTS, **more})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        packed = client.post(
            "/v1/embeddings", json={"input": TEXTS, "output_dtype": "int8", "encoding_format": "base64"}
        ).json()["data"][0]["embedding"]
        assert len(base64.b64decode(packed)) == 48
