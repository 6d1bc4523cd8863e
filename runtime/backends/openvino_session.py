"""OpenVINO on the CPU behind the `Session` seam."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import BackendError, InputError, reason
from fluxtalk.runtime.backends.session import Arrays, with_token_index
from fluxtalk.runtime.backends.threads import available_cores

_TELEMETRY = "openvino_telemetry"
_KEPT_ROWS = 32
"""What a larger batch needed is given back, which costs a few percent of its time; otherwise it is kept for ever."""


def import_openvino() -> Any:
    """The openvino module, without its telemetry: it would report its import over the network.

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
    # OpenVINO takes a stub in its place where it cannot be imported.
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
    """Whether there is an openvino to import."""
    return importlib.util.find_spec("openvino") is not None


def computes_bf16() -> bool:
    """Whether OpenVINO multiplies in bfloat16 on this processor.

    Raises:
        BackendError: OpenVINO is missing.
    """
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession:
    """One graph on OpenVINO's CPU device.

    A graph is computed in the types that it was exported in. OpenVINO's own choice is not: on a processor with
    bfloat16 it rounds float32 and float16 graphs to it, which is further off than these precisions promise, and it
    quantizes what meets int8 weights by the values of the whole batch.

    Args:
        graph: the ONNX file.
        threads: for one operator; None takes the cores that are available to this process.
        precision: of the graph. ``bf16`` is multiplied in bfloat16 where the processor can, else in float32.

    Raises:
        BackendError: OpenVINO is missing, or refuses the graph.
    """

    def __init__(self, graph: Path, threads: int | None = None, precision: str = "fp32") -> None:
        openvino = import_openvino()
        self._threads = threads or available_cores()
        self._type = "bf16" if precision == "bf16" and computes_bf16() else "f32"
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._type,
            "INFERENCE_NUM_THREADS": self._threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            # A thread tied to a core waits for whatever else runs there.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            # What a mapped file holds would change under us with the file.
            core.set_property({"ENABLE_MMAP": False})
            self._model = core.compile_model(core.read_model(graph), "CPU", settings)
        except Exception as error:  # OpenVINO raises plain RuntimeError
            raise BackendError(f"OpenVINO cannot load {graph}: {_last_line(error)}.") from None
        self._version = openvino.__version__.split("-")[0]
        self._types = {port.get_any_name(): port.get_element_type().to_dtype() for port in self._model.inputs}
        self._idle: list[Any] = []
        self._swollen = False

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`.

        Raises:
            InputError: the graph does not take the inputs.
            BackendError: OpenVINO failed.
        """
        # OpenVINO takes what is missing from the run before, and casts whatever comes.
        given = with_token_index(inputs, k)
        came = {name: array.dtype for name, array in given.items()}
        if came != self._types:
            raise InputError(f"The graph takes {_listed(self._types)}; got {_listed(came)}.")
        # A request serves one caller at a time; there are as many as there ever were callers at once.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            found = request.infer(given, share_inputs=True, share_outputs=True)
            # The request writes into the same memory again.
            values = {name: np.array(found[name]) for name in outputs}
        except Exception as error:  # as above
            # It has no type of its own for what does not fit, but says so.
            kind = InputError if "incompatible" in str(error) else BackendError
            raise kind(f"OpenVINO could not run the graph: {_last_line(error)}.") from error
        self._idle.append(request)
        if self._swollen or len(next(iter(inputs.values()))) > _KEPT_ROWS:
            self._give_memory_back()
        return values

    def describe(self) -> str:
        """See `Session.describe`."""
        numbers = {"bf16": "bfloat16", "f32": "float32"}[self._type]
        return f"openvino (OpenVINO {self._version}, {self._threads} threads, in {numbers})"

    def close(self) -> None:
        """See `Session.close`."""
        self._idle.clear()
        self._model = None

    def _give_memory_back(self) -> None:
        try:
            self._model.release_memory()
            self._swollen = False
        except RuntimeError:
            # While another caller runs, OpenVINO refuses: so behind the next run.
            self._swollen = True


def _listed(types: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in types.items()) or "nothing"


def _last_line(error: Exception) -> str:
    """Of OpenVINO's message, whose first lines name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else reason(error)
