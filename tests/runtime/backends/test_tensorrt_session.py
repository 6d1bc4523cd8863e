"""`TensorRTSession` on a fake GPU; `test_gpu_sessions` runs it on a real one."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxtalk.artifacts.bundle import OUTPUTS, Bundle, read_bundle
from fluxtalk.artifacts.engine import Flavor, Profile, read_plan, write_engine
from fluxtalk.artifacts.files import hash_bytes, write_atomically
from fluxtalk.errors import ArtifactError, BackendError, InputError
from fluxtalk.runtime import load
from fluxtalk.runtime.backends import execution_slot as trt_slot
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession
from fluxtalk.runtime.verify import padding_room, replay
from fluxtalk.scoring.parity import EXPORT_TOLERANCE
from fluxtalk.tokens import ATTENTION
from tests.conftest import Made
from tests.export.to_tensorrt.trt_bundles import bundle_of, graph_of, kinds
from tests.runtime.backends import fake_gpu
from tests.runtime.backends.fake_gpu import FakeGpu

BOTH: tuple[Flavor, ...] = ("tensorrt", "rtx")


WIDE: Profile = {"batch": [1, 8, 128], "length": [1, 16, 32], "k": [1, 4, 4]}


@pytest.fixture
def bundle(made: Made, tmp_path: Path) -> Iterator[Bundle]:
    """Copy the shared bundle, to write engines into."""
    shutil.copytree(made.bundle.folder, tmp_path / "bundle")
    yield read_bundle(tmp_path / "bundle")
    gc.collect()  # What is still alive below is a leak.


def without_length(profile: Profile) -> Profile:
    return {axis: sizes for axis, sizes in profile.items() if axis != "length"}


def texts(batch: int, length: int, k: int = 4, seed: int = 0) -> tuple[dict[str, Any], int]:
    """Draw random texts, and the k to run them with."""
    rng = np.random.default_rng([seed, batch, length])
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    ids = np.where(mask, rng.integers(1, 60, (batch, length)), 0)
    return {"input_ids": ids, "mask": mask}, k


# Every pair of two of the three; the other combinations of all three are slow.
@pytest.mark.parametrize(
    ("modality", "flavor", "graphs"),
    [
        pytest.param(m, f, graphs, marks=[] if ((m == "text") == (f == "rtx")) == graphs else pytest.mark.slow)
        for m in ("image", "text")
        for f in BOTH
        for graphs in (True, False)
    ],
)
def test_golden_vectors_hold_for_every_k_again_and_again(
    gpu: FakeGpu, bundle: Bundle, flavor: Flavor, modality: str, graphs: bool
) -> None:
    longest = bundle.manifest.modalities["text"].preprocess["max_length"]
    profile = {**WIDE, "length": [4, 8, longest]} if modality == "text" else without_length(WIDE)
    gpu.put_engine(bundle, modality, [profile], flavor)
    session = TensorRTSession(bundle, modality, "fp32", flavor, cuda_graphs=graphs)
    case = bundle.golden.batch[modality]
    room = padding_room(bundle.manifest.modalities[modality].max_length, case.inputs)
    for _ in range(3):
        for report in replay(modality, "fp32", session, case, EXPORT_TOLERANCE, room):
            report.require()
    launched = gpu.cudart.calls["cudaGraphLaunch"]
    assert launched > 20 if graphs and flavor == "tensorrt" else launched == 0
    strategies = {getattr(context.strategy, "cuda_graph_strategy", None) for context in gpu.contexts(flavor)}
    native = fake_gpu.GraphStrategy.WHOLE_GRAPH_CAPTURE if graphs and flavor == "rtx" else None
    assert strategies == {native}
    assert f"CUDA graphs {'on' if graphs else 'off'}" in session.describe()
    session.close()
    gc.collect()
    assert (gpu.cudart.live, gpu.contexts(flavor)) == (0, [])


@pytest.mark.parametrize("modality", ["pooled", "photo"])
def test_every_kind_of_input_and_attention(gpu: FakeGpu, tmp_path: Path, modality: str) -> None:
    kind = kinds()[modality]
    bundle = bundle_of(tmp_path / "bundle", {modality: graph_of(modality, kind, attention=True)}, attention=True)
    batch = kind.preprocess.collate([kind.preprocess.prepare(item) for item in kind.items])
    profile = {**WIDE, "length": [2, 8, 20]} if "mask" in batch else without_length(WIDE)
    gpu.put_engine(bundle, modality, [profile], "tensorrt")
    session = TensorRTSession(bundle, modality, "fp32", "tensorrt")
    reference = OnnxRuntimeSession(bundle.graph(modality))
    for outputs in (OUTPUTS, [*OUTPUTS, ATTENTION], [ATTENTION], OUTPUTS, OUTPUTS):
        found, expected = session.run(batch, 3, outputs), reference.run(batch, 3, outputs)
        assert list(found) == list(outputs)
        for name in outputs:
            assert found[name].shape == expected[name].shape
            np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
    if "mask" in batch:
        short = {name: array[:, :1] for name, array in batch.items()}
        found, expected = session.run(short, 3), reference.run(short, 3)
        np.testing.assert_allclose(found["embeddings"], expected["embeddings"], atol=2e-6)
        with pytest.raises(InputError, match="of lengths from 2 on; got 1"):
            session.run(short, 3, [ATTENTION])


def test_a_batch_takes_the_tightest_profile_and_large_ones_go_in_parts(gpu: FakeGpu, bundle: Bundle) -> None:
    profiles: list[Profile] = [
        {"batch": [1, 8, 16], "length": [8, 16, 64], "k": [2, 4, 4]},
        {"batch": [1, 1, 2], "length": [1, 4, 8], "k": [1, 1, 2]},
        {"batch": [1, 8, 16], "length": [1, 4, 8], "k": [1, 4, 4]},
    ]
    gpu.put_engine(bundle, "text", profiles, "tensorrt")
    session = TensorRTSession(bundle, "text", "fp32", "tensorrt", cuda_graphs=False)
    reference = OnnxRuntimeSession(bundle.graph("text", "fp32"))
    (context,) = gpu.contexts("tensorrt")
    for inputs, profile, shape in (
        (texts(1, 3, 1), 1, (1, 3)),
        (texts(2, 8, 2), 1, (2, 8)),
        (texts(3, 8, 2), 2, (3, 8)),
        (texts(1, 8, 3), 2, (1, 8)),
        (texts(3, 14, 1), 0, (3, 14)),
        (texts(16, 5, 4), 2, (16, 5)),
        (texts(35, 5, 4), 2, (3, 5)),
        (texts(35, 14, 1), 0, (3, 14)),
    ):
        found, expected = session.run(*inputs), reference.run(*inputs)
        assert (context.active_optimization_profile, context.shapes["mask"]) == (profile, shape)
        for name in OUTPUTS:
            np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
    assert len(gpu.contexts("tensorrt")) == 1


def test_sizes_beyond_every_profile_and_wrong_inputs_are_refused(gpu: FakeGpu, bundle: Bundle) -> None:
    profile: Profile = {"batch": [1, 2, 4], "length": [4, 8, 12], "k": [1, 2, 3]}
    gpu.put_engine(bundle, "text", [profile], "tensorrt")
    session = TensorRTSession(bundle, "text", "fp32", "tensorrt")
    for wrong in (texts(1, 13, 1), texts(1, 5, 4)):
        with pytest.raises(InputError, match="batch 1 to 4, length 4 to 12, k 1 to 3; got batch 1") as refused:
            session.run(*wrong)
        assert "--profile text:" in str(refused.value)
    right, k = texts(2, 5, 2)
    for changed, message in (
        ({"mask": right["mask"][:1]}, "mask as bool"),
        ({"mask": right["mask"].astype(np.int64)}, r"got int64 \(2, 5\)"),
        ({"input_ids": right["input_ids"][0]}, "input_ids as int64"),
        ({"pixels": right["mask"]}, "takes the inputs input_ids, mask, token_index"),
    ):
        with pytest.raises(InputError, match=message):
            session.run({**right, **changed}, k)
    with pytest.raises(InputError, match="does not give attention"):
        session.run(right, k, [ATTENTION])
    assert session.run(right, k)["tokens"].shape == (2, 2, 48)
    assert session.run({name: array[:0] for name, array in right.items()}, k)["tokens"].shape == (0, 2, 48)


def test_buffers_are_bound_once_and_again_when_they_have_grown(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.put_engine(bundle, "text", [WIDE], "tensorrt")
    session = TensorRTSession(bundle, "text", "fp32", "tensorrt", cuda_graphs=False)
    session.run(*texts(8, 16))
    calls = gpu.cudart.calls
    bound, allocated = calls["set_tensor_address"], calls["cudaMalloc"]
    assert (bound, allocated) == (5, 5)
    for batch in range(1, 9):
        session.run(*texts(batch, 16, 1 + batch % 4))
    assert (calls["set_tensor_address"], calls["cudaMalloc"]) == (bound, allocated)
    for batch in range(9, 17):
        session.run(*texts(batch, 16))
    # All buffers but that of the token positions grew once, to twice their size.
    assert (calls["set_tensor_address"], calls["cudaMalloc"]) == (10, 9)
    assert len(gpu.cudart.memory) == 10


def test_shapes_are_recorded_when_they_come_again_and_the_oldest_goes(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_slot, "MAX_GRAPHS", 2)
    gpu.put_engine(bundle, "text", [WIDE], "tensorrt")
    session = TensorRTSession(bundle, "text", "fp32", "tensorrt")
    calls = gpu.cudart.calls
    session.run(*texts(100, 30))  # so that nothing grows below
    begun: list[int] = []
    for batch in (1, 1, 1, 2, 2, 2, 3, 3, 2, 1, 3):
        session.run(*texts(batch, 7))
        begun.append(calls["cudaStreamBeginCapture"])
    # The third shape replaces the first, which is then recorded again and replaces the third.
    assert begun == [0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5]
    assert calls["cudaGraphLaunch"] == 3
    assert len(gpu.cudart.graphs) == 2
    # One of the contexts is the plain one.
    gc.collect()
    assert len(gpu.contexts("tensorrt")) == 3
    # Near sizes share a recording: 33 to 40 rows are 40, 17 to 20 words are 20.
    before = calls["cudaStreamBeginCapture"]
    for batch, length in ((33, 17), (40, 18), (37, 20), (34, 19)):
        session.run(*texts(batch, length))
    assert calls["cudaStreamBeginCapture"] == before + 1
    assert calls["cudaGraphLaunch"] == 5
    # Moving buffers drops the recordings.
    session.run(*texts(128, 32))
    assert len(gpu.cudart.graphs) == 0


@pytest.mark.parametrize("failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_where_nothing_can_be_recorded_the_engine_runs_without(gpu: FakeGpu, bundle: Bundle, failing: str) -> None:
    gpu.put_engine(bundle, "text", [WIDE], "tensorrt")
    session = TensorRTSession(bundle, "text", "fp32", "tensorrt")
    gpu.cudart.failing[failing] = "cudaErrorStreamCaptureUnsupported"
    reference = OnnxRuntimeSession(bundle.graph("text", "fp32")).run(*texts(5, 9))
    for _ in range(4):
        found = session.run(*texts(5, 9))
        np.testing.assert_allclose(found["embeddings"], reference["embeddings"], atol=2e-6)
    assert gpu.cudart.calls[failing] == 1
    assert "CUDA graphs off, because CUDA reports cudaErrorStreamCaptureUnsupported" in session.describe()


@pytest.mark.parametrize("flavor", BOTH)
def test_threads_share_a_few_slots(gpu: FakeGpu, bundle: Bundle, flavor: Flavor) -> None:
    gpu.put_engine(bundle, "text", [WIDE], flavor)
    session = TensorRTSession(bundle, "text", "fp32", flavor, slots=3)
    reference = OnnxRuntimeSession(bundle.graph("text", "fp32"))
    batches = [texts(1 + i % 5, 3 + i % 4, 1 + i % 4, seed=i) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for batch, found in zip(batches, pool.map(lambda batch: session.run(*batch), batches), strict=True):
            np.testing.assert_allclose(found["tokens"], reference.run(*batch)["tokens"], atol=1e-5)
    assert 1 <= len(gpu.cudart.streams) <= 3
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(*batches[0])
    gc.collect()
    assert (gpu.cudart.live, gpu.contexts(flavor)) == (0, [])


def test_a_gpu_that_fails_gives_a_sentence_and_leaves_nothing(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.put_engine(bundle, "text", [WIDE], "tensorrt")
    gpu.cudart.failing["cudaMalloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(BackendError, match="memory does not suffice"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")
    assert gpu.cudart.live == 0
    gpu.cudart.failing = {"cudaGetDeviceCount": "cudaErrorNoDevice"}
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU and its driver.*cudaErrorNoDevice"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")
    gpu.cudart.failing = {}
    gpu.flavors["tensorrt"].errors.append("the plan is of another device")
    gpu.flavors["tensorrt"].trt.loads = False
    with pytest.raises(BackendError, match=r"cannot load the engine .* another device.*build it again"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")


def test_an_engine_that_does_not_fit_or_was_changed_is_never_loaded(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="there is none of them"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")
    record = gpu.put_engine(bundle, "text", [WIDE], "rtx")
    with pytest.raises(BackendError, match="of flavor tensorrt-rtx"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")
    monkeypatch.setattr(type(gpu.flavors["rtx"].trt), "__version__", "1.2.4")
    with pytest.raises(BackendError, match=r"of version 1\.2\.3"):
        TensorRTSession(bundle, "text", "fp32", "rtx")
    monkeypatch.undo()
    fresh = fake_gpu.fake_gpu(monkeypatch)
    monkeypatch.setattr("fluxtalk.runtime.backends.tensorrt_session.compute_capability", lambda: "12.0")
    with pytest.raises(BackendError, match=r"compute capability 12\.0.*for compute capability 8\.9"):
        TensorRTSession(bundle, "text", "fp32", "rtx")
    monkeypatch.setattr("fluxtalk.runtime.backends.tensorrt_session.compute_capability", lambda: fake_gpu.CAPABILITY)
    TensorRTSession(bundle, "text", "fp32", "rtx").close()
    engine = bundle.engines / record.file
    write_atomically(engine, engine.read_bytes()[:-1] + b" ")
    with pytest.raises(ArtifactError, match="was changed since it was built"):
        TensorRTSession(bundle, "text", "fp32", "rtx")
    assert fresh.cudart.live == 0


class CarefulRuntime(fake_gpu.FakeRuntime):
    """Runtime that refuses engines with code of their own until that is allowed, as the real one does."""

    engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> fake_gpu.FakeEngine | None:
        allowed = self.engine_host_code_allowed or not json.loads(serialized_engine).get("host_code")
        return super().deserialize_cuda_engine(serialized_engine) if allowed else None


def test_engines_that_bring_code_run_only_where_that_is_allowed(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_runtimes: list[CarefulRuntime] = []

    def make_runtime(trt: fake_gpu.FakeTensorRT, _logger: object) -> CarefulRuntime:
        made_runtimes.append(CarefulRuntime(trt))
        return made_runtimes[-1]

    monkeypatch.setattr(fake_gpu.FakeTensorRT, "Runtime", make_runtime)
    plain = gpu.put_engine(bundle, "text", [WIDE], "tensorrt")
    plan = json.dumps({**json.loads(read_plan(bundle.engines, plain)), "host_code": True}).encode()
    TensorRTSession(bundle, "text", "fp32", "tensorrt", allow_host_code=True).close()
    # Host code is not allowed for an engine without any.
    assert [runtime.engine_host_code_allowed for runtime in made_runtimes] == [False]
    for file in list(bundle.engines.iterdir()):
        file.unlink()
    record = dataclasses.replace(plain, engine_hash=hash_bytes(plan), engine_bytes=len(plan), version_compatible=True)
    write_engine(bundle.engines, plan, record)
    with pytest.raises(BackendError, match=r"code of its own that must be allowed \(allow_host_code\)"):
        TensorRTSession(bundle, "text", "fp32", "tensorrt")
    with load(bundle.folder, "tensorrt", modalities=["text"], allow_host_code=True) as embedder:
        assert embedder.embed("text", ["snowman"]).shape == (1, 48)
    assert [runtime.engine_host_code_allowed for runtime in made_runtimes] == [False, True]
    with pytest.raises(BackendError, match="must be allowed"):
        load(bundle.folder, "tensorrt", modalities=["text"])
