"""Sessions on a real GPU. Collected everywhere, and skipped with the reason if there is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import FLAVORS, Flavor
from fluxtalk.datasets import PairDataset
from fluxtalk.devices.tensorrt_api import MODULES, load_tensorrt
from fluxtalk.errors import BackendError
from fluxtalk.export.options import DEFAULT_OPSET, ExportOptions
from fluxtalk.export.to_tensorrt.compile import build_engine
from fluxtalk.export.to_tensorrt.job import builder_options, compile_job
from fluxtalk.export.to_tensorrt.profiles import profiles_of
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.runtime import load
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.options import NATIVE, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession
from fluxtalk.runtime.verify import verify_sessions
from fluxtalk.scoring.parity import TOLERANCES, Tolerance, embedding_difference, token_difference
from tests.conftest import Made

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]

PRECISIONS = ("fp32", "fp16", "bf16")
MODALITIES = ("image", "text")
NAMES = {flavor: name for name, flavor in NATIVE.items()}


@pytest.fixture(scope="module")
def bundle(made: Made, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export the shared run in every precision of GPUs; it is untrained, so quality gates are off."""
    options = ExportOptions(PRECISIONS, allow_quality_loss=True)
    return write_bundle(made.run, table_data, tmp_path_factory.mktemp("gpu") / "bundle", options)


@pytest.fixture(scope="module", params=FLAVORS)
def flavor(request: pytest.FixtureRequest, bundle: Bundle) -> Flavor:
    """Installed flavor, with an engine of every graph."""
    name: Flavor = request.param
    for module in (MODULES[name], "cuda"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    api = load_tensorrt(name)
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    if name == "rtx" and capability not in api.named_capabilities:
        pytest.skip(f"{api.name} knows no compute capability {capability}")
    target, profiles = builder_options(api), profiles_of(bundle, MODALITIES, ())
    for modality in MODALITIES:
        for precision in PRECISIONS:
            build_engine(api, compile_job(bundle, modality, precision, profiles[modality]), target, bundle.engines)
    return name


def provider(backend: str, folder: Path) -> None:
    """Skip if a backend of ONNX Runtime does not start: it also lists providers whose libraries are missing."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", DEFAULT_OPSET)], ir_version=10)
    (folder / "twice.onnx").write_bytes(model.SerializeToString())
    try:
        OnnxRuntimeSession(folder / "twice.onnx", backend).close()
    except BackendError as error:
        pytest.skip(str(error))


def batches(bundle: Bundle, modality: str) -> Iterator[dict[str, Any]]:
    """Yield batches of several sizes and lengths, one with more rows than an engine takes."""
    golden = bundle.golden.batch[modality].inputs
    rng = np.random.default_rng(0)
    count = len(next(iter(golden.values())))
    longest = bundle.manifest.modalities[modality].preprocess.get("max_length", 1)
    for size in (1, 2, 8, 33, 70):
        taken = {name: array[rng.integers(0, count, size)] for name, array in golden.items()}
        if "mask" not in taken:
            yield taken
            continue
        for length in sorted({1, 3, longest}):
            repeats = -(-length // taken["mask"].shape[1])
            ids = np.concatenate([taken["input_ids"]] * repeats, axis=1)[:, :length]
            mask = np.arange(length) < rng.integers(1, length + 1, (size, 1))
            yield {"input_ids": np.where(mask, ids, 0), "mask": mask}


def require_parity(made: Made, bundle: Bundle, modality: str, session: Session, tolerance: Tolerance) -> None:
    """Compare golden vectors, and every batch twice with eager PyTorch, for every k."""
    for report in verify_sessions(bundle, lambda _: session, [modality]):
        assert report.difference.violations(tolerance) == [], report
    eager = made.run.embedder(modality)
    for batch in batches(bundle, modality):
        tokens, embeddings = eager.embed_arrays(batch, 4)
        for k in (1, 2, 3, 4, 4, 1):
            found = session.run(batch, k)
            difference = embedding_difference(found["embeddings"], embeddings[:, :k])
            assert difference.violations(tolerance) == [], (
                k,
                {n: a.shape for n, a in batch.items()},
                session.describe(),
            )
            if tolerance.tokens is not None:
                assert token_difference(found["tokens"], tokens[:, :k]) <= tolerance.tokens


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_native_engines_equal_eager(
    made: Made, bundle: Bundle, flavor: Flavor, modality: str, precision: str, graphs: bool
) -> None:
    session = TensorRTSession(bundle, modality, precision, flavor, cuda_graphs=graphs)
    require_parity(made, bundle, modality, session, TOLERANCES[precision])
    assert session.describe().endswith(f"CUDA graphs {'on' if graphs else 'off'})")
    session.close()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_recorded_shape_gives_the_same_every_time(bundle: Bundle, flavor: Flavor, modality: str) -> None:
    with_graphs, without = (TensorRTSession(bundle, modality, "fp32", flavor, cuda_graphs=g) for g in (True, False))
    for batch in batches(bundle, modality):
        plain = without.run(batch, 4)
        for _ in range(4):
            recorded = with_graphs.run(batch, 4)
            for name, array in plain.items():
                np.testing.assert_allclose(recorded[name], array, atol=1e-5, rtol=1e-5)
    for session in (with_graphs, without):
        session.close()


def test_threads_get_what_one_gets(bundle: Bundle, flavor: Flavor) -> None:
    session = TensorRTSession(bundle, "text", "fp32", flavor)
    inputs = list(batches(bundle, "text"))
    ks = [1 + i % 4 for i in range(len(inputs))]
    expected = [session.run(batch, k)["embeddings"] for batch, k in zip(inputs, ks, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, right in zip(pool.map(session.run, inputs, ks), expected, strict=True):
                np.testing.assert_allclose(found["embeddings"], right, atol=1e-5)
    session.close()


def test_closing_gives_the_memory_back(bundle: Bundle, flavor: Flavor) -> None:
    inputs = next(iter(batches(bundle, "text")))

    def load_and_run() -> int:
        session = TensorRTSession(bundle, "text", "fp16", flavor)
        for _ in range(3):
            session.run(inputs, 4)
        session.close()
        return int(torch.cuda.mem_get_info()[0])

    load_and_run()
    free = load_and_run()
    for _ in range(5):
        load_and_run()
    assert load_and_run() >= free - 16e6


def test_auto_takes_the_engines(made: Made, bundle: Bundle, flavor: Flavor) -> None:
    # `auto` takes the first flavor that has engines.
    assert choose(bundle, BackendOptions()).backend in NATIVE
    with load(bundle.folder, NAMES[flavor], verify=True) as embedder:
        assert embedder.precision == "fp16"
        assert embedder.embed("text", ["black chess queen"]).shape == (1, 48)


@pytest.fixture(scope="module")
def ort_cuda(tmp_path_factory: pytest.TempPathFactory) -> None:
    provider("ort-cuda", tmp_path_factory.mktemp("ort-cuda"))


@pytest.fixture(scope="module")
def ort_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> None:
    provider("ort-tensorrt", tmp_path_factory.mktemp("ort-tensorrt"))


@pytest.mark.usefixtures("ort_cuda")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_onnxruntime_on_cuda_equals_eager(made: Made, bundle: Bundle, modality: str, precision: str) -> None:
    session = open_session(bundle, modality, BackendOptions("ort-cuda", precision))
    require_parity(made, bundle, modality, session, TOLERANCES[precision])


@pytest.mark.usefixtures("ort_tensorrt")
@pytest.mark.parametrize("modality", MODALITIES)
def test_onnxruntime_keeps_its_engines(made: Made, bundle: Bundle, modality: str) -> None:
    """Float32 engines of this provider multiply in TF32, which no option turns off."""
    require_parity(
        made,
        bundle,
        modality,
        open_session(bundle, modality, BackendOptions("ort-tensorrt", "fp32")),
        TOLERANCES["tf32"],
    )
    folder = bundle.engines / "ort-tensorrt" / bundle.graph_hash(modality, "fp32")[:16]
    written = modified(folder)
    assert any(name.endswith(".engine") for name in written)
    again = open_session(bundle, modality, BackendOptions("ort-tensorrt", "fp32"))
    again.run(next(iter(batches(bundle, modality))), 2)
    engines = {name for name in written if name.endswith(".engine")}
    assert {name: time for name, time in modified(folder).items() if name in engines} == {
        name: written[name] for name in engines
    }


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
