"""The Triton repository, read by Triton's own protocol buffers; its graphs run as Triton would run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from google.protobuf import text_format

from fluxtalk.bundle import TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.cli import main
from fluxtalk.export.to_onnx import graph_files
from fluxtalk.export.traced import sample_batch
from fluxtalk.export.triton import TritonOptions, with_batched_index, write_model
from fluxtalk.runtime.golden import read_golden
from fluxtalk.runtime.session_onnxruntime import OnnxRuntimeSession
from tests.conftest import Made

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2",
    reason="tritonclient, which reads the configuration, is not installed",
)
NUMPY = {"TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


def read_config(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def export(*parts: object) -> Any:
    return CliRunner().invoke(main, ["triton", *[str(part) for part in parts]])


@pytest.fixture(scope="module")
def repository(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repo"
    done = export(
        made.bundle.folder, "-o", folder, "--max_batch_size", 16, "--instances", 2, "--device", "cpu",
        "--queue-delay", 100,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "fluxtalk_image, fluxtalk_text" in done.output
    return folder


def test_config_is_what_was_asked_for(repository: Path) -> None:
    config = read_config(repository / "fluxtalk_text" / "config.pbtxt")
    assert config.name == "fluxtalk_text"
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 16
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)  # fmt: skip # noqa: E501
    kinds = model_config_pb2.DataType.Name
    inputs = {i.name: (kinds(i.data_type), list(i.dims)) for i in config.input}
    assert inputs == {"input_ids": ("TYPE_INT64", [-1]), "mask": ("TYPE_BOOL", [-1]), TOKEN_INDEX: ("TYPE_INT64", [-1])}
    outputs = {o.name: (kinds(o.data_type), list(o.dims)) for o in config.output}
    assert outputs == {"tokens": ("TYPE_FP32", [-1, 48]), "embeddings": ("TYPE_FP32", [-1, 48])}
    image = read_config(repository / "fluxtalk_image" / "config.pbtxt")
    assert [(i.name, list(i.dims)) for i in image.input] == [("pixels", [32, 32, 1]), (TOKEN_INDEX, [-1])]


def test_warm_up_requests_run_and_give_the_golden_embedding(made: Made, repository: Path) -> None:
    for modality in ("image", "text"):
        folder = repository / f"fluxtalk_{modality}"
        config = read_config(folder / "config.pbtxt")
        session = OnnxRuntimeSession(folder / "1" / "model.onnx")
        _, expected = read_golden(made.bundle, modality)
        for warmup, k in zip(config.model_warmup, (1, 4), strict=True):
            assert warmup.name == f"k={k}"
            batch: dict[str, Any] = {}
            for name, value in warmup.inputs.items():
                dtype = NUMPY[model_config_pb2.DataType.Name(value.data_type)]
                content: Any = np.fromfile(folder / "warmup" / value.input_data_file, dtype)
                batch[name] = content.reshape(warmup.batch_size, *value.dims)
            assert set(batch) == {value.name for value in config.input}
            found = session.run(batch)
            assert found["embeddings"].shape == (1, k, 48)
            assert np.abs(found["embeddings"][0] - expected["embeddings"][0, :k]).max() <= 1e-6


def test_a_batched_index_is_the_same_graph(made: Made, tmp_path: Path) -> None:
    original = onnx.load(made.bundle.graph("text"))
    before = original.SerializeToString()
    graph_files(with_batched_index(original), tmp_path, "text.onnx")
    assert original.SerializeToString() == before
    batch = sample_batch(made.run.stage1.modalities["text"].preprocess, ["snowman", "latin small letter a"])
    plain, batched = OnnxRuntimeSession(made.bundle.graph("text")), OnnxRuntimeSession(tmp_path / "text.onnx")
    for k in (1, 3):
        index = np.arange(k)
        expected = plain.run({**batch, TOKEN_INDEX: index})
        found = batched.run({**batch, TOKEN_INDEX: np.stack([index, index])})
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_plan_is_put_where_triton_looks_with_its_profiles(made: Made, tmp_path: Path) -> None:
    model = with_batched_index(onnx.load(made.bundle.graph("image")))
    options = TritonOptions(platform="tensorrt", profiles=2)
    write_model(tmp_path, made.bundle, "image", model, options, b"a plan")
    assert (tmp_path / "fluxtalk_image" / "1" / "model.plan").read_bytes() == b"a plan"
    config = read_config(tmp_path / "fluxtalk_image" / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_bad_input_is_refused_and_nothing_is_left(made: Made, tmp_path: Path) -> None:
    bundle, output = made.bundle.folder, tmp_path / "repo"
    for parts, words in (
        (("--platform", "caffe"), "onnx, tensorrt"),
        (("--device", "tpu"), "auto, gpu, cpu"),
        (("--max_batch_size", 0), "at least 1"),
        (("--prefix", "a b"), "--prefix"),
        (("--precision", "fp16"), "fp32"),
        (("--profile", "text:batch=1,2,3"), "--platform tensorrt"),
        (("--platform", "tensorrt", "--device", "cpu"), "GPU"),
        # Neither TensorRT nor a GPU is here; where both are, this would compile.
        (("--platform", "tensorrt", "--prefix", "9"), "--prefix"),
    ):
        done = export(bundle, "-o", output, *parts)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
        assert not output.exists()
    with pytest.raises(UsageError):
        TritonOptions(instances=0)
    output.mkdir()
    (output / "kept").touch()
    assert "already exists" in export(bundle, "-o", output).stderr
