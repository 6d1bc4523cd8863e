"""`fluxtalk-export trt`: real engines of TensorRT-RTX from real graphs, compiled without a GPU."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.engine import EngineRecord, find_engine, read_engines, read_plan, record_path
from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.errors import ArtifactError
from fluxtalk.export.to_tensorrt.compile import build_engine, engine_file
from fluxtalk.export.to_tensorrt.job import BuilderOptions, CompileJob, builder_options, compile_job
from fluxtalk.export.to_tensorrt.network import add_profile, parse_graph
from tests.conftest import Made
from tests.export.to_tensorrt.commands import one_sentence, run, source
from tests.export.to_tensorrt.conftest import PRECISIONS, RARE
from tests.export.to_tensorrt.trt_bundles import DEEP, DIM, bundle_of, graph_of, kinds

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)


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


# Each mechanism, and every precision of one kind: how a precision is compiled does not depend on the kind.
@pytest.mark.parametrize(
    ("modality", "precision"),
    [
        pytest.param(
            kind,
            precision,
            marks=[] if kind not in RARE and (precision == "fp32" or kind == "text") else pytest.mark.slow,
        )
        for kind in sorted(kinds())
        for precision in PRECISIONS
    ],
)
def test_every_encoder_kind_compiles(
    api: TensorRT, bundle: Bundle, modality: str, precision: str, tmp_path: Path
) -> None:
    """For several compute capabilities in one engine."""
    target = builder_options(api, ["12.0", "8.0", "8.9", "8.9"])
    assert target == BuilderOptions(["8.0", "8.9", "12.0"])
    made_from = source(bundle, modality, precision)
    record = build_engine(api, made_from, target, tmp_path)
    assert_holds(record, tmp_path, made_from, DIM)
    assert record is not None
    assert record.file == engine_file(api, made_from, target)
    assert record.file.startswith(f"{modality}.{precision}.rtx-{api.version}.sm80-sm89-sm120.")
    assert record.cuda_major == api.cuda_major
    found = find_engine(tmp_path, modality, precision, "rtx", api.version, "8.9", made_from.graph_hash, api.cuda_major)
    assert found == record


@pytest.mark.parametrize(
    "modality", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in RARE)) for kind in sorted(kinds())]
)
def test_the_network_is_as_the_bundle_says(api: TensorRT, bundle: Bundle, modality: str) -> None:
    """Names, types and profile ranges, as the library itself parsed and took them."""
    made_from = source(bundle, modality)
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
        DEEP,
        {"mean_path": "mlp", "regions": "sound=1+2x2"},
    ],
    ids=["one token", "deep", "regions"],
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
    graph = graph_of("pooled", kinds()["pooled"], attention=True)
    bundle = bundle_of(tmp_path / "bundle", {"pooled": graph}, attention=True)
    made_from = source(bundle, "pooled")
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
    return [bundle, "--flavor", "tensorrt-rtx", "--compute-capability", "8.9", "--profile", short, "--profile", long]


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
    other = bundle_of(tmp_path / "other", {"sound": graph_of("sound", kinds()["sound"], **DEEP)})
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
