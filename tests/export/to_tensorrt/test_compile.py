"""`fluxtalk-export trt`: real engines of TensorRT-RTX from real graphs, compiled without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from fluxtalk.artifacts.bundle import TOKEN_INDEX, Bundle, TensorSpec, read_bundle
from fluxtalk.artifacts.engine import EngineRecord, default_profile, find_engine, read_engines, read_plan, record_path
from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import TensorRT, choose_flavor, load_tensorrt, short_reason
from fluxtalk.errors import ArtifactError, BackendError, UsageError
from fluxtalk.export.to_tensorrt import compile as to_tensorrt
from fluxtalk.export.to_tensorrt.cli import trt
from fluxtalk.export.to_tensorrt.compile import build_engine, engine_file
from fluxtalk.export.to_tensorrt.job import BuilderOptions, CompileJob, builder_options, compile_job, default_precisions
from fluxtalk.export.to_tensorrt.network import add_profile, parse_graph
from fluxtalk.export.to_tensorrt.progress import BuildProgress
from tests.conftest import Made
from tests.export.to_tensorrt.trt_bundles import DIM, bundle_of, graph_of, kinds

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)
PRECISIONS = ("fp32", "fp16", "bf16")
without_gpu = pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU here")


@pytest.fixture(scope="module")
def api() -> TensorRT:
    return load_tensorrt("rtx")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of every encoder kind in every precision that is compiled, and in int8 of the dynamic kind."""
    graphs = {modality: graph_of(modality, kind) for modality, kind in kinds().items()}
    return bundle_of(tmp_path_factory.mktemp("kinds") / "bundle", graphs, [*PRECISIONS, "int8"])


@pytest.fixture
def own(every_kind: Bundle, tmp_path: Path) -> Bundle:
    """A copy to build engines in."""
    return read_bundle(Path(shutil.copytree(every_kind.folder, tmp_path / "bundle")))


def source(bundle: Bundle, modality: str, precision: str = "fp32") -> CompileJob:
    return compile_job(bundle, modality, precision, [default_profile(bundle.manifest, modality)])


def run(*parts: object) -> Result:
    return CliRunner().invoke(trt, [str(part) for part in parts])


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


def assert_holds(record: EngineRecord | None, folder: Path, made_from: CompileJob, dim: int) -> None:
    """The engine is there, is what its record says, and takes what its bundle says."""
    assert record is not None
    plan = (folder / record.file).read_bytes()
    assert len(plan) == record.engine_bytes > 10_000
    assert hash_bytes(plan) == record.engine_hash
    assert read_plan(folder, record) == plan
    assert record in read_engines(folder)
    assert record.graph_hash == hash_bytes(made_from.graph.read_bytes())
    assert record.profiles == made_from.profiles
    assert sorted(tensor.name for tensor in record.inputs) == sorted(spec.name for spec in made_from.inputs)
    types = {"pixels": "uint8", "input_ids": "int64", "mask": "bool", "features": "float32", "token_index": "int64"}
    assert all(tensor.dtype == types[tensor.name] for tensor in record.inputs)
    assert [(tensor.name, tensor.dtype) for tensor in record.outputs] == [(n, "float32") for n in made_from.outputs]
    assert all(tensor.shape == [-1, -1, dim] for tensor in record.outputs[:2])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("modality", sorted(kinds()))
def test_every_encoder_kind_compiles(
    api: TensorRT, every_kind: Bundle, modality: str, precision: str, tmp_path: Path
) -> None:
    """For several compute capabilities in one engine."""
    target = builder_options(api, ["12.0", "8.0", "8.9", "8.9"])
    assert target == BuilderOptions(["8.0", "8.9", "12.0"])
    made_from = source(every_kind, modality, precision)
    record = build_engine(api, made_from, target, tmp_path)
    assert_holds(record, tmp_path, made_from, DIM)
    assert record is not None
    assert record.file == engine_file(api, made_from, target)
    assert record.file.startswith(f"{modality}.{precision}.rtx-{api.version}.sm80-sm89-sm120.")
    assert record.cuda_major == api.cuda_major
    found = find_engine(tmp_path, modality, precision, "rtx", api.version, "8.9", made_from.graph_hash, api.cuda_major)
    assert found == record


@pytest.mark.parametrize("modality", sorted(kinds()))
def test_the_network_is_as_the_bundle_says(api: TensorRT, every_kind: Bundle, modality: str) -> None:
    """Names, types and profile ranges, as the library itself parsed and took them."""
    made_from = source(every_kind, modality)
    builder, network = parse_graph(api, made_from)
    profile = add_profile(api, builder, builder.create_builder_config(), made_from, made_from.profiles[0])
    sizes = made_from.profiles[0]
    trailing = {"pixels": (32, 32, 3), "features": (12,)}
    found = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    assert sorted(found) == sorted(spec.name for spec in made_from.inputs)
    for name, tensor in found.items():
        axes = {"token_index": ["k"], "pixels": ["batch"]}.get(name, ["batch", "length"])
        assert [tensor.get_dimension_name(i) for i in range(len(axes))] == axes
        expected = [(*(sizes[axis][which] for axis in axes), *trailing.get(name, ())) for which in range(3)]
        assert [tuple(shape) for shape in profile.get_shape(name)] == expected
    assert [network.get_output(i).name for i in range(network.num_outputs)] == ["tokens", "embeddings"]
    assert all(network.get_output(i).dtype == api.trt.float32 for i in range(network.num_outputs))


@pytest.mark.parametrize(
    "head",
    [
        {"num_register_tokens": 1, "num_overlapping_tokens": 1},
        {"output_projection": "per_register"},
        {"block_weights": "per_modality", "self_attention": True, "depth": 2},
    ],
)
def test_every_kind_of_head_compiles(api: TensorRT, tmp_path: Path, head: dict[str, Any]) -> None:
    tokens = head.get("num_register_tokens", 4)
    bundle = bundle_of(tmp_path / "bundle", {"sound": graph_of("sound", kinds()["sound"], **head)}, tokens=tokens)
    made_from = source(bundle, "sound")
    record = build_engine(api, made_from, builder_options(api, ["8.9"]), bundle.engines)
    assert record is not None
    assert record.profiles[0]["k"] == [1, tokens, tokens]
    assert {tensor.name: tensor.shape for tensor in record.inputs}["token_index"] == [-1 if tokens > 1 else 1]


def test_attention_maps_are_an_output(api: TensorRT, tmp_path: Path) -> None:
    graph = graph_of("sound", kinds()["sound"], attention=True)
    bundle = bundle_of(tmp_path / "bundle", {"sound": graph}, attention=True)
    made_from = source(bundle, "sound")
    record = build_engine(api, made_from, builder_options(api, ["8.9"]), bundle.engines)
    assert_holds(record, bundle.engines, made_from, DIM)
    assert record is not None
    assert record.outputs[2].name == "attention"
    assert record.outputs[2].shape == [-1, -1, -1]


@pytest.fixture(scope="module")
def compiled(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The shared run's bundle, compiled by the command line with two profiles of the text."""
    bundle = Path(shutil.copytree(made.bundle.folder, tmp_path_factory.mktemp("compiled") / "bundle"))
    return bundle, run(*command(bundle))


def command(bundle: Path) -> list[object]:
    short, long = "text:batch=1,16,128:length=1,8,12:k=1,3,4", "text:batch=1,2,4:length=12,16,24"
    return [bundle, "--flavor", "rtx", "--compute-capability", "8.9", "--profile", short, "--profile", long]


def test_the_command_compiles_a_bundle(made: Made, compiled: tuple[Path, Result]) -> None:
    bundle, done = compiled
    assert done.exit_code == 0, done.output
    records = {record.modality: record for record in read_engines(bundle / "engines")}
    assert sorted(records) == ["image", "text"]
    assert records["image"].profiles == [{"batch": [1, 8, 64], "k": [1, 4, 4]}]
    assert records["text"].profiles == [
        {"batch": [1, 16, 128], "length": [1, 8, 12], "k": [1, 3, 4]},
        {"batch": [1, 2, 4], "length": [12, 16, 24], "k": [1, 4, 4]},
    ]
    for modality, record in records.items():
        assert_holds(record, bundle / "engines", compile_job(made.bundle, modality, "fp32", record.profiles), 48)
        assert f"{record.file}: {record.engine_bytes / 1e6:.1f} MB" in done.output
    # Engines are a machine's own: the bundle is what it was.
    assert read_bundle(bundle).manifest == made.bundle.manifest


def test_nothing_is_built_twice(compiled: tuple[Path, Result]) -> None:
    bundle, _ = compiled
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (bundle / "engines").iterdir()}
    done = run(*command(bundle))
    assert done.exit_code == 0
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["up to date", "up to date"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (bundle / "engines").iterdir()} == before


def test_another_profile_makes_another_engine(api: TensorRT, own: Bundle) -> None:
    arguments = [own.folder, "--compute-capability", "8.9", "--modality", "sound", "--precision", "fp32"]
    for more in ([], ["--profile", "sound:batch=1,2,3"]):
        assert run(*arguments, *more).exit_code == 0
    first, second = sorted(read_engines(own.engines), key=lambda record: record.built_at)
    assert first.file != second.file
    assert (first.profiles[0]["batch"], second.profiles[0]["batch"]) == ([1, 8, 64], [1, 2, 3])
    assert find_engine(own.engines, "sound", "fp32", "rtx", api.version, "8.9", first.graph_hash) == second


def test_another_graph_replaces_the_engine(api: TensorRT, own: Bundle, tmp_path: Path) -> None:
    target = builder_options(api, ["8.9"])
    old = build_engine(api, source(own, "sound"), target, own.engines)
    other = bundle_of(tmp_path / "other", {"sound": graph_of("sound", kinds()["sound"], depth=2)})
    new = build_engine(api, source(other, "sound"), target, own.engines)
    assert old is not None
    assert new is not None
    assert old.file == new.file
    assert old.graph_hash != new.graph_hash
    assert read_engines(own.engines) == [new]


def test_changed_files_are_refused_and_built_again(api: TensorRT, own: Bundle) -> None:
    arguments = [own.folder, "--compute-capability", "8.9", "--modality", "sound", "--precision", "fp32"]
    assert run(*arguments).exit_code == 0
    record = read_engines(own.engines)[0]
    for path in (own.engines / record.file, record_path(own.engines, record.file)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="changed"):
            [read_plan(own.engines, found) for found in read_engines(own.engines)]
        done = run(*arguments)
        assert done.exit_code == 0
        assert "building it again" in done.stdout
        assert [read_plan(own.engines, found) for found in read_engines(own.engines)]
    graph = own.graph("sound", "fp32")
    graph.write_bytes(graph.read_bytes() + b"x")
    one_sentence(run(*arguments), 1, graph.name, "changed")


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
    for spec in (
        TensorSpec("features", "uint8", ["batch", "length", 3]),
        TensorSpec("features", "float32", ["batch", 3]),
    ):
        with pytest.raises(BackendError, match=r"has the inputs features \(float32, \[-1, -1, 3\]\).*its bundle says"):
            build_engine(api, dataclasses.replace(odd, inputs=[spec, odd.inputs[1]]), BuilderOptions(["8.9"]), tmp_path)
    one_output.graph.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot read .*odd\.onnx.*export the bundle again"):
        build_engine(api, one_output, BuilderOptions(["8.9"]), tmp_path)


def test_an_interrupted_build_leaves_nothing(
    api: TensorRT, every_kind: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives inside of a call from the builder, which must not see an exception."""

    class Interrupted(BuildProgress):
        def start(self, name: str, parent: str | None, steps: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(to_tensorrt, "BuildProgress", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(api, source(every_kind, "sound"), BuilderOptions(["8.9"]), tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_a_folder_that_cannot_be_written(own: Bundle) -> None:
    own.engines.write_text("in the way")
    done = run(own.folder, "--compute-capability", "8.9", "--modality", "sound", "--precision", "fp32")
    one_sentence(done, 1, "engines")
    assert own.engines.read_text() == "in the way"


def test_progress_of_a_real_build(
    api: TensorRT, every_kind: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    class Watched(BuildProgress):
        def step(self, name: str, step: int) -> bool:
            goes_on = super().step(name, step)
            shares.append(self.share)
            return goes_on

        def close(self) -> None:
            super().close()
            shares.append(self.share)

    monkeypatch.setattr(to_tensorrt, "BuildProgress", Watched)
    assert build_engine(api, source(every_kind, "sound"), BuilderOptions(["8.9"]), tmp_path) is not None
    assert len(set(shares)) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_phases_inside_of_phases_count_as_parts() -> None:
    state = BuildProgress("text in fp32")
    state.start("build", None, 4)
    state.start("optimize", "build", 2)
    assert state.step("optimize", 0)
    assert state.share == pytest.approx(1 / 8)
    state.start("time", "optimize", 10)
    assert state.step("time", 4)
    assert state.share == pytest.approx((1 / 2 + 1 / 4) / 4)
    state.finish("time")
    state.finish("optimize")
    assert state.step("build", 0)
    assert state.share == pytest.approx(1 / 4)
    state.cancelled = True
    assert not state.step("build", 1)
    state.finish("build")
    assert state.share == 1.0
    state.close()


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
