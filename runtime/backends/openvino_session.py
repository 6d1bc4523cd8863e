"""`OpenVinoSession`: a graph on OpenVINO's CPU device."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Arrays, Floats
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS
from fluxtalk.errors import BackendError, InputError, reason
from fluxtalk.runtime.backends.engine_shapes import bucket_size
from fluxtalk.runtime.backends.session import with_token_index
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.tokens import ATTENTION

_TELEMETRY = "openvino_telemetry"
_MASK = "mask"
_STEPS_OF_ROWS = 2
"""Numbers of rows in every doubling: 1, 2, 3, 4, 6, 8, 12, ... Every shape that comes is memory that OpenVINO keeps."""
_SHORT = 32
"""Length up to which steps are smaller: short queries are the common ones, and padding would cost them most."""
_KEPT_ROWS = 32
"""Rows of the largest batch whose memory OpenVINO may keep. Freeing a larger one's costs a few percent of its time."""


def import_openvino() -> Any:
    """Import openvino without its telemetry, which would report the import over the network.

    Raises:
        BackendError: it is not installed, or cannot be imported.
    """
    if not openvino_installed():
        raise BackendError(
            "The backend openvino needs OpenVINO, which is not installed; pip install 'fluxtalk[openvino]', "
            "or ask for ort-cpu."
        )
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    # If its telemetry package cannot be imported, OpenVINO uses a stub.
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"openvino is installed but cannot be imported ({reason(error)}); install it again, or ask for ort-cpu."
        ) from None
    finally:
        del sys.modules[_TELEMETRY]
        if before is not None:
            sys.modules[_TELEMETRY] = before
    return openvino


def openvino_installed() -> bool:
    """True if openvino is installed."""
    return importlib.util.find_spec("openvino") is not None


def computes_bf16() -> bool:
    """True if OpenVINO multiplies in bfloat16 on this processor.

    Raises:
        BackendError: OpenVINO is missing.
    """
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession:
    """One graph on OpenVINO's CPU device.

    A graph is computed in the types that it was exported in. By default OpenVINO would round float32 and float16 graphs
    to bfloat16 on a processor that has it, which breaks the tolerances of these precisions, and would quantize the
    inputs of int8 weights by the values of the whole batch.

    Args:
        graph: ONNX file.
        threads: threads of one operator; None takes the cores that are available to this process.
        precision: precision of the graph. ``bf16`` is multiplied in bfloat16 if the processor can and the graph does,
            else in float32.
        pads_length: the graph's mask hides padding, so that inputs may be padded to one of few lengths.
        max_length: longest input that the graph takes; None if it takes any.
        num_tokens: register tokens of the graph; None if each k is to be computed as asked for.

    OpenVINO keeps memory for every shape that it has met, for as long as it runs. Rows and lengths are therefore padded
    to one of few sizes, which changes no row, and one token is computed or all of them.

    Raises:
        BackendError: OpenVINO is missing, or refuses the graph.
    """

    backend: str = "openvino"

    def __init__(
        self,
        graph: Path,
        threads: int | None = None,
        precision: str = "fp32",
        pads_length: bool = False,
        max_length: int | None = None,
        num_tokens: int | None = None,
    ) -> None:
        self._pads_length = pads_length
        self._num_tokens = num_tokens
        self._longest = max_length
        openvino = import_openvino()
        self._threads = threads or available_cores()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            # A thread pinned to a core waits for whatever else runs there.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            # Overwriting a mapped file would change the weights in use.
            core.set_property({"ENABLE_MMAP": False})
            model = core.read_model(graph)
            rounds = precision == "bf16" and computes_bf16() and not _convolves_in_float32(model)
            self._type = "bf16" if rounds else "f32"
            self._model = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": self._type})
        except Exception as error:  # OpenVINO raises plain RuntimeError
            raise BackendError(f"OpenVINO cannot load {graph}: {_last_line(error)}.") from None
        self._version = openvino.__version__.split("-")[0]
        self._types = {port.get_any_name(): port.get_element_type().to_dtype() for port in self._model.inputs}
        self._idle: list[Any] = []
        self._holds_too_much = False

    @property
    def max_length(self) -> None:
        """None: nothing is compiled for a longest input."""

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        """Run the graph as `Session.run` says.

        Raises:
            InputError: the graph does not take the inputs.
            BackendError: OpenVINO failed.
        """
        # OpenVINO would take a missing input from the run before, and cast a wrong type.
        given = self._in_few_shapes(inputs, k) if ATTENTION not in outputs else with_token_index(inputs, k)
        given_types = {name: array.dtype for name, array in given.items()}
        if given_types != self._types:
            raise InputError(f"The graph takes {_listed(self._types)}; got {_listed(given_types)}.")
        rows = len(next(iter(inputs.values())))
        # A request serves one caller at a time; the list grows to the most callers that there were at once.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            found = request.infer(given, share_inputs=True, share_outputs=True)
            # Copied: the request's next run writes into the same memory.
            values = {name: np.array(found[name][:rows, :k]) for name in outputs}
        except Exception as error:  # OpenVINO raises plain RuntimeError, for inputs that do not fit too
            kind = InputError if "incompatible" in str(error) else BackendError
            raise kind(f"OpenVINO could not run the graph: {_last_line(error)}.") from error
        self._idle.append(request)
        if self._holds_too_much or rows > _KEPT_ROWS:
            self._release_memory()
        return values

    def describe(self) -> str:
        numbers = {"bf16": "bfloat16", "f32": "float32"}[self._type]
        return f"openvino (OpenVINO {self._version}, {self._threads} threads, in {numbers})"

    def close(self) -> None:
        self._idle.clear()
        self._model = None

    def _in_few_shapes(self, inputs: Arrays, k: int) -> dict[str, Array]:
        """Ask for one token or all, and pad a batch to few numbers of rows and, if a mask hides padding, few lengths.

        Inputs that do not agree about a size stay as they are, and the graph refuses them.

        Raises:
            InputError: they are longer than the graph takes, which OpenVINO would not notice.
        """
        computed = k if k == 1 else max(k, self._num_tokens or k)
        sizes = {len(array) for array in inputs.values()}
        if len(sizes) != 1 or not min(sizes):
            return with_token_index(inputs, computed)
        rows = min(sizes)
        further = bucket_size(rows, _STEPS_OF_ROWS) - rows
        mask = inputs.get(_MASK) if self._pads_length else None
        longer = 0
        if mask is not None and mask.ndim == 2:
            if any(array.shape[:2] != mask.shape for array in inputs.values()):
                return with_token_index(inputs, computed)
            length = mask.shape[1]
            if self._longest is not None and length > self._longest:
                raise InputError(f"The graph takes inputs of a length up to {self._longest}; got {length}.")
            longer = max(0, min(_few_lengths(length), self._longest or sys.maxsize) - length)
        # Further rows are like the first: their values are not of another range.
        padded = {name: _padded(array, further, longer) for name, array in inputs.items()}
        return with_token_index(padded, computed)

    def _release_memory(self) -> None:
        try:
            self._model.release_memory()
            self._holds_too_much = False
        except RuntimeError:
            # OpenVINO refuses while another caller runs; try again after the next run.
            self._holds_too_much = True


def _convolves_in_float32(model: Any) -> bool:
    """True if float32 convolutions hold most of an encoder's weights.

    ONNX has no bfloat16 convolution before opset 22, so a bfloat16 graph convolves in float32. OpenVINO rounds all of a
    graph or nothing: EfficientNet-Lite0's embeddings then fall to a median cosine of 0.998, from 0.99999.
    """
    sizes = {"Convolution": 0, "GroupConvolution": 0, "MatMul": 0}
    waiting = [part for part in model.get_ops() if any(FEATURES in port.get_names() for port in part.outputs())]
    seen: set[str] = set()
    while waiting:
        part = waiting.pop()
        if part.get_friendly_name() in seen:
            continue
        seen.add(part.get_friendly_name())
        kind = part.get_type_name()
        if kind == "MatMul" or (kind in sizes and part.get_output_element_type(0).to_string() == "f32"):
            factors = [part.get_input_partial_shape(place) for place in (0, 1)]
            # The weights; of a product of two activations neither is.
            sizes[kind] += min((math.prod(shape.to_shape()) for shape in factors if shape.is_static), default=0)
        waiting.extend(port.get_source_output().get_node() for port in part.inputs())
    return sizes["Convolution"] + sizes["GroupConvolution"] > sizes["MatMul"]


def _few_lengths(length: int) -> int:
    """Round up to a multiple of 8, above 32 to one of 16, and above 128 to four lengths in every doubling."""
    step = 8 if length <= _SHORT else 16
    return bucket_size(-(-length // step) * step)


def _padded(array: Array, further: int, longer: int) -> Array:
    """Add rows like the first, and zeros behind the second axis."""
    if further:
        array = np.concatenate([array, np.repeat(array[:1], further, axis=0)])
    return np.pad(array, [(0, 0), (0, longer), *[(0, 0)] * (array.ndim - 2)]) if longer else array


def _listed(types: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in types.items()) or "nothing"


def _last_line(error: Exception) -> str:
    """Last line of OpenVINO's message: the first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else reason(error)
