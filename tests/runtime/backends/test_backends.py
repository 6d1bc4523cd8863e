"""Choice of a backend, and the options that each library is given."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from fluxtalk.artifacts.bundle import Bundle, PrecisionEntry, read_bundle, write_manifest
from fluxtalk.artifacts.engine import Profile
from fluxtalk.cli import main
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, InputError, UsageError
from fluxtalk.runtime import load
from fluxtalk.runtime.backends import choose as backends
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.open_sessions import compiled_inputs, open_session
from fluxtalk.runtime.backends.options import BACKENDS, BackendOptions
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession
from fluxtalk.scoring.parity import TOLERANCES
from tests.conftest import Made
from tests.runtime.backends.fake_gpu import FakeGpu
from tests.runtime.memory import growth, needs_proc

PROFILES: dict[str, Profile] = {
    "image": {"batch": [1, 4, 64], "k": [1, 4, 4]},
    "text": {"batch": [1, 4, 64], "length": [1, 8, 32], "k": [1, 4, 4]},
}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "compute_capability", lambda: None)


def in_precisions(made: Made, folder: Path, *precisions: str) -> Bundle:
    """Copy the shared bundle, naming its one graph by these precisions; no test here runs a half precision graph."""
    shutil.copytree(made.bundle.folder, folder)
    manifest = made.bundle.manifest
    entries = {
        name: dataclasses.replace(entry, graphs=dict.fromkeys(precisions, entry.graphs["fp32"]))
        for name, entry in manifest.modalities.items()
    }
    tolerances = {name: PrecisionEntry(TOLERANCES[name]) for name in precisions}
    write_manifest(folder, dataclasses.replace(manifest, modalities=entries, precisions=tolerances))
    return read_bundle(folder)


def providers(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"])


def test_on_the_cpu_it_is_onnxruntime_in_the_first_precision_that_runs(
    made: Made, tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "openvino_installed", lambda: False)
    choice = choose(made.bundle, BackendOptions())
    assert (choice.backend, choice.precision) == ("ort-cpu", "fp32")
    assert choice.reason == "chosen because this ONNX Runtime has no CUDA"
    bundle = in_precisions(made, tmp_path / "bundle", "bf16", "fp16", "fp32")
    assert [choose(bundle, BackendOptions(precision=name)).precision for name in (None, "fp16", "fp32")] == [
        "fp16",
        "fp16",
        "fp32",
    ]
    for backend in ("auto", "ort-cpu"):
        with pytest.raises(BackendError, match=r"bf16 does not run on the CPU provider.*ask for fp16 or fp32"):
            choose(bundle, BackendOptions(backend, "bf16"))
    with pytest.raises(UsageError, match="holds the precisions bf16, fp16, fp32; got 'int8'"):
        choose(bundle, BackendOptions("auto", "int8"))
    with pytest.raises(UsageError, match="backend is one of auto, ort-cpu, ort-cuda, ort-tensorrt, tensorrt, tenso"):
        choose(bundle, BackendOptions("cuda"))
    with pytest.raises(BackendError, match="export the run again with --precision fp32"):
        choose(in_precisions(made, tmp_path / "half", "bf16"), BackendOptions())


def test_a_gpu_prefers_half_precision_and_native_engines(
    made: Made, tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = in_precisions(made, tmp_path / "bundle", "fp32", "bf16", "fp16")
    providers(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")

    def chosen(backend: str = "auto", precision: str | None = None, *modalities: str) -> tuple[str, str]:
        choice = choose(bundle, BackendOptions(backend, precision), modalities or None)
        return choice.backend, choice.precision

    assert chosen() == ("ort-cuda", "fp16")
    assert "tensorrt was passed over: No engine in" in choose(bundle, BackendOptions()).reason
    assert chosen("ort-cuda", "fp32") == ("ort-cuda", "fp32")
    assert chosen("ort-tensorrt") == ("ort-tensorrt", "fp16")
    assert choose(in_precisions(made, tmp_path / "two", "bf16", "fp32"), BackendOptions()).precision == "fp32"
    with pytest.raises(
        BackendError, match=r"text in fp16 for tensorrt-rtx.*there is none of them.*fluxtalk-export trt"
    ):
        choose(bundle, BackendOptions("tensorrt-rtx", None), ["text"])
    # An engine of one modality runs only that one.
    gpu.put_engine(bundle, "text", [PROFILES["text"]], "rtx", "fp32")
    assert chosen() == ("ort-cuda", "fp16")
    assert chosen("auto", None, "text") == ("tensorrt-rtx", "fp32")
    gpu.put_engine(bundle, "image", [PROFILES["image"]], "rtx", "fp32")
    assert chosen() == ("tensorrt-rtx", "fp32")
    assert chosen("auto", "fp16") == ("ort-cuda", "fp16")
    for modality, profile in PROFILES.items():
        gpu.put_engine(bundle, modality, [profile], "rtx", "bf16")
        gpu.put_engine(bundle, modality, [profile], "tensorrt", "fp32")
    assert chosen() == ("tensorrt", "fp32")
    assert chosen("tensorrt-rtx") == ("tensorrt-rtx", "bf16")
    assert chosen("tensorrt-rtx", "fp32") == ("tensorrt-rtx", "fp32")
    assert choose(bundle, BackendOptions()).reason == f"chosen because {bundle.engines} has engines for this GPU"


@pytest.fixture
def cuda_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same happens with onnxruntime-gpu and a driver, but without CUDA's libraries."""
    providers(monkeypatch, "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder(started=False))
    monkeypatch.setattr(backends, "openvino_installed", lambda: False)
    monkeypatch.setattr(backends, "_native_backends", lambda: iter(()))
    monkeypatch.setattr(backends, "compute_capability", lambda: "8.9")


def test_auto_goes_on_where_cuda_does_not_start_and_says_why(made: Made, cuda_does_not_start: None) -> None:
    with load(made.bundle.folder) as embedder:
        assert embedder.embed("text", ["snowman"]).shape == (1, 48)
        described = embedder.describe()
    assert "text: ort-cpu" in described
    assert (
        "chosen because CUDA does not start; ort-cuda was passed over: ONNX Runtime could not start CUDA" in described
    )
    with pytest.raises(BackendError, match="could not start CUDAExecutionProvider"):
        load(made.bundle.folder, "ort-cuda")


def test_auto_takes_cuda_only_where_there_is_a_gpu(
    made: Made, cuda_does_not_start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(made.bundle, BackendOptions()).backend == "ort-cuda"
    monkeypatch.setattr(backends, "compute_capability", lambda: None)
    choice = choose(made.bundle, BackendOptions())
    assert (choice.backend, choice.reason) == ("ort-cpu", "chosen because there is no NVIDIA GPU here")


def test_what_onnxruntime_prints_of_cuda_is_no_answer(
    made: Made, cuda_does_not_start: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"), raising=False)
    with pytest.raises(BackendError):
        open_session(made.bundle, "text", BackendOptions("ort-cuda", "fp32"))
    printed = capsys.readouterr()
    assert (printed.out, "libcudnn" in printed.err) == ("", True)


def test_an_engine_that_does_not_load_is_passed_over_by_auto_alone(
    made: Made, tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "openvino_installed", lambda: False)
    bundle = in_precisions(made, tmp_path / "bundle", "fp32")
    for modality, profile in PROFILES.items():
        gpu.put_engine(bundle, modality, [profile], "tensorrt")
    gpu.flavors["tensorrt"].trt.loads = False
    with load(bundle.folder) as embedder:
        assert "image: ort-cpu" in embedder.describe()
        assert "tensorrt was passed over: TensorRT 1.2.3 cannot load the engine" in embedder.describe()
    with pytest.raises(BackendError, match="cannot load the engine"):
        load(bundle.folder, "tensorrt")
    assert gpu.cudart.live == 0


def test_a_bundle_with_engines_is_served_by_them(
    made: Made, table_data: PairDataset, tmp_path: Path, gpu: FakeGpu
) -> None:
    bundle = in_precisions(made, tmp_path / "bundle", "fp32")
    for modality, profile in PROFILES.items():
        gpu.put_engine(bundle, modality, [profile], "tensorrt")
    items = {modality: list(table_data.split("test").items[modality].values)[:9] for modality in PROFILES}
    with load(bundle.folder, verify=True) as embedder, load(bundle.folder, "ort-cpu") as reference:
        assert isinstance(embedder.session("text"), TensorRTSession)
        assert "has engines for this GPU" in embedder.describe()
        for modality in PROFILES:
            for k in (1, 3, 4):
                found, expected = (e.embed(modality, items[modality], k) for e in (embedder, reference))
                np.testing.assert_allclose(found, expected, atol=2e-6)
    assert gpu.cudart.live == 0
    # Sessions that were opened before a refusal are closed.
    (bundle.engines / gpu.put_engine(bundle, "text", [PROFILES["text"]], "tensorrt").file).write_bytes(b"{}")
    with pytest.raises(Exception, match="was changed since it was built"):
        load(bundle.folder, "tensorrt", modalities=["image", "text"])
    assert gpu.cudart.live == 0


def test_what_is_named_and_missing_is_refused(made: Made, no_gpu: None) -> None:
    for backend, provider in (("ort-cuda", "CUDA"), ("ort-tensorrt", "Tensorrt")):
        with pytest.raises(BackendError, match=f"{backend} needs ONNX Runtime's {provider}ExecutionProvider"):
            load(made.bundle.folder, backend)
    assert not made.bundle.engines.exists()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1.* needs an NVIDIA GPU and its driver.*ort-cpu"):
        load(made.bundle.folder, "tensorrt-rtx")


class Recorder:
    """Stand-in for `InferenceSession` that keeps its arguments and runs on the CPU."""

    def __init__(self, started: bool = True) -> None:
        self.started = started
        self.made: list[tuple[Any, list[Any], dict[str, Any]]] = []
        self.real = onnxruntime.InferenceSession

    def __call__(self, path: str, options: Any, providers: list[Any], **more: Any) -> Any:
        self.made.append((options, providers, more))
        session = self.real(path, options, providers=["CPUExecutionProvider"])
        if self.started:
            session.get_providers = lambda: [p if isinstance(p, str) else p[0] for p in providers]
        return session


def test_what_onnxruntime_is_given(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorder)
    providers(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    bundle = in_precisions(made, tmp_path / "bundle", "fp32", "fp16", "bf16")
    for backend, precision in (("ort-cpu", "fp32"), ("ort-cuda", "fp16"), ("ort-tensorrt", "fp32")):
        open_session(bundle, "text", BackendOptions(backend, precision, threads=1))
        assert bundle.engines.exists() == (backend == "ort-tensorrt")
    open_session(bundle, "image", BackendOptions("ort-tensorrt", "bf16", threads=1))
    on_cpu, on_cuda, on_tensorrt, in_bf16 = recorder.made
    assert on_cpu[1] == ["CPUExecutionProvider"]
    assert (on_cpu[0].enable_cpu_mem_arena, on_cpu[0].enable_mem_pattern) == (True, False)
    assert [more.pop("disabled_optimizers") for _, _, more in recorder.made] == [
        ("SkipLayerNormFusion",),
        None,
        None,
        None,
    ]
    assert all(more == {"enable_fallback": 0} for _, _, more in recorder.made)
    cuda = ("CUDAExecutionProvider", on_cuda[1][0][1])
    assert on_cuda[1] == [cuda]
    assert cuda[1]["use_tf32"] == "0"
    assert cuda[1]["arena_extend_strategy"] == "kSameAsRequested"
    cache = str(bundle.engines / "ort-tensorrt" / bundle.graph_hash("text", "fp32")[:16])
    assert on_tensorrt[1] == [
        (
            "TensorrtExecutionProvider",
            {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": cache,
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": cache,
                "trt_profile_min_shapes": "input_ids:1x1,mask:1x1,token_index:1",
                "trt_profile_opt_shapes": "input_ids:8x32,mask:8x32,token_index:4",
                "trt_profile_max_shapes": "input_ids:64x32,mask:64x32,token_index:4",
            },
        ),
        cuda,
    ]
    options = in_bf16[1][0][1]
    assert options["trt_bf16_enable"] == options["trt_layer_norm_fp32_fallback"] == "True"
    assert options["trt_profile_max_shapes"] == "pixels:64x32x32x1,token_index:4"
    assert options["trt_engine_cache_path"] != cache
    assert "trt_fp16_enable" not in options


def test_a_provider_that_does_not_start_is_an_error(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder(started=False))
    providers(monkeypatch, "CUDAExecutionProvider")
    with pytest.raises(BackendError, match=r"could not start CUDAExecutionProvider.*and took CPUExecutionProvider"):
        OnnxRuntimeSession(made.bundle.graph("text"), "ort-cuda")


def test_batches_beyond_the_compiled_profile(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorder)
    providers(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    bundle = in_precisions(made, tmp_path / "bundle", "fp32")
    session = open_session(bundle, "text", BackendOptions("ort-tensorrt", "fp32", threads=1))
    case = bundle.golden.batch["text"]
    golden, expected = case.inputs, case.expected
    inputs = {name: np.concatenate([array] * 4) for name, array in golden.items()}
    assert len(inputs["mask"]) > 128
    found = session.run(inputs, 4)
    np.testing.assert_allclose(found["embeddings"], np.concatenate([expected["embeddings"]] * 4), atol=2e-6)
    longer = {name: np.pad(a, [(0, 0), (0, 40)]) if a.ndim > 1 else a for name, a in inputs.items()}
    with pytest.raises(InputError, match="length 1 to 32, k 1 to 4; got batch"):
        session.run(longer, 4)
    assert compiled_inputs(bundle, "image").profiles[0] == {"batch": [1, 8, 64], "k": [1, 4, 4]}


@needs_proc
def test_the_cpu_gives_memory_back(made: Made) -> None:
    """By default ONNX Runtime keeps 548 MB after the large batch, with these settings 130 to 190 MB."""
    assert growth(OnnxRuntimeSession, made.bundle.graph("image")) < 300e6


def test_every_command_that_serves_takes_backend_and_precision(made: Made, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["embed", str(made.bundle.folder), "text", "alpha", "--precision", "fp16", "-o", str(tmp_path / "v.npy")]
    )
    assert done.exit_code == 2
    assert "holds the precision fp32; got 'fp16'" in done.stderr
    for command in (["embed"], ["index", "build"], ["index", "search"]):
        shown = CliRunner().invoke(main, [*command, "--help"]).output
        assert "--precision" in shown
        assert all(backend in shown.replace("\n", "").replace(" ", "") for backend in BACKENDS)
