"""A compiled TensorRT engine behind the `Session` seam: either flavor, without PyTorch.

The session picks the engine and hands batches to execution slots, one for each thread that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS, Bundle
from fluxtalk.artifacts.engine import EngineRecord, Flavor, find_engine, read_plan
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import TensorRT, load_tensorrt
from fluxtalk.errors import BackendError, InputError
from fluxtalk.runtime.backends.cuda import Cuda
from fluxtalk.runtime.backends.engine_shapes import Layout, input_of
from fluxtalk.runtime.backends.execution_slot import Lane
from fluxtalk.runtime.backends.session import Arrays, with_token_index

LANES = 2
"""Threads that run at the same time; a GPU gains little from more."""


class TensorRTSession:
    """One modality's engine on the first visible GPU.

    Args:
        bundle: with the engine in its folder of engines.
        flavor: the library that runs it, ``tensorrt`` or ``rtx``.
        cuda_graphs: whether repeated shapes are recorded; batches and lengths are then padded to one of few sizes.
        lanes: how many threads run at the same time; others wait.
        allow_host_code: whether a version-compatible engine may be taken, and the code that it brings run in this
            process; for engines of a builder you trust.

    Raises:
        BackendError: the library, `cuda-bindings`, a driver or a GPU is missing, or no engine fits or loads.
        ArtifactError: the engine or its record was changed.
    """

    def __init__(
        self,
        bundle: Bundle,
        modality: str,
        precision: str,
        flavor: Flavor,
        cuda_graphs: bool = True,
        lanes: int = LANES,
        allow_host_code: bool = False,
    ) -> None:
        self._library = load_tensorrt(flavor)
        self._cuda = Cuda()
        capability = compute_capability()
        if capability is None:
            raise BackendError(f"{self._library.name} needs an NVIDIA GPU, and its driver knows of none here.")
        self._record = find_engine(
            bundle.engines,
            modality,
            precision,
            flavor,
            self._library.version,
            capability,
            bundle.graph_hash(modality, precision),
            self._library.cuda_major,
            allow_host_code,
        )
        plan = read_plan(bundle.engines, self._record)
        self._runtime, self._engine = _deserialize(self._library, self._record, plan)
        inputs = {t.name: input_of(t.name, t.dtype, t.shape) for t in self._record.inputs}
        self._layout = Layout(modality, inputs, self._record.profiles)
        self._outputs = [tensor.name for tensor in self._record.outputs]
        self._capability = capability
        self._graphs = cuda_graphs
        self._limit = lanes
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._changed = threading.Condition()
        self._closed = False
        with self._lane():
            pass  # So that what cannot be allocated is refused now.

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`. More rows than the engine takes are run in parts.

        Raises:
            InputError: an input has the wrong type or shape, or a size that no profile takes.
            BackendError: the GPU fails, or the session is closed.
        """
        unknown = set(outputs) - set(self._outputs)
        if unknown:
            raise InputError(f"The engine of {self._layout.modality} does not give {', '.join(sorted(unknown))}.")
        sizes = self._layout.sizes(with_token_index(inputs, k))
        parts = []
        with self._lane() as lane:
            for rows in self._layout.parts(sizes):
                part = with_token_index({name: array[rows] for name, array in inputs.items()}, k)
                parts.append(lane.run(part, {**sizes, "batch": rows.stop - rows.start}, outputs))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    @property
    def max_length(self) -> int | None:
        """The longest input that a profile takes; None where inputs have no length."""
        return max((p["length"][2] for p in self._record.profiles if "length" in p), default=None)

    def describe(self) -> str:
        """See `Session.describe`."""
        failed = next((lane.graph_failure for lane in self._lanes if lane.graph_failure), None)
        graphs = f"off, because {failed}" if failed else "on" if self._graphs else "off"
        return (
            f"{self._library.name} ({self._record.file}, compute capability {self._capability}, CUDA graphs {graphs})"
        )

    def close(self) -> None:
        """See `Session.close`; it waits for what is running."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == len(self._lanes))
            for lane in self._lanes:
                lane.close()
            self._lanes, self._idle = [], []
            self._engine = None
            self._runtime = None

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that no other thread has."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or len(self._lanes) < self._limit)
            if self._closed:
                raise BackendError("This session is closed; load the bundle again.")
            if not self._idle:
                lane = Lane(self._library, self._engine, self._cuda, self._layout, self._outputs, self._graphs)
                self._lanes.append(lane)
                self._idle.append(lane)
            lane = self._idle.pop()
        try:
            yield lane
        finally:
            with self._changed:
                self._idle.append(lane)
                # All of them: one may wait to close.
                self._changed.notify_all()


def _deserialize(library: TensorRT, record: EngineRecord, plan: bytes) -> tuple[Any, Any]:
    """The runtime, which must outlive the engine, and the engine, which must be what its record says."""
    trt = library.trt
    runtime = trt.Runtime(library.logger)
    if record.version_compatible:  # which `find_engine` gives only where it is allowed
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"{library.name} cannot load the engine {record.file} ({library.last_error()}); build it again on this "
            "machine with `fluxtalk-export trt`."
        )
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    stated = {tensor.name for tensor in (*record.inputs, *record.outputs)}
    if names != stated or engine.num_optimization_profiles != len(record.profiles):
        raise BackendError(
            f"The engine {record.file} has the tensors {', '.join(sorted(names))} and "
            f"{engine.num_optimization_profiles} profiles, and its record says otherwise; build it again."
        )
    return runtime, engine
