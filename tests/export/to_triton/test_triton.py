"""The Triton repository, read by Triton's own protocol buffers; its graphs run as Triton would run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX, Bundle
from fluxtalk.artifacts.engine import Profile
from fluxtalk.errors import UsageError
from fluxtalk.export.cli import main
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.graph.trace import sample_batch
from fluxtalk.export.to_triton import repository as triton_repository
from fluxtalk.export.to_triton.model import with_batched_index, write_model
from fluxtalk.export.to_triton.options import TritonOptions
from tests.conftest import Made

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
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        expected = made.bundle.golden.batch[modality].expected
        for warmup, k in zip(config.model_warmup, (1, 4), strict=True):
            assert warmup.name == f"k={k}"
            batch: dict[str, Any] = {}
            for name, value in warmup.inputs.items():
                dtype = NUMPY[model_config_pb2.DataType.Name(value.data_type)]
                content: Any = np.fromfile(folder / "warmup" / value.input_data_file, dtype)
                batch[name] = content.reshape(warmup.batch_size, *value.dims)
            assert set(batch) == {value.name for value in config.input}
            (found,) = session.run(["embeddings"], batch)
            assert found.shape == (1, k, 48)
            assert np.abs(found[0] - expected["embeddings"][0, :k]).max() <= 1e-6


def test_a_batched_index_is_the_same_graph(made: Made, tmp_path: Path) -> None:
    original = onnx.load(made.bundle.graph("text"))
    before = original.SerializeToString()
    graph_files(with_batched_index(original), tmp_path, "text.onnx")
    assert original.SerializeToString() == before
    batch = sample_batch(made.run.stage1.modalities["text"].preprocess, ["snowman", "latin small letter a"])
    plain = onnxruntime.InferenceSession(made.bundle.graph("text"))
    batched = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    for k in (1, 3):
        index = np.arange(k)
        expected = plain.run(OUTPUTS, {**batch, TOKEN_INDEX: index})
        found = batched.run(OUTPUTS, {**batch, TOKEN_INDEX: np.stack([index, index])})
        for array, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, right)


def test_a_plan_is_put_where_triton_looks_with_its_profiles(made: Made, tmp_path: Path) -> None:
    model = with_batched_index(onnx.load(made.bundle.graph("image")))
    options = TritonOptions(platform="tensorrt")
    profiles: list[Profile] = [{"batch": [1, 4, 16], "k": [1, 4, 4]}, {"batch": [2, 8, 32], "k": [2, 3, 3]}]
    write_model(tmp_path, made.bundle, "image", model, options, b"a plan", profiles)
    assert (tmp_path / "fluxtalk_image" / "1" / "model.plan").read_bytes() == b"a plan"
    config = read_config(tmp_path / "fluxtalk_image" / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    # Both profiles take it.
    assert config.max_batch_size == 16
    warmups = [(w.name, w.batch_size, w.inputs[TOKEN_INDEX].dims[0]) for w in config.model_warmup]
    assert warmups == [
        ("profile0.k=1", 1, 1),
        ("profile0.k=4", 1, 4),
        ("profile1.k=2", 2, 2),
        ("profile1.k=3", 2, 3),
    ]


@pytest.mark.parametrize(("sizes", "length"), [("8,16,32", 8), ("1,1,1", 1)])
def test_warm_up_requests_and_batches_lie_within_the_profile(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: str, length: int
) -> None:
    compiled: list[str] = []

    def plan(_bundle: Bundle, modality: str, *_: object) -> bytes:
        compiled.append(modality)
        return b"a plan"

    monkeypatch.setattr(triton_repository, "_plan", plan)
    golden = made.bundle.golden.batch["text"].inputs
    real = int(golden["mask"][0].sum())
    assert 1 < real < 8
    profiles = [f"text:batch=4,16,32:length={sizes}:k=2,3,3"]
    options = TritonOptions(platform="tensorrt")
    triton_repository.write_repository(made.bundle, tmp_path / "repo", options, None, profiles)
    folder = tmp_path / "repo" / "fluxtalk_text"
    config = read_config(folder / "config.pbtxt")
    assert config.max_batch_size == 32
    assert read_config(tmp_path / "repo" / "fluxtalk_image" / "config.pbtxt").max_batch_size == 64
    assert [w.name for w in config.model_warmup] == ["k=2", "k=3"]
    for warmup, k in zip(config.model_warmup, (2, 3), strict=True):
        assert warmup.batch_size == 4
        dims = {name: list(value.dims) for name, value in warmup.inputs.items()}
        assert dims == {"input_ids": [length], "mask": [length], TOKEN_INDEX: [k]}
        mask = np.fromfile(folder / "warmup" / warmup.inputs["mask"].input_data_file, np.bool_)
        assert mask.tolist() == [position < real for position in range(length)]
        ids = np.fromfile(folder / "warmup" / warmup.inputs["input_ids"].input_data_file, np.int64)
        np.testing.assert_array_equal(ids[:real], golden["input_ids"][0, : min(real, length)])
    compiled.clear()
    with pytest.raises(UsageError, match=r"--max-batch-size 33 is more than the 32 rows.*of text take"):
        triton_repository.write_repository(
            made.bundle, tmp_path / "large", TritonOptions(platform="tensorrt", max_batch_size=33), None, profiles
        )
    assert not compiled
    assert not (tmp_path / "large").exists()


def test_bad_input_is_refused_and_nothing_is_left(made: Made, tmp_path: Path) -> None:
    bundle, output = made.bundle.folder, tmp_path / "repo"
    for parts, words in (
        (("--platform", "caffe"), "'onnx', 'tensorrt'"),
        (("--device", "tpu"), "'auto', 'gpu', 'cpu'"),
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
