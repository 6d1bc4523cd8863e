"""`ExecutionSlot`: one thread's part of a TensorRT session.

A slot has a stream, a buffer per tensor and the execution contexts that use them. Buffers are bound once, and again
only after they grew.

CUDA graphs: launching one recording replaces the launches of every kernel, which take most of a small batch's time.

- `tensorrt`: a shape is recorded when it comes a second time, after one plain run, on an execution context of its own,
  because a recording reads its context's state. The contexts of a slot never run at the same time, and share one
  activation memory. The least recently used recording is dropped first.
- `rtx` recompiles kernels in the background for shapes that it has met, so it makes its recordings itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fluxtalk.arrays import Arrays, Floats
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.errors import BackendError, InputError
from fluxtalk.runtime.backends.cuda import Buffer, Cuda
from fluxtalk.runtime.backends.engine_shapes import AxisSizes, EngineInputs, write_padded

MAX_GRAPHS = 32
"""Recordings that a slot keeps."""
_FLOAT_BYTES = 4
_MAX_KNOWN_SHAPES = 256
"""Input shapes whose output shapes a slot keeps."""

ShapeKey = tuple[int, tuple[int, ...]]
"""Number of a profile, and the sizes of its axes."""
OutputShapes = dict[str, tuple[int, ...]]
"""Name of an output to its shape."""


@dataclass
class _BoundContext:
    """An execution context, and the state that it was last given."""

    context: Any
    key: ShapeKey | None = None
    """Profile and sizes that it is set to."""
    addresses: int = -1
    """Version of the buffers' addresses that it is bound to."""
    graph: Any = None
    """CUDA graph recorded on it."""


class ExecutionSlot:
    """Stream, buffers and execution contexts with which one thread at a time runs an engine.

    Args:
        engine: deserialized engine.
        inputs: its inputs and profiles.
        outputs: names of its outputs.
        graphs: record repeated shapes; batches and lengths are then padded to one of few sizes.

    Raises:
        BackendError: the GPU has no room, or fails.
    """

    def __init__(
        self, library: TensorRT, engine: Any, cuda: Cuda, inputs: EngineInputs, outputs: Sequence[str], graphs: bool
    ) -> None:
        self._library = library
        self._engine = engine
        self._cuda = cuda
        self._inputs = inputs
        self._native_graphs = hasattr(library.trt, "CudaGraphStrategy")
        self._graphs = graphs
        self.graph_failure: str | None = None
        """Error of a recording that failed, after which nothing is recorded."""
        self._buffers = {name: Buffer(cuda) for name in (*inputs.tensors, *outputs)}
        self._outputs = tuple(outputs)
        self._addresses = 0
        self._recorded: OrderedDict[ShapeKey, _BoundContext] = OrderedDict()
        self._known_shapes: OrderedDict[ShapeKey, OutputShapes] = OrderedDict()
        self._memory = self._stream = 0
        self._plain = _BoundContext(None)
        try:
            self._stream = cuda.create_stream()
            if self._own_graphs:
                self._memory = cuda.allocate(self._memory_size)
            self._plain.context = self._context()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Arrays, sizes: AxisSizes, outputs: Sequence[str]) -> dict[str, Floats]:
        """Run one batch that a profile takes.

        Args:
            inputs: arrays that `EngineInputs.sizes` accepted, with the token index.
            sizes: size of each axis.
            outputs: names of those to return, float32.

        Raises:
            InputError: the size of a wanted output depends on the length, which the profile would pad.
            BackendError: the GPU fails.
        """
        exact = not set(outputs) <= set(OUTPUTS)
        profile, padded = self._inputs.choose_profile(sizes, rounded=self._graphs and not exact)
        if exact and padded.get("length") != sizes.get("length"):
            raise InputError(
                f"The engine of {self._inputs.modality} gives {', '.join(outputs)} of lengths from "
                f"{padded['length']} on; got {sizes['length']}: build one for smaller lengths."
            )
        key = (profile, tuple(padded.values()))
        again = key in self._known_shapes
        shapes = self._shapes(key, padded)
        self._grow(padded, shapes)
        for name, tensor in self._inputs.tensors.items():
            write_padded(self._buffers[name].array(tensor.shape(padded), tensor.dtype), inputs[name], name)
        copied = {name: shapes[name] for name in (outputs if exact else OUTPUTS)}
        if self._own_graphs and again and not exact:
            self._run_recorded(key, padded, copied)
        else:
            self._enqueue(self._plain, key, padded, copied)
        self._cuda.synchronize(self._stream)
        whole = {name: self._buffers[name].array(copied[name], np.dtype(np.float32)) for name in outputs}
        return {name: array[: sizes["batch"], : sizes["k"]].copy() for name, array in whole.items()}

    def close(self) -> None:
        """Free streams and memory; nothing may be running."""
        self._drop_recordings()
        self._plain = _BoundContext(None)
        for buffer in self._buffers.values():
            buffer.close()
        if self._memory:
            self._cuda.free(self._memory)
        if self._stream:
            self._cuda.destroy_stream(self._stream)
        self._memory = self._stream = 0

    @property
    def _own_graphs(self) -> bool:
        return self._graphs and not self._native_graphs and self.graph_failure is None

    @property
    def _memory_size(self) -> int:
        return max(256, int(self._engine.device_memory_size_v2))

    def _run_recorded(self, key: ShapeKey, sizes: AxisSizes, copied: OutputShapes) -> None:
        """Launch a shape's recording, or make it if there is none yet."""
        if key in self._recorded:
            self._recorded.move_to_end(key)
            self._cuda.launch(self._recorded[key].graph, self._stream)
            return
        bound = _BoundContext(self._context())
        # The first run on a new shape sets things up that must not be recorded. It gives the results.
        self._enqueue(bound, key, sizes, copied)
        self._cuda.synchronize(self._stream)
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(bound, key, sizes, copied)
            except BaseException:
                self._cuda.abandon_capture(self._stream)
                raise
            bound.graph = self._cuda.end_capture(self._stream)
        except BackendError as error:
            # The engine also runs without recordings; `describe` reports it.
            self.graph_failure = str(error).rstrip(".")
            return
        if len(self._recorded) >= MAX_GRAPHS:
            self._release(self._recorded.popitem(last=False)[1])
        self._recorded[key] = bound

    def _enqueue(self, bound: _BoundContext, key: ShapeKey, sizes: AxisSizes, copied: OutputShapes) -> None:
        """Enqueue copying the inputs, running, and copying the outputs."""
        self._set(bound, key, sizes)
        self._bind(bound)
        for name, tensor in self._inputs.tensors.items():
            buffer = self._buffers[name]
            size = tensor.dtype.itemsize * prod(tensor.shape(sizes))
            self._cuda.to_device(buffer.device, buffer.host, size, self._stream)
        self._require(bound.context.execute_async_v3(self._stream), "run the engine")
        for name, shape in copied.items():
            buffer = self._buffers[name]
            self._cuda.to_host(buffer.host, buffer.device, _FLOAT_BYTES * prod(shape), self._stream)

    def _set(self, bound: _BoundContext, key: ShapeKey, sizes: AxisSizes) -> None:
        """Set a context's profile and input shapes, if they changed."""
        if bound.key == key:
            return
        profile = key[0]
        context = bound.context
        bound.key = None
        if context.active_optimization_profile != profile:
            self._require(context.set_optimization_profile_async(profile, self._stream), "change the profile")
            self._cuda.synchronize(self._stream)
            bound.addresses = -1
        for name, tensor in self._inputs.tensors.items():
            shape = tensor.shape(sizes)
            self._require(context.set_input_shape(name, shape), f"take {name} of shape {shape}")
        bound.key = key

    def _bind(self, bound: _BoundContext) -> None:
        """Give a context the buffers' addresses, if they changed."""
        if bound.addresses == self._addresses:
            return
        for name, buffer in self._buffers.items():
            self._require(bound.context.set_tensor_address(name, buffer.device), f"bind {name}")
        bound.addresses = self._addresses

    def _shapes(self, key: ShapeKey, sizes: AxisSizes) -> OutputShapes:
        """Ask the plain context for every output's shape, once per key."""
        if key not in self._known_shapes:
            self._set(self._plain, key, sizes)
            context = self._plain.context
            shapes = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in self._outputs}
            self._require(all(min(shape) >= 0 for shape in shapes.values()), "tell the outputs' shapes")
            self._known_shapes[key] = shapes
            if len(self._known_shapes) > _MAX_KNOWN_SHAPES:
                self._known_shapes.popitem(last=False)
        self._known_shapes.move_to_end(key)
        return self._known_shapes[key]

    def _grow(self, sizes: AxisSizes, shapes: OutputShapes) -> None:
        """Make the buffers large enough for a batch. Every output has one, wanted or not: a context writes them all."""
        inputs = self._inputs.tensors.items()
        needed = {name: tensor.dtype.itemsize * prod(tensor.shape(sizes)) for name, tensor in inputs}
        needed |= {name: _FLOAT_BYTES * prod(shape) for name, shape in shapes.items()}
        # At least doubled: slowly growing batches must not move the buffers every time.
        small = {name: buffer for name, buffer in self._buffers.items() if buffer.size < needed[name]}
        for name, buffer in small.items():
            buffer.grow(max(needed[name], 2 * buffer.size))
        if small:
            self._addresses += 1
            self._drop_recordings()

    def _context(self) -> Any:
        trt = self._library.trt
        engine = self._engine
        if self._graphs and self._native_graphs:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        elif self._graphs:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.STATIC)
        self._require(context is not None, "make an execution context")
        if self._memory:
            context.set_device_memory(self._memory, self._memory_size)
        return context

    def _drop_recordings(self) -> None:
        """Drop every recording: each holds the buffers' addresses."""
        for bound in self._recorded.values():
            self._release(bound)
        self._recorded.clear()

    def _release(self, bound: _BoundContext) -> None:
        self._cuda.destroy_graph(bound.graph)
        bound.graph = bound.context = None

    def _require(self, worked: Any, what: str) -> None:
        if not worked:
            raise BackendError(
                f"{self._library.name} could not {what} ({self._library.last_error()}); build the engine again, or "
                "serve with another backend."
            )
