"""The official client of the Open Inference Protocol, unchanged, against a running server."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from fluxtalk.artifacts.bundle import ModalityEntry, TensorSpec
from fluxtalk.errors import InputError
from fluxtalk.preprocess import AudioPreprocessor, FeaturesPreprocessor, Preprocessor, Spectrogram
from fluxtalk.runtime import Embedder
from fluxtalk.runtime.server.execution.decoding import decode
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.kserve.models import metadata, read_items
from fluxtalk.runtime.server.kserve.routes import HEADER_LENGTH
from fluxtalk.runtime.server.kserve.tensors import Tensor
from tests.conftest import Made
from tests.runtime.server.conftest import Process, in_thread, least, peak_mib, running

TEXTS = ["black chess queen", "omega"]


def picture(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 32), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Its finalizer closes a second time, in whichever thread collects it, which gevent refuses with an error that pytest
# counts against some later test. These tests close what they open.
del InferenceServerClient.__del__


@pytest.fixture
def triton(server: Process) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, array: np.ndarray, datatype: str, binary: bool = True) -> InferInput:
    made = InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def of_bytes(*values: str | bytes) -> np.ndarray:
    return np.array([value.encode() if isinstance(value, str) else value for value in values], dtype=np.object_)


def expected(embedder: Embedder, modality: str, items: list[Any], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the pooled embedding of each prefix, as the library gives them."""
    prefixes = np.stack([embedder.embed(modality, items, j) for j in range(1, k + 1)], axis=1)
    return embedder.embed(modality, items, k, "tokens"), prefixes


def agree(result: Any, wanted: tuple[np.ndarray, np.ndarray]) -> None:
    for name, array, tolerance in zip(("tokens", "embeddings"), wanted, (1e-5, 1e-6), strict=True):
        found = result.as_numpy(name)
        assert found.dtype == np.float32
        assert found.shape == array.shape
        assert np.abs(found - array).max() <= tolerance


def test_health_and_metadata(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("text")
    assert triton.is_model_ready("image", "1")
    assert not triton.is_model_ready("sound")
    assert triton.get_server_metadata()["name"] == "fluxtalk"
    model = triton.get_model_metadata("image")
    assert model["versions"] == ["1"]
    assert [entry["name"] for entry in model["outputs"]] == ["tokens", "embeddings"]
    inputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in model["inputs"]}
    assert inputs["image"] == ("BYTES", [-1])
    assert inputs["pixels"] == ("UINT8", [-1, 32, 32, 1])
    assert inputs["token_index"] == ("INT64", [-1, -1])


@pytest.mark.parametrize("k", [1, 3, 4])
def test_raw_texts_and_images(triton: InferenceServerClient, embedder: Embedder, k: int) -> None:
    result = triton.infer("text", [tensor("text", of_bytes(*TEXTS), "BYTES")], parameters={"k": k}, request_id="7")
    agree(result, expected(embedder, "text", TEXTS, k))
    assert result.get_response()["id"] == "7"
    assert result.get_response()["parameters"]["k"] == k
    pictures = [picture(seed) for seed in range(2)]
    shaped = of_bytes(*pictures).reshape(2, 1)
    agree(
        triton.infer("image", [tensor("image", shaped, "BYTES")], parameters={"k": k}),
        expected(embedder, "image", pictures, k),
    )


@pytest.mark.parametrize("binary", [True, False])
def test_prepared_tensors_as_a_client_of_triton_sends_them(
    triton: InferenceServerClient, embedder: Embedder, binary: bool
) -> None:
    k = 2
    index = np.tile(np.arange(k, dtype=np.int64), (2, 1))
    outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("tokens", "embeddings")]
    rows = embedder.prepare("text", TEXTS)
    longest = max(map(len, rows)) + 3
    ids = np.array([np.pad(row, (0, longest - len(row))) for row in rows])
    mask = np.arange(longest) < np.array([[len(row)] for row in rows])
    inputs = [
        tensor("input_ids", ids, "INT64", binary),
        tensor("mask", mask, "BOOL", binary),
        tensor("token_index", index, "INT64", binary),
    ]
    agree(triton.infer("text", inputs, outputs=outputs), expected(embedder, "text", TEXTS, k))
    pictures = [picture(seed) for seed in range(2)]
    pixels = np.stack(embedder.prepare("image", pictures))
    inputs = [tensor("pixels", pixels, "UINT8", binary), tensor("token_index", index, "INT64", binary)]
    agree(triton.infer("image", inputs, model_version="1", outputs=outputs), expected(embedder, "image", pictures, k))


def test_only_the_outputs_that_were_asked_for(triton: InferenceServerClient, embedder: Embedder) -> None:
    given = [tensor("text", of_bytes("omega"), "BYTES")]
    result = triton.infer("text", given, outputs=[InferRequestedOutput("embeddings")])
    assert result.as_numpy("tokens") is None
    assert np.abs(result.as_numpy("embeddings")[:, -1] - embedder.embed("text", ["omega"])).max() <= 1e-6


def test_errors_reach_the_client_as_a_sentence(triton: InferenceServerClient) -> None:
    cases: list[tuple[str, list[InferInput], dict[str, Any], str]] = [
        ("sound", [tensor("text", of_bytes("a"), "BYTES")], {}, "not served here"),
        ("text", [tensor("words", of_bytes("a"), "BYTES")], {}, "takes the tensor text, or input_ids and mask"),
        ("text", [tensor("text", of_bytes("a"), "BYTES")], {"parameters": {"k": 9}}, "from 1 to 4"),
        ("text", [tensor("text", of_bytes("a"), "BYTES")], {"parameters": {"kk": 1}}, "parameters k and"),
        ("text", [tensor("text", of_bytes(b"\xff"), "BYTES")], {}, "UTF-8"),
        ("text", [tensor("text", of_bytes(" "), "BYTES")], {}, "blank"),
        ("image", [tensor("image", of_bytes(picture(), b"no image"), "BYTES")], {}, "input 1"),
        ("image", [tensor("pixels", np.zeros((1, 8, 8, 1), np.uint8), "UINT8")], {}, "[-1, 32, 32, 1]"),
        ("image", [tensor("pixels", np.zeros((1, 32, 32, 1), np.float32), "FP32")], {}, "UINT8"),
        ("text", [tensor("text", of_bytes("a"), "BYTES")], {"model_version": "2"}, "version"),
    ]
    for model, inputs, options, words in cases:
        with pytest.raises(InferenceServerException) as caught:
            triton.infer(model, inputs, **options)
        assert words in caught.value.message(), caught.value.message()
        assert caught.value.message().endswith(".")


def infer(client: httpx.Client, model: str, *tensors: dict[str, Any], **body: Any) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": tensors, **body})


IDS = {"name": "input_ids", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 0]]}


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [3],
        [{"name": "text"}],
        [{"name": "text", "datatype": "BYTES", "shape": [1]}],
        [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a"]}],
        [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [3]}],
        [{"name": "text", "datatype": "BYTES", "shape": [-1], "data": []}],
        [{"name": "text", "datatype": "BYTES", "shape": [0], "data": []}],
        [{"name": "text", "datatype": "BYTES", "shape": [1 << 40], "data": []}],
        [{"name": "text", "datatype": "BYTES", "shape": [1 << 20], "data": ["a"]}],
        [{"name": "text", "datatype": "BYTES", "shape": [1, 1, 1], "data": ["a"]}],
        [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}],
        [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"], "parameters": {"shared_memory": "a"}}],
        [{"name": "text", "datatype": "INT64", "shape": [1], "data": [1]}],
        [{**IDS, "data": [[1, 2], [3]]}],
        [{**IDS, "data": [[1, 2], [3, 0.5]]}],
        [{**IDS, "data": [[1, 2], [3, "4"]]}],
        [{**IDS, "data": [[1, 2], [3, 10**30]]}],
        [{**IDS, "data": [1, 2, 3, -4]}],
        [{**IDS, "data": [1, 2, True, 4]}],
        [{**IDS, "data": [[1, 2], "34"]}],
        [{**IDS, "data": {"0": 1}}],
        [{**IDS, "shape": [0, 2], "data": []}],
        [{**IDS, "shape": [2, 0], "data": []}],
        [{**IDS, "datatype": "INT32"}],
        [IDS, IDS],
        [IDS, {"name": "mask", "datatype": "BOOL", "shape": [2, 2], "data": [[True, True], [False, True]]}],
        [IDS, {"name": "mask", "datatype": "BOOL", "shape": [2, 2], "data": [[True, True], [False, False]]}],
        [IDS, {"name": "mask", "datatype": "BOOL", "shape": [2, 1], "data": [True, True]}],
        [IDS, {"name": "mask", "datatype": "BOOL", "shape": [2, 2], "data": [1, 1, 1, 1]}],
        [IDS, {"name": "token_index", "datatype": "INT64", "shape": [2], "data": [1, 2]}],
        [IDS, {"name": "token_index", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]}],
        [IDS, {"name": "token_index", "datatype": "INT64", "shape": [2, 0], "data": []}],
        [{"name": "token_index", "datatype": "INT64", "shape": [1], "data": [0]}],
    ],
    ids=lambda value: str(value)[:70],
)
def test_tensors_that_cannot_be_meant(client: httpx.Client, tensors: Any) -> None:
    answer = infer(client, "text", *tensors)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"].endswith(".")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of another process is read from /proc")
@pytest.mark.alone
@pytest.mark.parametrize(
    "tensors",
    [
        [{**IDS, "shape": [1, 2], "data": ["x" * 30_000, *[""] * 8000]}],
        [{**IDS, "shape": [1, 8001], "data": ["x" * 30_000, *[""] * 8000]}],
        [
            {**IDS, "shape": [0, 1], "data": []},
            {"name": "token_index", "datatype": "INT64", "shape": [0, 1 << 28], "data": []},
        ],
        [
            {**IDS, "shape": [0, 1 << 28], "data": []},
            {"name": "mask", "datatype": "BOOL", "shape": [0, 1 << 28], "data": []},
        ],
    ],
    ids=["strings", "as many strings", "index of no row", "mask of no row"],
)
def test_a_small_body_costs_little_and_stops_nobody(server: Process, tensors: list[dict[str, Any]]) -> None:
    with server.client() as client, server.client() as other, ThreadPoolExecutor(1) as pool:

        def slowest_of_another() -> float:
            pending = pool.submit(infer, client, "text", *tensors)
            slowest = 0.0
            while not pending.done():
                begin = time.monotonic()
                assert other.get("/livez").status_code == 200
                slowest = max(slowest, time.monotonic() - begin)
            assert pending.result().status_code == 400
            return slowest

        assert other.get("/livez").status_code == 200
        before = peak_mib(server)
        assert least(slowest_of_another, 1) < 1
        assert peak_mib(server) - before < 64


def test_broken_binary_bodies(client: httpx.Client) -> None:
    header = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}
    good = b"\x05\x00\x00\x00omega"
    start = json.dumps({"inputs": [header]}).encode()

    def status(body: bytes, length: object) -> int:
        answer = client.post("/v2/models/text/infer", content=body, headers={HEADER_LENGTH: str(length)})
        assert answer.status_code == 200 or isinstance(answer.json()["error"], str)
        return answer.status_code

    assert status(start + good, len(start)) == 200
    for body, length in [
        (start + good[:-1], len(start)),
        (start + good + b"x", len(start)),
        (start + b"\xff\xff\xff\xff" + good[4:], len(start)),
        (start + b"\x04" + good[1:], len(start)),
        (start + good, len(start) - 1),
        (start + good, 10**30),
        (start + good, "-1"),
        (start + good, "many"),
        (good, 0),
        (b"", 0),
    ]:
        assert status(body, length) == 400, (body, length)


def test_metadata_of_what_is_not_there(client: httpx.Client) -> None:
    for path in ("/v2/models/sound", "/v2/models/text/versions/2", "/v2/models/sound/ready"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert isinstance(answer.json()["error"], str)


def test_errors_of_no_route_have_the_shape_of_their_protocol(
    triton: InferenceServerClient, client: httpx.Client
) -> None:
    with pytest.raises(InferenceServerException, match=r"no route /v2/models/text/config.*\.$"):
        triton.get_model_config("text")
    for answer in (client.get("/v2/nothing"), client.get("/v2/models/text/infer"), client.post("/v2")):
        assert answer.status_code in (404, 405)
        assert isinstance(answer.json()["error"], str)
    for answer in (client.get("/v2/embed"), client.get("/v2beyond"), client.get("/nothing")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["code"] in ("not_found", "method_not_allowed")
    headers = {"host": "evil.example"}
    assert isinstance(client.get("/v2", headers=headers).json()["error"], str)
    assert client.get("/v2/embed", headers=headers).json()["error"]["code"] == "host_not_allowed"


def test_ready_is_false_while_the_server_ends(made: Made) -> None:
    with in_thread(made.bundle) as up:
        client = InferenceServerClient(up.url.removeprefix("http://"))
        assert client.is_server_ready()
        up.service.drain()
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("text")
        client.close()


RATE, LENGTH, DIM = 16_000, 100, 3


@pytest.mark.parametrize(
    ("name", "preprocess", "trailing"),
    [
        ("samples", AudioPreprocessor(RATE, LENGTH), ()),
        (
            "spectrogram",
            AudioPreprocessor(RATE, LENGTH, features=Spectrogram(DIM, 8, 4, 8, 0.0, 8e3, "htk", "ln")),
            (DIM,),
        ),
        ("features", FeaturesPreprocessor(DIM), (DIM,)),
    ],
)
def test_prepared_sounds_and_features(made: Made, name: str, preprocess: Preprocessor, trailing: tuple[int]) -> None:
    inputs = [
        TensorSpec(name, "float32", ["batch", "length", *trailing]),
        TensorSpec("mask", "bool", ["batch", "length"]),
        TensorSpec("token_index", "int64", ["k"]),
    ]
    other = ModalityEntry({"fp32": "other.fp32.onnx"}, inputs, None, {}, {})
    manifest = dataclasses.replace(made.bundle.manifest, modalities={"other": other})
    model = ServedModel(("m",), manifest.bundle_hash, 0, "fp32", {"other": preprocess.kind}, manifest, 10)
    told = {entry["name"]: entry["shape"] for entry in metadata("other", preprocess, model)["inputs"]}
    assert told[name] == [-1, -1, *trailing]
    values = np.random.default_rng(0).standard_normal((2, 7, *trailing)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4]])
    tensors = [Tensor(name, "FP32", values.shape, values), Tensor("mask", "BOOL", mask.shape, mask)]
    items = read_items(tensors, "other", preprocess, model)
    for item, expected_row in zip(items, (values[0], values[1, :4]), strict=True):
        assert np.array_equal(np.asarray(decode(preprocess, item.value)), expected_row)
    broken = [Tensor(name, "FP32", values.shape, values * np.nan)]
    with pytest.raises(InputError, match="NaN"):
        decode(preprocess, read_items(broken, "other", preprocess, model)[0].value)


def test_a_key_protects_models_but_not_health(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        running(made.bundle.folder, tmp_path_factory.mktemp("key") / "log", FLUXTALK_API_KEY="secret") as up,
        up.client() as client,
    ):
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/text").status_code == 401
        assert client.post("/v2/models/text/infer").status_code == 401
        assert client.get("/openapi.json").status_code == 401
        triton = InferenceServerClient(up.url.removeprefix("http://"))
        given = [tensor("text", of_bytes("a"), "BYTES")]
        for ask in (
            triton.get_server_metadata,
            lambda: triton.get_model_metadata("text"),
            lambda: triton.infer("text", given),
        ):
            with pytest.raises(InferenceServerException, match=r"valid key.*KEY\.$"):
                ask()
        triton.close()
        assert client.post("/v2/embed", json={"texts": ["a"]}).json()["error"]["code"] == "invalid_api_key"
        opened = client.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()
        assert opened["security"] == [{"key": []}]
        assert opened["paths"]["/v2/health/live"]["get"]["security"] == []
