"""What `fluxtalk-export trt` refuses: one sentence, by name, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fluxtalk.artifacts.bundle import TOKEN_INDEX, Bundle, TensorSpec
from fluxtalk.artifacts.engine import read_engines
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import TensorRT, choose_flavor, short_reason
from fluxtalk.errors import BackendError, UsageError
from fluxtalk.export.to_tensorrt.compile import build_engine
from fluxtalk.export.to_tensorrt.job import BuilderOptions, CompileJob, builder_options, default_precisions
from tests.export.to_tensorrt.commands import one_sentence, run, source
from tests.export.to_tensorrt.trt_bundles import bundle_of, kinds

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)


without_gpu = pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU here")


def test_int8_for_the_cpu_is_left_out_or_refused(own: Bundle) -> None:
    assert default_precisions(own) == ["fp32", "fp16", "bf16"]
    done = run(own.folder, "--compute-capability", "8.9", "--modality", "text", "--precision", "int8")
    one_sentence(done, 2, "text in int8", "DynamicQuantizeLinear", "fp32, fp16, bf16")
    assert not own.engines.exists()


def test_calibrated_int8_is_refused_with_what_to_compile_instead(
    api: TensorRT, every_kind: Bundle, tmp_path: Path
) -> None:
    """ONNX Runtime's scales are not symmetric."""
    kind = kinds()["photo"]
    batch = kind.preprocess.collate([kind.preprocess.prepare(item) for item in kind.items])
    calibration = [{**batch, TOKEN_INDEX: np.arange(4)}]
    graph = onnx.load(every_kind.graph("photo", "fp32"))
    bundle = bundle_of(tmp_path / "bundle", {"photo": graph}, ["int8"], "static", calibration)
    with pytest.raises(BackendError, match=r"photo in int8: node .*uantizeLinear.*compile fp16 or bf16 instead"):
        build_engine(api, source(bundle, "photo", "int8"), BuilderOptions(["8.9"]), tmp_path)
    done = run(bundle.folder, "--compute-capability", "8.9")
    one_sentence(done, 2, "holds int8", "name a --precision")


def test_turing_takes_float16_alone(api: TensorRT, every_kind: Bundle, tmp_path: Path) -> None:
    target = builder_options(api, ["7.5"])
    assert build_engine(api, source(every_kind, "text", "fp16"), target, tmp_path) is not None
    with pytest.raises(
        BackendError, match=r"cannot compile text in fp32 for compute capability 7\.5.*FP32.*--precision"
    ):
        build_engine(api, source(every_kind, "text"), target, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_graph_that_fails_keeps_no_other_from_being_compiled(own: Bundle) -> None:
    """Turing has no float32 products; float16 compiles."""
    arguments = [own.folder, "--compute-capability", "7.5", "--modality", "sound"]
    done = run(*arguments, "--precision", "fp32", "--precision", "fp16")
    one_sentence(done, 1, "cannot compile sound in fp32")
    assert "sound in fp32: failed" in done.stdout
    assert [record.precision for record in read_engines(own.engines)] == ["fp16"]
    done = run(*arguments, "--modality", "pooled", "--precision", "fp32", "--precision", "fp16")
    one_sentence(done, 1, "2 of 4 engines could not be built")
    assert "cannot compile sound in fp32" in done.stderr
    assert "cannot compile pooled in fp32" in done.stderr
    assert sorted(record.modality for record in read_engines(own.engines)) == ["pooled", "sound"]
    assert len(list(own.engines.iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--flavor", "tensorrt-rtx", "--timing-cache", "x", "--compute-capability", "8.9"],
            2,
            ["--timing-cache", "RTX"],
        ),
        (["--version-compatible", "--compute-capability", "8.9"], 2, ["--version-compatible", "TensorRT-RTX"]),
        (["--compute-capability", "9.0"], 2, ["9.0", "8.0, 8.6, 8.9, 12.0", "--flavor tensorrt"]),
        (["--compute-capability", "89"], 2, ["'89'", "8.9"]),
        (["--compute-capability", "8.9", "--modality", "smell"], 2, ["smell", "sound"]),
        (["--compute-capability", "8.9", "--profile", "sound:k=1,2,9"], 2, ["sound:k=1,2,9", "4 register tokens"]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    every_kind: Bundle, arguments: list[str], code: int, words: list[str]
) -> None:
    one_sentence(run(every_kind.folder, *arguments), code, *words)
    assert not every_kind.engines.exists()


def test_an_unknown_choice_is_refused_with_the_choices(every_kind: Bundle) -> None:
    for name, value, choices in (
        ("--precision", "fp8", "'fp32', 'fp16', 'bf16', 'int8'"),
        ("--flavor", "cuda", "'auto', 'tensorrt', 'tensorrt-rtx'"),
    ):
        done = run(every_kind.folder, name, value)
        assert done.exit_code == 2
        assert f"'{value}' is not one of {choices}." in done.stderr


@without_gpu
def test_without_a_gpu_one_must_be_named(every_kind: Bundle) -> None:
    one_sentence(run(every_kind.folder, "--flavor", "tensorrt-rtx"), 1, "No NVIDIA GPU", "--compute-capability", "8.9")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_flavor_that_is_not_installed(every_kind: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    one_sentence(run(every_kind.folder, "--flavor", "tensorrt"), 1, "TensorRT", "not installed", "pip install tensorrt")
    assert choose_flavor("auto", named_gpus=False) == "rtx"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="Neither tensorrt nor tensorrt_rtx is installed"):
        choose_flavor("auto", named_gpus=True)


def test_the_flavor_follows_from_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert choose_flavor("auto", named_gpus=False) == "tensorrt"
    assert choose_flavor("auto", named_gpus=True) == "rtx"
    assert choose_flavor("tensorrt", named_gpus=True) == "tensorrt"
    assert choose_flavor("tensorrt-rtx", named_gpus=False) == choose_flavor("rtx", named_gpus=False) == "rtx"
    with pytest.raises(UsageError, match="auto, tensorrt or tensorrt-rtx"):
        choose_flavor("cuda", named_gpus=False)


def test_flavor_tensorrt_takes_the_gpu_that_it_finds(api: TensorRT) -> None:
    """The checks of that flavor, which ask nothing of its library but the names of its flags."""
    tensorrt = TensorRT("tensorrt", api.trt, api.logger, api.errors)
    with pytest.raises(UsageError, match=r"--compute-capability belongs to --flavor tensorrt-rtx"):
        builder_options(tensorrt, ["8.9"])
    if compute_capability() is None:
        with pytest.raises(BackendError, match="no NVIDIA GPU is found here; run this there, or name GPUs"):
            builder_options(tensorrt)


def broken(folder: Path, node: onnx.NodeProto, outputs: int = 2) -> CompileJob:
    """A graph of one node more than TensorRT takes."""
    names = ["tokens", "embeddings"][:outputs]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", "length", 3])
    index = helper.make_tensor_value_info("token_index", TensorProto.INT64, ["k"])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    nodes = [node, *(helper.make_node("Identity", ["found"], [name]) for name in names)]
    graph = helper.make_graph(nodes, "g", [features, index], results)
    path = folder / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    profile = {"batch": [1, 1, 1], "length": [1, 1, 1], "k": [1, 1, 1]}
    inputs = [TensorSpec("features", "float32", ["batch", "length", 3]), TensorSpec("token_index", "int64", ["k"])]
    return CompileJob("sound", "fp32", path, "0", inputs, ["tokens", "embeddings"], [profile])


def test_an_operator_that_tensorrt_lacks_is_named(api: TensorRT, tmp_path: Path) -> None:
    odd = broken(tmp_path, helper.make_node("Unique", ["features"], ["found"], name="encoder/rare_one"))
    words = r"cannot take sound in fp32: node 'encoder/rare_one', operator Unique: it does not support.*ONNX Runtime"
    with pytest.raises(BackendError, match=words):
        build_engine(api, odd, BuilderOptions(["8.9"]), tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_a_node_that_tensorrt_does_not_take_is_named_with_the_reason(api: TensorRT, tmp_path: Path) -> None:
    half = helper.make_node("Mul", ["features", "token_index"], ["found"], name="mixed")
    with pytest.raises(BackendError, match=r"node 'mixed', operator Mul: .*type"):
        build_engine(api, broken(tmp_path, half), BuilderOptions(["8.9"]), tmp_path)


def test_a_graph_that_is_not_what_its_bundle_says(api: TensorRT, tmp_path: Path) -> None:
    one_output = broken(tmp_path, helper.make_node("Relu", ["features"], ["found"]), outputs=1)
    with pytest.raises(BackendError, match=r"outputs tokens \(float32, .*its bundle says .*tokens, embeddings"):
        build_engine(api, one_output, BuilderOptions(["8.9"]), tmp_path)
    odd = broken(tmp_path, helper.make_node("Relu", ["features"], ["found"]))
    others = TensorSpec("features", "uint8", ["batch", "length", 3]), TensorSpec("features", "float32", ["batch", 3])
    for spec in others:
        with pytest.raises(BackendError, match=r"has the inputs features \(float32, \[-1, -1, 3\]\).*its bundle says"):
            build_engine(api, dataclasses.replace(odd, inputs=[spec, odd.inputs[1]]), BuilderOptions(["8.9"]), tmp_path)
    one_output.graph.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot read .*odd\.onnx.*export the bundle again"):
        build_engine(api, one_output, BuilderOptions(["8.9"]), tmp_path)


def test_a_folder_that_cannot_be_written(own: Bundle) -> None:
    own.engines.write_text("in the way")
    done = run(own.folder, "--compute-capability", "8.9", "--modality", "sound", "--precision", "fp32")
    one_sentence(done, 1, "engines")
    assert own.engines.read_text() == "in the way"


def test_complaints_are_shortened_to_what_they_say() -> None:
    assert (
        short_reason(
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile 'x' for "
            "Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/optimizer/codeGenerator.cpp:2012)"
        )
        == "Cannot compile 'x' for Turing (SM75): FP32 GEMM is not supported"
    )
    assert short_reason("plain words.\nmore") == "plain words"
    assert short_reason("") == "it gives no reason"
