"""The fake GPU has the signatures of the real libraries, and CUDA takes the types that it is given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fluxtalk.devices.gpu import compute_capability
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.cuda import Cuda
from tests.export.to_tensorrt.trt_usage import dump
from tests.runtime.backends import fake_gpu
from tests.runtime.backends.fake_gpu import FakeGpu


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU here")
def test_without_a_driver_one_sentence_says_so() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU and its driver, and CUDA finds none"):
        Cuda()


def test_the_fake_has_the_signatures_of_cuda(gpu: FakeGpu) -> None:
    real = gpu.cudart.real
    names = [name for name in vars(fake_gpu.FakeCudart) if name.startswith("cuda")]
    assert len(names) == 16
    for name in names:
        mine = list(inspect.signature(getattr(gpu.cudart, name)).parameters)
        assert mine == list(inspect.signature(getattr(real, name)).parameters), name


@pytest.mark.skipif(compute_capability() is not None, reason="made-up addresses must not reach a real driver")
def test_cuda_takes_the_types_that_it_is_given() -> None:
    real: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    graph, executable = real.cudaGraph_t(), real.cudaGraphExec_t()
    mode = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    for name, arguments in {
        "cudaGetDeviceCount": (),
        "cudaMalloc": (256,),
        "cudaFree": (256,),
        "cudaHostAlloc": (256, real.cudaHostAllocDefault),
        "cudaFreeHost": (256,),
        "cudaStreamCreateWithFlags": (real.cudaStreamNonBlocking,),
        "cudaStreamDestroy": (256,),
        "cudaStreamSynchronize": (256,),
        "cudaMemcpyAsync": (256, 512, 8, real.cudaMemcpyKind.cudaMemcpyHostToDevice, 256),
        "cudaStreamBeginCapture": (256, mode),
        "cudaStreamEndCapture": (256,),
        "cudaGraphInstantiate": (graph, 0),
        "cudaGraphDestroy": (graph,),
        "cudaGraphLaunch": (executable, 256),
        "cudaGraphExecDestroy": (executable,),
    }.items():
        error = getattr(real, name)(*arguments)[0]
        assert error in (real.cudaError_t.cudaErrorInsufficientDriver, real.cudaError_t.cudaErrorNoDevice), name
    assert int(real.cudaStream_t(4096)) == 4096
    assert real.cudaGetErrorString(real.cudaError_t.cudaErrorNoDevice)[1].decode()


def test_the_fake_has_the_signatures_of_tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    api = dump("tensorrt_rtx")
    for fake, name in (
        (fake_gpu.FakeRuntime, "Runtime"),
        (fake_gpu.FakeEngine, "ICudaEngine"),
        (fake_gpu.FakeContext, "IExecutionContext"),
    ):
        for member, value in vars(fake).items():
            if member.startswith("_") or not inspect.isfunction(value):
                continue
            mine = list(inspect.signature(value).parameters)[1:]
            assert any(signature["names"] == mine for signature in api[name][member]["signatures"]), (name, member)
