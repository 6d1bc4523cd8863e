"""A fake GPU: `cuda.bindings.runtime` and TensorRT's runtime, as far as a session calls them.

The lowest seam, and strict: work waits in its stream until that is synchronized, every access is checked against live
memory of the right kind, an execution context refuses shapes outside of its profile, and a recording may be replayed
only while its context is alive and unchanged. What runs is the engine's own ONNX graph, on ONNX Runtime. So whatever
passes here and fails on a GPU is the GPU's doing.

tests/runtime/backends/test_tensorrt_session.py holds the signatures against the real packages.
"""

# ruff: noqa: N802 - the names are CUDA's and TensorRT's
from __future__ import annotations

import ctypes
import enum
import json
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import EngineRecord, Flavor, Profile, TensorRecord, write_engine
from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.runtime.backends import choose as backends
from fluxtalk.runtime.backends import cuda
from fluxtalk.runtime.backends import tensorrt_session as session_tensorrt
from fluxtalk.runtime.backends.engine_shapes import EngineInput

CAPABILITY = "8.9"
VERSION = "1.2.3"
Operation = Callable[[], None]


@dataclass
class FakeCudart:
    """`cuda.bindings.runtime`, with its real enumerations."""

    real: Any
    failing: dict[str, str] = field(default_factory=dict)
    """Name of a function to the name of the error that it returns."""
    calls: Counter[str] = field(default_factory=Counter)
    memory: dict[int, tuple[str, Any]] = field(default_factory=dict)
    """Address to its kind, ``device`` or ``host``, and its bytes."""
    streams: dict[int, list[Operation]] = field(default_factory=dict)
    recording: set[int] = field(default_factory=set)
    graphs: set[int] = field(default_factory=set)
    """Recorded graphs that were not destroyed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def cudaGetDeviceCount(self) -> Any:
        return self._result("cudaGetDeviceCount", 1)

    def cudaGetErrorString(self, error: Any) -> Any:
        return self.real.cudaGetErrorString(error)

    def cudaMalloc(self, size: int) -> Any:
        return self._allocate("cudaMalloc", "device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._allocate("cudaHostAlloc", "host", size)

    def cudaFree(self, devPtr: int) -> Any:
        return self._free("device", devPtr)

    def cudaFreeHost(self, ptr: int) -> Any:
        return self._free("host", ptr)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.real.cudaStreamNonBlocking
        stream = 1000 + sum(self.calls.values())
        self.streams[stream] = []
        return self._result("cudaStreamCreateWithFlags", stream)

    def cudaStreamDestroy(self, stream: int) -> Any:
        assert not self.streams.pop(stream), "work is left in the stream"
        return self._result("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert stream not in self.recording
        waiting, self.streams[stream] = self.streams[stream], []
        for operation in waiting:
            operation()
        return self._result("cudaStreamSynchronize")

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> Any:
        kinds = self.real.cudaMemcpyKind
        to, source = {
            kinds.cudaMemcpyHostToDevice: ("device", "host"),
            kinds.cudaMemcpyDeviceToHost: ("host", "device"),
        }[kind]

        def copy() -> None:
            self.view(dst, to, count)[:] = self.view(src, source, count)

        self.streams[stream].append(copy)
        return self._result("cudaMemcpyAsync")

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert not self.streams[stream], "what is recorded must begin with nothing waiting"
        if "cudaStreamBeginCapture" not in self.failing:
            self.recording.add(stream)
        return self._result("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> Any:
        self.recording.remove(stream)
        operations, self.streams[stream] = self.streams[stream], []
        self.graphs.add(id(operations))
        return self._result("cudaStreamEndCapture", operations)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        assert id(graph) in self.graphs
        executable = list(graph)
        self.graphs.add(id(executable))
        return self._result("cudaGraphInstantiate", executable)

    def cudaGraphDestroy(self, graph: Any) -> Any:
        self.graphs.remove(id(graph))
        return self._result("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graphExec: Any) -> Any:
        self.graphs.remove(id(graphExec))
        return self._result("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> Any:
        assert id(graphExec) in self.graphs
        self.streams[stream].extend(graphExec)
        return self._result("cudaGraphLaunch")

    def view(self, address: int, kind: str, size: int) -> NDArray[np.uint8]:
        """View ``size`` live bytes at an address."""
        assert address in self.memory, f"{address} is no live memory"
        found, content = self.memory[address]
        assert found == kind, f"{address} is of the {found}, not of the {kind}"
        assert size <= len(content), f"{size} bytes of {len(content)}"
        return np.ctypeslib.as_array(content)[:size]

    @property
    def live(self) -> int:
        """Count of memory, streams and graphs that were not freed."""
        return len(self.memory) + len(self.streams) + len(self.graphs)

    def _allocate(self, name: str, kind: str, size: int) -> Any:
        if name in self.failing:
            return self._result(name, None)
        content = (ctypes.c_uint8 * size)()
        # Reading memory that nobody wrote must be noticed.
        ctypes.memset(content, 0xFF, size)
        self.memory[ctypes.addressof(content)] = (kind, content)
        return self._result(name, ctypes.addressof(content))

    def _free(self, kind: str, address: int) -> Any:
        assert self.memory.pop(address)[0] == kind
        return self._result("cudaFree")

    def _result(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.calls[name] += 1
        error = self.failing.get(name)
        if error is not None:
            return getattr(self.real.cudaError_t, error), *[None] * len(values)
        return self.real.cudaError_t.cudaSuccess, *values


class AllocationStrategy(enum.Enum):
    """`ExecutionContextAllocationStrategy` of TensorRT."""

    STATIC = 0
    USER_MANAGED = 2


class GraphStrategy(enum.Enum):
    """`CudaGraphStrategy` of TensorRT-RTX."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeTensorRT:
    """Module `tensorrt` or `tensorrt_rtx`."""

    __version__ = VERSION

    def __init__(self, cudart: FakeCudart, flavor: Flavor) -> None:
        self.cudart = cudart
        self.contexts: list[weakref.ref[FakeContext]] = []
        self.loads = True
        self.ExecutionContextAllocationStrategy = AllocationStrategy
        if flavor == "rtx":
            self.CudaGraphStrategy = GraphStrategy

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self)

    @property
    def calls(self) -> Counter[str]:
        """Calls to contexts, counted by name."""
        return self.cudart.calls


@dataclass
class FakeRuntime:
    """`Runtime`."""

    trt: FakeTensorRT

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        return FakeEngine(self.trt, serialized_engine) if self.trt.loads else None


@dataclass
class FakeRuntimeConfig:
    """`IRuntimeConfig`."""

    cuda_graph_strategy: GraphStrategy = GraphStrategy.DISABLED


class FakeEngine:
    """`ICudaEngine`, of an ONNX graph and its profiles."""

    device_memory_size_v2 = 4096

    def __init__(self, trt: FakeTensorRT, plan: bytes) -> None:
        content = json.loads(plan)
        self.trt = trt
        self.profiles: list[Profile] = content["profiles"]
        self.inputs: dict[str, EngineInput] = {
            name: EngineInput.from_dynamic(name, *rest) for name, *rest in content["inputs"]
        }
        self.session = session_of(Path(content["graph"]))
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.num_optimization_profiles = len(self.profiles)
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, strategy: Any = AllocationStrategy.STATIC) -> FakeContext:
        context = FakeContext(self, strategy)
        self.trt.contexts.append(weakref.ref(context))
        self.trt.calls["create_execution_context"] += 1
        return context


class FakeContext:
    """`IExecutionContext`."""

    def __init__(self, engine: FakeEngine, strategy: Any) -> None:
        self.engine = engine
        self.strategy = strategy
        self.active_optimization_profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.device_memory = 0
        self.busy = threading.Lock()
        self.runs = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self.engine.trt.cudart.view(memory, "device", self.engine.device_memory_size_v2)
        self.device_memory = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile = profile_index
        self.shapes = {}
        return 0 <= profile_index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        axes = self.engine.inputs[name].axes
        profile = self.engine.profiles[self.active_optimization_profile]
        self.shapes[name] = tuple(shape)
        return len(axes) == len(shape) and all(
            size == axis if isinstance(axis, int) else profile[axis][0] <= size <= profile[axis][2]
            for axis, size in zip(axes, shape, strict=True)
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {n: np.zeros(self.shapes[n], tensor.dtype) for n, tensor in self.engine.inputs.items()}
        return self.engine.session.run([name], zeros)[0].shape  # type: ignore[no-any-return]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.engine.trt.calls["set_tensor_address"] += 1
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cudart = self.engine, self.engine.trt.cudart
        if set(self.shapes) != set(engine.inputs) or set(self.addresses) != {*engine.inputs, *engine.outputs}:
            return False
        assert self.strategy is not AllocationStrategy.USER_MANAGED or self.device_memory in cudart.memory
        recorded = stream_handle in cudart.recording
        shapes, addresses, profile = dict(self.shapes), dict(self.addresses), self.active_optimization_profile
        assert not recorded or self.runs, "a shape runs once before it is recorded"
        alive = weakref.ref(self)

        def compute() -> None:
            context = alive()
            assert context is not None, "the execution context is gone"
            assert context.busy.acquire(blocking=False), "two threads run one context"
            now = context.shapes, context.addresses, context.active_optimization_profile
            assert not recorded or now == (shapes, addresses, profile), "the context has changed since it was recorded"
            context.runs += 1
            given = {}
            for name, tensor in engine.inputs.items():
                size = int(np.prod(shapes[name])) * tensor.dtype.itemsize
                given[name] = cudart.view(addresses[name], "device", size).view(tensor.dtype).reshape(shapes[name])
            for name, value in zip(engine.outputs, engine.session.run(engine.outputs, given), strict=True):
                cudart.view(addresses[name], "device", value.nbytes)[:] = value.reshape(-1).view(np.uint8)
            context.busy.release()

        cudart.streams[stream_handle].append(compute)
        return True


@dataclass
class FakeGpu:
    """Fake CUDA and fake TensorRT libraries."""

    cudart: FakeCudart
    flavors: dict[str, TensorRT]

    def put_engine(
        self, bundle: Bundle, modality: str, profiles: list[Profile], flavor: Flavor, precision: str = "fp32"
    ) -> EngineRecord:
        """Write an engine of a bundle's graph into its folder of engines."""
        graph = bundle.graph(modality, precision)
        tensors = session_of(graph)
        names = {"tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(uint8)": "uint8", "tensor(float)": "float32"}
        inputs, outputs = (
            [TensorRecord(t.name, names[t.type], [d if isinstance(d, int) else -1 for d in t.shape]) for t in found]
            for found in (tensors.get_inputs(), tensors.get_outputs())
        )
        plan = json.dumps(
            {"graph": str(graph), "profiles": profiles, "inputs": [[t.name, t.dtype, t.shape] for t in inputs]}
        ).encode()
        record = EngineRecord(
            modality=modality,
            precision=precision,
            flavor=flavor,
            version=VERSION,
            cuda_major=None,
            compute_capabilities=[CAPABILITY],
            profiles=profiles,
            version_compatible=False,
            graph_hash=bundle.graph_hash(modality, precision),
            inputs=inputs,
            outputs=outputs,
            engine_hash=hash_bytes(plan),
            engine_bytes=len(plan),
        )
        write_engine(bundle.engines, plan, record)
        return record

    def contexts(self, flavor: Flavor) -> list[FakeContext]:
        """List the execution contexts that are alive."""
        found = (reference() for reference in self.flavors[flavor].trt.contexts)
        return [context for context in found if context is not None]


def session_of(graph: Path) -> onnxruntime.InferenceSession:
    """Open a graph on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Replace driver, CUDA and both flavors of TensorRT."""
    cudart = FakeCudart(pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed"))
    flavors = {flavor: TensorRT(flavor, FakeTensorRT(cudart, flavor), None, deque()) for flavor in ("tensorrt", "rtx")}
    for module in (session_tensorrt, backends):
        monkeypatch.setattr(module, "load_tensorrt", flavors.__getitem__)
        monkeypatch.setattr(module, "compute_capability", lambda: CAPABILITY)
    monkeypatch.setattr(cuda, "import_cudart", lambda: cudart)
    monkeypatch.setattr(backends, "_importable", lambda module: True)
    return FakeGpu(cudart, flavors)
