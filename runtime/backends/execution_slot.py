"""One thread's part of a TensorRT session: a stream, a buffer per tensor, and the execution contexts that use them.

Buffers are bound once and bound again only where they have grown.

CUDA graphs: a launch of one recording replaces the launches of every kernel, which is most of a small batch's time.

- `tensorrt`: a recording is made for a shape that comes a second time, after one plain run, on an execution context of
  its own, because a context's state is part of what a recording reads. The contexts of a lane never run at the same
  time, and share one activation memory. The least recently used recording goes first.
- `rtx` recompiles kernels for shapes that it has met while it serves, so it makes its recordings itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.errors import BackendError, InputError
from fluxtalk.runtime.backends.cuda import Buffer, Cuda
from fluxtalk.runtime.backends.engine_shapes import Layout, Sizes, write_padded
from fluxtalk.runtime.backends.session import Arrays

GRAPHS = 32
"""Recordings of a lane."""
_FLOAT = 4
_REMEMBERED = 256
"""Shapes of a lane of which something is remembered."""

Key = tuple[int, tuple[int, ...]]
"""Profile, and the sizes of its axes."""
Shapes = dict[str, tuple[int, ...]]
"""Output to its shape."""


@dataclass
class _Bound:
    """An execution context, and what it was told last."""

    context: Any
    key: Key | None = None
    addresses: int = -1
    """Which addresses of the buffers it knows."""
    graph: Any = None
    """Its recording."""


class Lane:
    """What one thread needs to run an engine.

    Args:
        engine: deserialized.
        layout: its inputs and profiles.
        outputs: the names of its outputs.
        graphs: whether repeated shapes are recorded; batches and lengths are then padded to one of few sizes.

    Raises:
        BackendError: the GPU has no room, or fails.
    """

    def __init__(
        self, library: TensorRT, engine: Any, cuda: Cuda, layout: Layout, outputs: Sequence[str], graphs: bool
    ) -> None:
        self._library = library
        self._engine = engine
        self._cuda = cuda
        self._layout = layout
        self._native_graphs = hasattr(library.trt, "CudaGraphStrategy")
        self._graphs = graphs
        self.graph_failure: str | None = None
        """Why nothing is recorded, where that was tried and failed."""
        self._buffers = {name: Buffer(cuda) for name in (*layout.inputs, *outputs)}
        self._outputs = tuple(outputs)
        self._addresses = 0
        self._recorded: OrderedDict[Key, _Bound] = OrderedDict()
        self._met: OrderedDict[Key, Shapes] = OrderedDict()
        self._memory = self._stream = 0
        self._plain = _Bound(None)
        try:
            self._stream = cuda.create_stream()
            if self._own_graphs:
                self._memory = cuda.allocate(self._memory_size)
            self._plain.context = self._context()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Arrays, sizes: Sizes, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Run one batch that a profile takes.

        Args:
            inputs: of the right types and shapes.
            sizes: theirs.

        Raises:
            InputError: an output is wanted whose size depends on the length, and that length would be padded.
            BackendError: the GPU fails.
        """
        exact = not set(outputs) <= set(OUTPUTS)
        profile, padded = self._layout.choose(sizes, rounded=self._graphs and not exact)
        if exact and padded.get("length") != sizes.get("length"):
            raise InputError(
                f"The engine of {self._layout.modality} gives {', '.join(outputs)} of lengths from "
                f"{padded['length']} on; got {sizes['length']}: build one for smaller lengths."
            )
        key = (profile, tuple(padded.values()))
        again = key in self._met
        shapes = self._shapes(key, padded)
        self._grow(padded, shapes)
        for name, tensor in self._layout.inputs.items():
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
        """Give back everything; nothing may be running."""
        self._forget()
        self._plain = _Bound(None)
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

    def _run_recorded(self, key: Key, sizes: Sizes, copied: Shapes) -> None:
        """Launch a shape's recording; make it where there is none yet."""
        if key in self._recorded:
            self._recorded.move_to_end(key)
            self._cuda.launch(self._recorded[key].graph, self._stream)
            return
        bound = _Bound(self._context())
        # Plain first: what a new shape still has to set up must not be recorded. This gives the results.
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
            # The engine runs as well without; `describe` says so.
            self.graph_failure = str(error).rstrip(".")
            return
        if len(self._recorded) >= GRAPHS:
            self._release(self._recorded.popitem(last=False)[1])
        self._recorded[key] = bound

    def _enqueue(self, bound: _Bound, key: Key, sizes: Sizes, copied: Shapes) -> None:
        """Copy the inputs, run, copy the outputs: all in the stream's order."""
        self._set(bound, key, sizes)
        self._bind(bound)
        for name, tensor in self._layout.inputs.items():
            buffer = self._buffers[name]
            size = tensor.dtype.itemsize * prod(tensor.shape(sizes))
            self._cuda.to_device(buffer.device, buffer.host, size, self._stream)
        self._require(bound.context.execute_async_v3(self._stream), "run the engine")
        for name, shape in copied.items():
            buffer = self._buffers[name]
            self._cuda.to_host(buffer.host, buffer.device, _FLOAT * prod(shape), self._stream)

    def _set(self, bound: _Bound, key: Key, sizes: Sizes) -> None:
        """Tell a context its profile and shapes, where they are others."""
        if bound.key == key:
            return
        profile = key[0]
        context = bound.context
        bound.key = None
        if context.active_optimization_profile != profile:
            self._require(context.set_optimization_profile_async(profile, self._stream), "change the profile")
            self._cuda.synchronize(self._stream)
            bound.addresses = -1
        for name, tensor in self._layout.inputs.items():
            shape = tensor.shape(sizes)
            self._require(context.set_input_shape(name, shape), f"take {name} of shape {shape}")
        bound.key = key

    def _bind(self, bound: _Bound) -> None:
        """Tell a context where the buffers are, where they have moved."""
        if bound.addresses == self._addresses:
            return
        for name, buffer in self._buffers.items():
            self._require(bound.context.set_tensor_address(name, buffer.device), f"bind {name}")
        bound.addresses = self._addresses

    def _shapes(self, key: Key, sizes: Sizes) -> Shapes:
        """The shapes of every output, which a context knows once it was told the inputs'; and remember the key."""
        if key not in self._met:
            self._set(self._plain, key, sizes)
            context = self._plain.context
            shapes = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in self._outputs}
            self._require(all(min(shape) >= 0 for shape in shapes.values()), "tell the outputs' shapes")
            self._met[key] = shapes
            if len(self._met) > _REMEMBERED:
                self._met.popitem(last=False)
        self._met.move_to_end(key)
        return self._met[key]

    def _grow(self, sizes: Sizes, shapes: Shapes) -> None:
        """Make the buffers large enough for a batch; every output has one, whether it is wanted or not."""
        inputs = self._layout.inputs.items()
        needed = {name: tensor.dtype.itemsize * prod(tensor.shape(sizes)) for name, tensor in inputs}
        needed |= {name: _FLOAT * prod(shape) for name, shape in shapes.items()}
        # At least doubled, so that slowly growing batches do not move the buffers every time.
        small = {name: buffer for name, buffer in self._buffers.items() if buffer.size < needed[name]}
        for name, buffer in small.items():
            buffer.grow(max(needed[name], 2 * buffer.size))
        if small:
            self._addresses += 1
            self._forget()

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

    def _forget(self) -> None:
        """Give back every recording: where the buffers are is part of them."""
        for bound in self._recorded.values():
            self._release(bound)
        self._recorded.clear()

    def _release(self, bound: _Bound) -> None:
        self._cuda.destroy_graph(bound.graph)
        bound.graph = bound.context = None

    def _require(self, worked: Any, what: str) -> None:
        if not worked:
            raise BackendError(
                f"{self._library.name} could not {what} ({self._library.last_error()}); build the engine again, or "
                "serve with another backend."
            )
