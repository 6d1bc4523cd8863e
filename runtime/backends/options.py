"""What a user asks of a backend: one value that is passed from the command line to the session."""

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
"""Backend to ONNX Runtime's execution provider."""
NATIVE: dict[str, Flavor] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""Backend to the flavor of the compiled engines that it runs."""
OPENVINO = "openvino"
AUTO = "auto"
BACKENDS = (AUTO, *PROVIDERS, *NATIVE, OPENVINO)


@dataclass(frozen=True)
class BackendOptions:
    """What runs the graphs of a bundle, and how.

    Raises:
        UsageError: ``backend`` is unknown, or ``threads`` is not a number of threads that this machine can run.
    """

    backend: str = AUTO
    """One of `BACKENDS`. What is named is taken or refused, never replaced; ``auto`` takes the first that fits."""
    precision: str | None = None
    """One that the bundle holds; None takes what the backend is best at (see `choose`)."""
    threads: int | None = None
    """Threads of one operator on the CPU; None takes the cores that are available to this process."""
    spinning: bool = True
    """Whether ONNX Runtime's threads burn their core while they wait: faster on cores that are ours alone, slower
    on others."""
    allow_host_code: bool = False
    """Whether version-compatible TensorRT engines may be taken. They bring code that runs in this process: only for a
    bundle whose builder you trust."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"backend is one of {', '.join(BACKENDS)}; got {self.backend!r}.")
        object.__setattr__(self, "threads", check_threads(self.threads))
