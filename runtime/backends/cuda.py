"""CUDA calls of a native session, each checked: memory, one stream, copies, captured graphs.

They go through the package `cuda-bindings`, without PyTorch or the CUDA toolkit. Addresses are plain integers.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import BackendError


def import_cudart() -> Any:
    """Import `cuda.bindings.runtime`.

    Raises:
        BackendError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"Running a TensorRT engine needs the package cuda-bindings ({error}): pip install cuda-bindings."
        ) from None


class Cuda:
    """CUDA on the first visible GPU.

    Raises:
        BackendError: the bindings, a driver or a GPU is missing. Every method raises it if CUDA reports an error.
    """

    def __init__(self) -> None:
        self._api = import_cudart()
        self._call(self._api.cudaGetDeviceCount())

    def allocate(self, size: int) -> int:
        """Allocate memory of the GPU, aligned to 256 bytes."""
        return int(self._call(self._api.cudaMalloc(size)))

    def free(self, address: int) -> None:
        """Free memory of the GPU."""
        self._call(self._api.cudaFree(address))

    def allocate_host(self, size: int) -> int:
        """Allocate page-locked memory of the host, which asynchronous copies need."""
        return int(self._call(self._api.cudaHostAlloc(size, self._api.cudaHostAllocDefault)))

    def free_host(self, address: int) -> None:
        """Free page-locked memory of the host."""
        self._call(self._api.cudaFreeHost(address))

    def create_stream(self) -> int:
        """Create a stream that does not wait for the default one."""
        return int(self._call(self._api.cudaStreamCreateWithFlags(self._api.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream once its work is done."""
        self._call(self._api.cudaStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for the stream's work."""
        self._call(self._api.cudaStreamSynchronize(stream))

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes from the host, in the stream's order."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._api.cudaMemcpyAsync(device, host, size, kind, stream))

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes to the host, in the stream's order."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._api.cudaMemcpyAsync(host, device, size, kind, stream))

    def begin_capture(self, stream: int) -> None:
        """Record what is enqueued from now on instead of running it; other threads may go on allocating."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._api.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> Any:
        """Finish recording and return the graph, ready to launch."""
        graph = self._call(self._api.cudaStreamEndCapture(stream))
        try:
            return self._call(self._api.cudaGraphInstantiate(graph, 0))
        finally:
            self._call(self._api.cudaGraphDestroy(graph))

    def abandon_capture(self, stream: int) -> None:
        """Stop recording after an error, and drop what was recorded."""
        error, graph = self._api.cudaStreamEndCapture(stream)
        if error == self._api.cudaError_t.cudaSuccess:
            self._call(self._api.cudaGraphDestroy(graph))

    def launch(self, graph: Any, stream: int) -> None:
        """Run a recorded graph, in the stream's order."""
        self._call(self._api.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a recorded graph once its work is done."""
        self._call(self._api.cudaGraphExecDestroy(graph))

    def _call(self, result: Any) -> Any:
        error, *values = result
        codes = self._api.cudaError_t
        if error == codes.cudaSuccess:
            return values[0] if values else None
        if error in (codes.cudaErrorInsufficientDriver, codes.cudaErrorNoDevice):
            raise BackendError(
                f"Running a TensorRT engine needs an NVIDIA GPU and its driver, and CUDA finds none "
                f"({_name(error)}); serve with ort-cpu here."
            )
        if error == codes.cudaErrorMemoryAllocation:
            raise BackendError(
                "The GPU's memory does not suffice; build engines with smaller profiles, or free some of it."
            )
        _, text = self._api.cudaGetErrorString(error)
        raise BackendError(f"CUDA reports {_name(error)} ({text.decode()}); load the bundle again.")


class Buffer:
    """Memory of the same size on host and GPU for one tensor. It grows and never shrinks; growing moves it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.size = 0
        self.device = 0
        self.host = 0

    def grow(self, size: int) -> bool:
        """Hold at least ``size`` bytes; return True if that changed the addresses, and so lost the content."""
        if size <= self.size:
            return False
        self.close()
        self.device = self._cuda.allocate(size)
        self.host = self._cuda.allocate_host(size)
        self.size = size
        return True

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """View the first bytes of the host's memory as an array; valid until the buffer grows."""
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw: Array = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.host))
        return raw[:count].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free both."""
        if self.device:
            self._cuda.free(self.device)
        if self.host:
            self._cuda.free_host(self.host)
        self.size = self.device = self.host = 0


def _name(error: Any) -> str:
    return str(getattr(error, "name", error))
