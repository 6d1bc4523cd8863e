"""`TensorRTSession`: a compiled engine of TensorRT or TensorRT-RTX, without PyTorch.

The session finds the engine and hands batches to execution slots, one for each thread that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fluxtalk.arrays import Arrays, Floats
from fluxtalk.artifacts.bundle import OUTPUTS, Bundle
from fluxtalk.artifacts.engine import FLAVOR_NAMES, EngineRecord, Flavor, find_engine, read_plan
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import TensorRT, load_tensorrt
from fluxtalk.errors import BackendError, InputError
from fluxtalk.runtime.backends.cuda import Cuda
from fluxtalk.runtime.backends.engine_shapes import EngineInput, EngineInputs
from fluxtalk.runtime.backends.execution_slot import ExecutionSlot
from fluxtalk.runtime.backends.session import with_token_index

SLOTS = 2
"""Execution slots of a session; a GPU gains little from more."""


class TensorRTSession:
    """One modality's engine on the first visible GPU.

    Args:
        bundle: its folder of engines holds the engine.
        flavor: library that runs it, ``tensorrt`` or ``rtx``.
        cuda_graphs: record repeated shapes; batches and lengths are then padded to one of few sizes.
        slots: threads that run at the same time; others wait.
        allow_host_code: take a version-compatible engine too, and run the code that it brings in this process: only
            for engines of a builder you trust.

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
        slots: int = SLOTS,
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
        inputs = {t.name: EngineInput.from_dynamic(t.name, t.dtype, t.shape) for t in self._record.inputs}
        self._inputs = EngineInputs(modality, inputs, self._record.profiles)
        self._outputs = [tensor.name for tensor in self._record.outputs]
        self._capability = capability
        self._graphs = cuda_graphs
        self._max_slots = slots
        self._slots: list[ExecutionSlot] = []
        self._idle: list[ExecutionSlot] = []
        self._changed = threading.Condition()
        self._closed = False
        with self._slot():
            pass  # Allocate now: a GPU without room is refused at the start, not by a request.

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        """Run the engine as `Session.run` says; more rows than it takes are run in parts.

        Raises:
            InputError: an input has the wrong type or shape, or a size that no profile takes.
            BackendError: the GPU fails, or the session is closed.
        """
        unknown = set(outputs) - set(self._outputs)
        if unknown:
            raise InputError(f"The engine of {self._inputs.modality} does not give {', '.join(sorted(unknown))}.")
        sizes = self._inputs.sizes(with_token_index(inputs, k))
        parts = []
        with self._slot() as slot:
            for rows in self._inputs.parts(sizes):
                part = with_token_index({name: array[rows] for name, array in inputs.items()}, k)
                parts.append(slot.run(part, {**sizes, "batch": rows.stop - rows.start}, outputs))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    @property
    def backend(self) -> str:
        """``tensorrt`` or ``tensorrt-rtx``."""
        return FLAVOR_NAMES[self._record.flavor]

    @property
    def max_length(self) -> int | None:
        """Length of the longest input that a profile takes; None if inputs have no length."""
        return max((p["length"][2] for p in self._record.profiles if "length" in p), default=None)

    def describe(self) -> str:
        failed = next((slot.graph_failure for slot in self._slots if slot.graph_failure), None)
        graphs = f"off, because {failed}" if failed else "on" if self._graphs else "off"
        return (
            f"{self._library.name} ({self._record.file}, compute capability {self._capability}, CUDA graphs {graphs})"
        )

    def close(self) -> None:
        """Release the GPU's memory once running batches are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == len(self._slots))
            for slot in self._slots:
                slot.close()
            self._slots, self._idle = [], []
            self._engine = None
            self._runtime = None

    @contextmanager
    def _slot(self) -> Iterator[ExecutionSlot]:
        """Lend a slot that no other thread uses; wait for one if all are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle or len(self._slots) < self._max_slots)
            if self._closed:
                raise BackendError("This session is closed; load the bundle again.")
            if not self._idle:
                slot = ExecutionSlot(self._library, self._engine, self._cuda, self._inputs, self._outputs, self._graphs)
                self._slots.append(slot)
                self._idle.append(slot)
            slot = self._idle.pop()
        try:
            yield slot
        finally:
            with self._changed:
                self._idle.append(slot)
                # Not `notify`: it could wake a `run` while `close` waits for this slot.
                self._changed.notify_all()


def _deserialize(library: TensorRT, record: EngineRecord, plan: bytes) -> tuple[Any, Any]:
    """Load an engine and check it against its record.

    Returns:
        the runtime, which must outlive the engine; and the engine.
    """
    trt = library.trt
    runtime = trt.Runtime(library.logger)
    if record.version_compatible:  # `find_engine` gives such an engine only if it is allowed
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
