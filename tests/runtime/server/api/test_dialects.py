"""The bodies that people already send: what each answers, against the library on the same items."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fluxtalk.runtime import Embedder
from tests.runtime.server.conftest import Process

TEXTS = ["black chess queen", "omega"]


def picture(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 32), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + in_base64(data)


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return np.array([item["embedding"] for item in body["data"]], dtype=np.float32)


@pytest.fixture(scope="module")
def mixed(embedder: Embedder) -> np.ndarray:
    """A text, an image, a text."""
    texts, images = embedder.embed("text", TEXTS), embedder.embed("image", [picture()])
    return np.stack([texts[0], images[0], texts[1]])


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-6)


def test_jina_items_say_what_they_are(client: httpx.Client, mixed: np.ndarray) -> None:
    for image in (in_base64(picture()), data_url(picture())):
        body = {"input": [{"text": TEXTS[0]}, {"image": image}, TEXTS[1]], "task": "retrieval.query"}
        answer = client.post("/v1/embeddings", json={**body, "normalized": True, "model": "bundle"})
        assert close(vectors(answer), mixed)
        assert answer.json()["k"] == 4
        assert answer.json()["usage"]["total_tokens"] > 3


def test_jina_embedding_types(client: httpx.Client, embedder: Embedder) -> None:
    expected = embedder.embed("text", TEXTS)
    items = [{"text": text} for text in TEXTS]

    def given(embedding_type: Any) -> list[dict[str, Any]]:
        answer = client.post("/v1/embeddings", json={"input": items, "embedding_type": embedding_type})
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    packed = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in given("base64")]
    assert close(np.array(packed), expected)
    assert close(np.array([item["embedding"] for item in given("float")], dtype=np.float32), expected)
    assert [item["embedding"] for item in given("ubinary")] == np.packbits(expected > 0, axis=-1).tolist()
    both = given(["float", "binary"])
    assert close(np.array([item["embeddings"]["float"] for item in both], dtype=np.float32), expected)
    assert [[b + 128 for b in item["embeddings"]["binary"]] for item in both] == np.packbits(
        expected > 0, axis=-1
    ).tolist()


def test_infinity_names_one_modality(client: httpx.Client, embedder: Embedder) -> None:
    pictures = [picture(seed) for seed in range(2)]
    body = {"modality": "image", "input": [data_url(p) for p in pictures], "dimensions": 0, "encoding_format": "float"}
    assert close(vectors(client.post("/v1/embeddings", json=body)), embedder.embed("image", pictures))
    body = {"modality": "text", "input": TEXTS, "tokens": 2}
    assert close(vectors(client.post("/v1/embeddings", json=body)), embedder.embed("text", TEXTS, 2))


def test_chat_messages_and_content_parts(client: httpx.Client, mixed: np.ndarray) -> None:
    text, image = {"type": "text", "text": TEXTS[0]}, {"type": "image_url", "image_url": {"url": data_url(picture())}}
    contents: list[Any] = [[text], [image], TEXTS[1]]
    for content, expected in zip(contents, mixed, strict=True):
        messages = [{"role": "user", "content": content}]
        assert close(vectors(client.post("/v1/embeddings", json={"messages": messages})), expected[None])
    messages = [{"role": "user", "content": content} for content in contents]
    assert close(vectors(client.post("/v1/embeddings", json={"messages": messages})), mixed)
    assert close(vectors(client.post("/v1/embeddings", json={"input": [text, image, TEXTS[1]]})), mixed)
    elements = [{"content": [text]}, {"content": [image]}, {"content": TEXTS[1]}]
    assert close(vectors(client.post("/v1/embeddings", json={"input": elements})), mixed)


def test_forms(client: httpx.Client, embedder: Embedder, mixed: np.ndarray) -> None:
    files: list[tuple[str, Any]] = [
        ("text", (None, TEXTS[0])),
        ("image", ("a.png", picture(), "image/png")),
        ("text", (None, TEXTS[1])),
    ]
    assert close(vectors(client.post("/v1/embeddings", files=files)), mixed)
    unnamed: list[tuple[str, Any]] = [("file", ("a.png", picture(), "image/png")), ("input", (None, TEXTS[1]))]
    assert close(vectors(client.post("/v1/embeddings", files=unnamed)), mixed[1:])
    options = {"tokens": "2", "output": "tokens", "model": "bundle", "embedding_types": "float,int8"}
    answer = client.post("/v1/embeddings", files={"file": ("a", picture(), "image/png")}, data=options)
    assert answer.status_code == 200, answer.text
    item = answer.json()["data"][0]
    assert item["shape"] == [2, 48]
    expected = embedder.embed("image", [picture()], 2, "tokens")[0]
    assert np.abs(np.array(item["embeddings"]["float"]) - expected).max() <= 1e-5
    # A name and a modality in place of a type.
    upload = {"file": ("a", picture(), "application/octet-stream")}
    answer = client.post("/v1/embeddings", files=upload, data={"modality": "image"})
    assert close(vectors(answer), mixed[1:2])


def test_an_image_alone(client: httpx.Client, embedder: Embedder) -> None:
    answer = client.post("/v1/embeddings?tokens=2", content=picture(), headers={"content-type": "image/png"})
    assert close(vectors(answer), embedder.embed("image", [picture()], 2))


def cohere(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v2/embed", json={"model": "bundle", "input_type": "search_query", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_cohere(client: httpx.Client, embedder: Embedder) -> None:
    expected = embedder.embed("text", TEXTS)
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = cohere(client, texts=TEXTS, embedding_types=types, output_dimension=48, truncate="END")
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["id"]
    assert answer["meta"]["billed_units"]["input_tokens"] > 0
    assert answer["space_id"]
    given = answer["embeddings"]
    assert set(given) == set(types)
    assert close(np.array(given["float"], dtype=np.float32), expected)
    unpacked = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in given["base64"]]
    assert close(np.array(unpacked), expected)
    int8 = embedder.embed("text", TEXTS, dtype="int8")
    assert np.array_equal(given["int8"], int8)
    assert np.array_equal(given["uint8"], int8.astype(int) + 128)
    bits = np.packbits(expected > 0, axis=-1)
    assert np.array_equal(given["ubinary"], bits)
    assert np.array_equal(np.array(given["binary"]) + 128, bits)


def test_cohere_images_and_inputs(client: httpx.Client, embedder: Embedder, mixed: np.ndarray) -> None:
    expected = embedder.embed("image", [picture()], 1)
    answer = cohere(client, images=[data_url(picture())], input_type="image", tokens=1)
    assert close(np.array(answer["embeddings"]["float"], dtype=np.float32), expected)
    parts = [
        {"content": [{"type": "text", "text": TEXTS[0]}]},
        {"content": [{"type": "image_url", "image_url": {"url": data_url(picture())}}]},
    ]
    answer = cohere(client, inputs=parts)
    assert close(np.array(answer["embeddings"]["float"], dtype=np.float32), mixed[:2])


IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"smell": "a"}]}, "input[0]"),
        ({"input": [{"text": "a", "image": "b"}]}, "input[0]"),
        ({"input": [{}]}, "input[0]"),
        ({"input": [{"text": 3}]}, "input[0]"),
        ({"input": [{"image": ["a"]}]}, "input[0]"),
        ({"input": [{"text": "a"}, 3]}, "input[1]"),
        ({"input": [{"text": "a"}], "normalized": False}, "normalized"),
        ({"input": [{"text": "a"}], "late_chunking": True}, "late_chunking"),
        ({"input": [{"text": "a"}], "task": 3}, "task"),
        ({"input": [{"text": "a"}], "embedding_type": "int4"}, "embedding_type"),
        ({"input": [{"text": "a"}], "embedding_type": []}, "embedding_type"),
        ({"input": [{"text": "a"}], "embedding_type": "float", "encoding_format": "float"}, "embedding_type"),
        ({"input": [{"text": "a"}], "return_multivector": True}, "return_multivector"),
        ({"task": "a"}, "input"),
        ({"input": [{"image": ""}]}, "input[0]"),
        ({"input": [{"text": "a"}, {"image": "####"}]}, "input[1]"),
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE_PART, IMAGE_PART]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": "a"}]}]}, None),
        ({"messages": [{"role": "user", "content": "a"}], "input": "b"}, "input"),
        ({"input": [{"type": "image_url", "image_url": {"href": "a"}}]}, "input[0]"),
        ({"input": [{"type": [], "text": "a"}]}, "input[0]"),
        ({"modality": "image", "input": [{"text": "a"}, "b"]}, "input[1]"),
        ({"modality": "smell", "input": "a"}, "modality"),
        ({"modality": "image", "input": "a", "dimensions": 24}, "dimensions"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_meant_is_refused_with_its_field(client: httpx.Client, body: Any, param: str | None) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert param is None or error["param"] == param, error
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "texts"),
        ({"texts": ["a"], "images": ["b"]}, "images"),
        ({"texts": "a"}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": [3]}, "texts[0]"),
        ({"inputs": ["a"]}, "inputs[0]"),
        ({"inputs": [{"content": [{"type": "text", "text": 3}]}]}, "inputs[0].content[0]"),
        ({"texts": ["a"], "embedding_types": []}, "embedding_types"),
        ({"texts": ["a"], "embedding_types": ["float16"]}, "embedding_types"),
        ({"texts": ["a"], "input_type": "poem"}, "input_type"),
        ({"texts": ["a"], "truncate": "START"}, "truncate"),
        ({"texts": ["a"], "output_dimension": 24}, "output_dimension"),
        ({"texts": ["a"], "output": "tokens"}, "output"),
        ({"texts": ["a"], "tokens": 9}, "tokens"),
        ({"texts": ["a"], "max_tokens": 9}, "max_tokens"),
        ({"texts": ["a"], "model": "embed-v4.0"}, "model"),
    ],
    ids=str,
)
def test_cohere_refuses_with_the_field(client: httpx.Client, body: Any, param: str) -> None:
    answer = client.post("/v2/embed", json=body)
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json()["error"]["param"] == param


def test_broken_forms(client: httpx.Client) -> None:
    whole = client.build_request("POST", "/v1/embeddings", files={"image": ("a", picture(), "image/png")})
    body, content_type = whole.read(), whole.headers["content-type"]
    cases = [
        (body[:-10], content_type, "cut off"),
        (body, "multipart/form-data", "not a form"),
        (body, "multipart/form-data; boundary=other", ""),
        (b"", content_type, ""),
        (b"\x00\xff" * 100, content_type, ""),
    ]
    for content, header, words in cases:
        answer = client.post("/v1/embeddings", content=content, headers={"content-type": header})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
    for files, data in [
        ({"file": ("a", picture(), "application/octet-stream")}, {}),
        ({"image": ("a", picture(), "image/png")}, {"tokens": "two"}),
        ({"image": ("a", picture(), "image/png")}, {"color": "red"}),
        ({"text": ("a", b"\xff\xfe", "application/octet-stream")}, {}),
    ]:
        answer = client.post("/v1/embeddings", files=files, data=data)
        assert answer.status_code == 400, answer.text
    answer = client.post("/v1/embeddings?tokens=2", files={"image": ("a", picture(), "image/png")})
    assert answer.json()["error"]["param"] == "tokens"
    answer = client.post("/v1/embeddings?tokens=2&api-version=1", json={"input": "a"})
    assert answer.json()["error"]["param"] == "tokens"
    assert client.post("/v1/embeddings?api-version=1", json={"input": "a"}).status_code == 200
    answer = client.post("/v1/embeddings?color=red", content=picture(), headers={"content-type": "image/png"})
    assert answer.json()["error"]["code"] == "unknown_field"


def test_nothing_of_a_form_reaches_the_log(server: Process, client: httpx.Client) -> None:
    def send(header: str, boundary: str = "; boundary=b") -> httpx.Response:
        body = f'--b\r\nContent-Disposition: form-data; name="text"\r\n{header}\r\n\r\nSECRET\r\n--b--\r\n'
        content_type = {"content-type": "multipart/form-data" + boundary}
        return client.post("/v1/embeddings", content=body.encode(), headers=content_type)

    before = server.log.read_text()
    for encoding, status in (("binary", 200), ("7BIT", 200), ("MY-SECRET", 400), ("gzip", 400)):
        answer = send(f"Content-Transfer-Encoding: {encoding}")
        assert answer.status_code == status, answer.text
    assert "quoted-printable" in answer.json()["error"]["message"]
    assert send("SECRET\x00: a").status_code == 400
    assert send("X: a", boundary="").status_code == 400
    assert server.log.read_text() == before


def test_unknown_types_of_bodies(client: httpx.Client) -> None:
    for path, content_type in [("/v1/embeddings", "text/plain"), ("/v2/embed", "image/png"), ("/v2/embed", "")]:
        answer = client.post(path, content=b"a", headers={"content-type": content_type})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]["message"]


def test_too_many_items_in_every_dialect(client: httpx.Client) -> None:
    many = 3000
    part = {"type": "text", "text": "a"}
    for path, body in [
        ("/v1/embeddings", {"input": [{"text": "a"}] * many}),
        ("/v1/embeddings", {"input": [part] * many}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "a"}] * many}),
        ("/v2/embed", {"texts": ["a"] * many}),
    ]:
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "too_many_items"
        assert "3,000" in answer.json()["error"]["message"]
    answer = client.post("/v1/embeddings", files=[("text", (None, "a"))] * many)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_items"
