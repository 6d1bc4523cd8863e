"""The official client, unchanged, against a running server; and FluxTalk's own fields."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.conftest import Process, in_thread

TEXTS = ["black chess queen", "omega", "latin small letter a with diaeresis and more words than the others have"]


@pytest.fixture
def api(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as api:
        yield api


def rows(answer: Any) -> np.ndarray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def test_strings_and_lists_with_the_clients_default(api: openai.OpenAI, embedder: Embedder) -> None:
    expected = embedder.embed("text", TEXTS)
    assert np.abs(rows(api.embeddings.create(model="bundle", input=TEXTS)) - expected).max() <= 1e-6
    one = api.embeddings.create(model="bundle", input=TEXTS[0], user="somebody")
    assert np.abs(rows(one) - expected[:1]).max() <= 1e-6
    assert one.model == "bundle"
    assert one.usage.prompt_tokens == one.usage.total_tokens == len(embedder.prepare("text", TEXTS[:1])[0])


def test_floats_and_base64_are_the_same_numbers(api: openai.OpenAI) -> None:
    as_floats = rows(api.embeddings.create(model="bundle", input=TEXTS, encoding_format="float"))
    raw = api.embeddings.create(model="bundle", input=TEXTS, encoding_format="base64")
    decoded = np.array([np.frombuffer(base64.b64decode(str(item.embedding)), dtype="<f4") for item in raw.data])
    assert np.abs(decoded - as_floats).max() <= 1e-6


def test_token_ids_are_refused_because_they_may_be_those_of_another_tokenizer(api: openai.OpenAI) -> None:
    """LangChain's OpenAIEmbeddings sends the ids of OpenAI's tokenizer unless it is told otherwise."""
    for given in ([9906, 1917], [[9906, 1917]], [[9], [19]]):
        with pytest.raises(openai.BadRequestError, match=r"check_embedding_ctx_length=False.*--accept-token-ids"):
            api.embeddings.create(model="bundle", input=given)


def test_token_ids_are_taken_if_the_server_was_told_that_they_are_the_bundles_own(
    made: Made, embedder: Embedder
) -> None:
    ids = [array.tolist() for array in embedder.prepare("text", TEXTS)]
    expected = embedder.embed("text", TEXTS)
    with in_thread(made.bundle, accept_token_ids=True) as up, up.client() as client:
        for given, wanted in ((ids, expected), (ids[0], expected[:1])):
            data = client.post("/v1/embeddings", json={"input": given}).json()["data"]
            assert np.abs(np.array([item["embedding"] for item in data]) - wanted).max() <= 1e-6
        for wrong, param in (([1, -1], "input[0]"), ([[1], [10**9]], "input[1]"), ([1] * 500, "input[0]")):
            refused = client.post("/v1/embeddings", json={"input": wrong})
            assert refused.status_code in (400, 422)
            assert refused.json()["error"]["param"] == param


def test_only_the_size_that_was_trained_is_given(api: openai.OpenAI) -> None:
    assert rows(api.embeddings.create(model="bundle", input="omega", dimensions=48)).shape == (1, 48)
    with pytest.raises(openai.BadRequestError, match="dimensions is 48"):
        api.embeddings.create(model="bundle", input="omega", dimensions=24)
    body = {"output": "concat", "tokens": 2}
    assert rows(api.embeddings.create(model="bundle", input="omega", dimensions=96, extra_body=body)).shape == (1, 96)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_tokens_are_chosen_per_request(api: openai.OpenAI, embedder: Embedder, k: int) -> None:
    answer = api.embeddings.create(model="bundle", input=TEXTS, extra_body={"tokens": k})
    assert np.abs(rows(answer) - embedder.embed("text", TEXTS, k)).max() <= 1e-6
    concat = api.embeddings.create(model="bundle", input=TEXTS, extra_body={"tokens": k, "output": "concat"})
    assert np.abs(rows(concat) - embedder.embed("text", TEXTS, k, "concat")).max() <= 1e-6


@pytest.mark.parametrize("output", ["tokens", "complementary"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_several_vectors_come_with_their_shape(
    client: httpx.Client, embedder: Embedder, output: str, encoding: str
) -> None:
    body = {"input": TEXTS, "output": output, "encoding_format": encoding}
    answer = client.post("/v1/embeddings", json=body).json()
    expected = embedder.embed("text", TEXTS, None, output)
    for item, wanted in zip(answer["data"], expected, strict=True):
        value = item["embedding"]
        flat = np.frombuffer(base64.b64decode(value), dtype="<f4") if encoding == "base64" else np.array(value)
        assert item["shape"] == list(wanted.shape)
        assert np.abs(flat.reshape(item["shape"]) - wanted).max() <= 1e-5


def test_every_answer_says_what_it_is(client: httpx.Client, made: Made) -> None:
    answer = client.post("/v1/embeddings", json={"input": "omega", "tokens": 2}).json()
    assert answer["k"] == 2
    assert answer["dimension"] == 48
    assert answer["output"] == "pooled"
    assert answer["revision"] == made.bundle.manifest.bundle_hash
    assert answer["space_id"] == made.bundle.manifest.space_id("pooled")
    other = client.post("/v1/embeddings", json={"input": "omega", "output": "tokens"}).json()
    assert other["space_id"] != answer["space_id"]
    assert client.post("/v1/embeddings", json={"input": "omega"}).json()["space_id"] == answer["space_id"]


def test_smaller_types(client: httpx.Client, embedder: Embedder) -> None:
    types = ["float", "base64", "float16", "int8", "binary", "ubinary"]
    body = {"input": TEXTS, "embedding_types": types}
    as_lists = client.post("/v1/embeddings", json=body).json()["data"]
    as_bytes = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"]
    assert [item["embedding"] for item in as_lists] == [[]] * 3
    dtypes = {"float": "<f4", "base64": "<f4", "float16": "<f2", "int8": "i1", "binary": "i1", "ubinary": "u1"}
    for item, packed, text in zip(as_lists, as_bytes, TEXTS, strict=True):
        given = item["embeddings"]
        vector = embedder.embed("text", [text])[0]
        assert np.abs(np.array(given["float"]) - vector).max() <= 1e-6
        assert np.abs(np.array(given["float16"]) - vector).max() <= 1e-3
        assert given["ubinary"] == np.packbits(vector > 0).tolist()
        assert [value + 128 for value in given["binary"]] == given["ubinary"]
        assert np.array_equal(given["int8"], embedder.embed("text", [text], dtype="int8")[0])
        for name in types:
            unpacked = np.frombuffer(base64.b64decode(packed["embeddings"][name]), dtype=dtypes[name])
            if name != "base64":
                assert np.abs(unpacked.astype(np.float64) - given[name]).max() <= 1e-6


def test_images_by_modality(client: httpx.Client, embedder: Embedder) -> None:
    pictures = []
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 32), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        pictures.append(file.getvalue())
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    texts[1] = "data:image/png;base64," + texts[1]
    answer = client.post("/v1/embeddings", json={"modality": "image", "input": texts, "tokens": 2})
    assert answer.status_code == 200, answer.text
    found = np.array([item["embedding"] for item in answer.json()["data"]])
    assert np.abs(found - embedder.embed("image", pictures, 2)).max() <= 1e-6


def test_models(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["bundle"]
    assert api.models.retrieve("bundle").owned_by == "fluxtalk"
    with pytest.raises(openai.NotFoundError, match="text-embedding-3-small"):
        api.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.NotFoundError, match="nothing"):
        api.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": None}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a", 3]}, "input[1]"),
        ({"input": [None]}, "input[0]"),
        ({"input": "a", "tokens": 0}, "tokens"),
        ({"input": "a", "tokens": 5}, "tokens"),
        ({"input": "a", "tokens": True}, "tokens"),
        ({"input": "a", "tokens": "2"}, "tokens"),
        ({"input": "a", "tokens": 10**30}, "tokens"),
        ({"input": "a", "output": "mean"}, "output"),
        ({"input": "a", "output": ["pooled"]}, "output"),
        ({"input": "a", "output": "complementary", "tokens": 3}, "tokens"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "embedding_types": "int8"}, "embedding_types"),
        ({"input": "a", "embedding_types": ["int4"]}, "embedding_types"),
        ({"input": "a", "dimensions": "48"}, "dimensions"),
        ({"input": "a", "modality": "smell"}, "modality"),
        ({"input": "a", "modality": {}}, "modality"),
        ({"input": "a", "model": 7}, "model"),
        ({"input": "a", "user": 7}, "user"),
        ({"input": "a", "token": 2}, "token"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [1, "a"]}, "input[0]"),
        ({"input": [1, -1]}, "input[0]"),
        ({"input": [[1], [10**9]]}, "input[0]"),
        ({"input": [1] * 500}, "input[0]"),
        ({"input": ["a", " "]}, "input[1]"),
        ({"input": "", "tokens": 1}, "input[0]"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_meant_is_refused_with_its_field(client: httpx.Client, body: Any, param: str) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_vllms_truncate_prompt_tokens_reads_less_of_a_text(client: httpx.Client) -> None:
    long = "greek small letter omega and a black chess queen"

    def ask(text: object, **more: object) -> httpx.Response:
        return client.post("/v1/embeddings", json={"input": text, **more})

    whole = ask(long).json()
    assert ask(long, truncate_prompt_tokens=-1).json()["data"] == whole["data"]
    assert ask(long, truncate_prompt_tokens=1000).json()["data"] == whole["data"]
    short = ask(long, truncate_prompt_tokens=4).json()
    assert short["usage"]["prompt_tokens"] == 4
    assert short["data"] != whole["data"]
    for value, sentence in ((0, "at least 1, or -1"), (-2, "from -1 to"), ("4", "an integer")):
        refused = ask(long, truncate_prompt_tokens=value)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "truncate_prompt_tokens"
        assert sentence in refused.json()["error"]["message"]
    assert "--accept-token-ids" in ask([1, 2, 3], truncate_prompt_tokens=4).json()["error"]["message"]
