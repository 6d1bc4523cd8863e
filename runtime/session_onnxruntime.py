"""ONNX Runtime behind the `Session` seam."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.bundle import OUTPUTS
from fluxtalk.errors import BackendError, InputError, reason
from fluxtalk.runtime.session import Arrays
from fluxtalk.runtime.threads import available_cores

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        BackendError: neither of its two distributions is installed, or both are.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise BackendError(
            "Both onnxruntime and onnxruntime-gpu are installed, and they overwrite each other's files; "
            "uninstall both, then install one: pip install 'fluxtalk[cpu]' or 'fluxtalk[gpu]'."
        )
    try:
        import onnxruntime
    except ImportError as error:
        if installed:
            raise BackendError(
                f"{installed[0]} is installed but cannot be imported ({error}); install it again."
            ) from None
        raise BackendError(
            "Neither onnxruntime nor onnxruntime-gpu is installed; "
            "pip install 'fluxtalk[cpu]', or 'fluxtalk[gpu]' for CUDA."
        ) from None
    return onnxruntime


class OnnxRuntimeSession:
    """One graph on one execution provider of ONNX Runtime.

    Args:
        graph: the ONNX file.
        backend: ``ort-cpu`` or ``ort-cuda``.
        threads: for one operator; None takes the cores that are available to this process.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
    """

    def __init__(self, graph: Path, backend: str = "ort-cpu", threads: int | None = None) -> None:
        ort = import_onnxruntime()
        provider = PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"The backend {backend} needs ONNX Runtime's {provider}, and this installation has only "
                f"{', '.join(ort.get_available_providers())}; install fluxtalk[gpu] instead of fluxtalk[cpu], "
                "or ask for ort-cpu."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if backend != "ort-cpu":
            # Otherwise a provider that fails to start is replaced by the CPU, with a mere warning.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(str(graph), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions have no public base
            raise BackendError(f"ONNX Runtime cannot load {graph} on {backend}: {reason(error)}.") from None
        self._backend = backend
        self._version = ort.__version__
        self._threads = options.intra_op_num_threads

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        try:
            values = self._session.run(OUTPUTS, inputs)
        except Exception as error:  # as above
            raise InputError(f"ONNX Runtime could not run the graph: {reason(error)}.") from error
        return dict(zip(OUTPUTS, values, strict=True))

    def describe(self) -> str:
        """See `Session.describe`."""
        return f"{self._backend} (ONNX Runtime {self._version}, {self._threads} threads)"

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
