"""`BackendOptions`: one value with everything that a user asks of a backend."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtalk.artifacts.engine import Flavor
from fluxtalk.errors import UsageError
from fluxtalk.runtime.backends.threads import check_threads

PROVIDERS = {
    "ort-cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
"""Backend to its execution provider of ONNX Runtime."""
NATIVE: dict[str, Flavor] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""Backend to the flavor of the compiled engines that it runs."""
ORT_CPU = "ort-cpu"
OPENVINO = "openvino"
ON_CPU = (ORT_CPU, OPENVINO)
"""Backends of the CPU; the first is taken if both are equally fast."""
AUTO = "auto"
BACKENDS = (AUTO, *PROVIDERS, *NATIVE, OPENVINO)


@dataclass(frozen=True)
class BackendOptions:
    """Backend that runs the graphs of a bundle, and its settings.

    Raises:
        UsageError: ``backend`` is unknown, or ``threads`` is out of range (`check_threads`).
    """

    backend: str = AUTO
    """One of `BACKENDS`. A named one is used or refused, never replaced; ``auto`` takes the first that fits."""
    precision: str | None = None
    """Precision that the bundle holds; None takes the one that the backend is best at (see `choose`)."""
    threads: int | None = None
    """Threads of one operator on the CPU; None takes the cores that are available to this process."""
    spinning: bool = True
    """Let ONNX Runtime's threads burn their core while they wait: faster if no other program needs the cores."""
    allow_host_code: bool = False
    """Take version-compatible TensorRT engines too. They bring code that runs in this process: only for a bundle whose
    builder you trust."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"backend is one of {', '.join(BACKENDS)}; got {self.backend!r}.")
        object.__setattr__(self, "threads", check_threads(self.threads))
