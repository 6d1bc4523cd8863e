"""Options of a Triton model repository and their values. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxtalk.artifacts.engine import Profile
from fluxtalk.errors import UsageError

PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
"""Platform to Triton's name of it."""
DEVICES = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}
"""Device to Triton's kind of instance."""
_DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class TritonOptions:
    """Options of the models' configurations.

    Raises:
        UsageError: a value is not one of those that its field allows.
    """

    platform: str = "onnx"
    """``onnx`` (ONNX Runtime backend) or ``tensorrt`` (a compiled plan)."""
    max_batch_size: int | None = None
    """Rows that Triton puts into one batch; None takes 64, or as many as every profile of a plan takes."""
    instances: int = 1
    """Copies of each model for each device."""
    device: str = "auto"
    """Device of the instances: ``gpu``, ``cpu``, or ``auto``."""
    queue_delay: int = 0
    """Microseconds that a request may wait to be batched with others."""
    prefix: str = "fluxtalk"
    """Beginning of the models' names, before ``_MODALITY``."""

    def __post_init__(self) -> None:
        for name, value, known in (("--platform", self.platform, PLATFORMS), ("--device", self.device, DEVICES)):
            if value not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}; got {value!r}.")
        for name, number, least in (
            ("--max-batch-size", self.max_batch_size, 1),
            ("--instances", self.instances, 1),
            ("--queue-delay", self.queue_delay, 0),
        ):
            if number is not None and number < least:
                raise UsageError(f"{name} is at least {least}; got {number}.")
        if not self.prefix.isidentifier():
            raise UsageError(
                f"--prefix is letters, digits and underscores, and does not start with a digit; got {self.prefix!r}."
            )
        if self.platform == "tensorrt" and self.device == "cpu":
            raise UsageError("A TensorRT plan runs on a GPU; got --device cpu.")

    def batch_size(self, modality: str, profiles: Sequence[Profile]) -> int:
        """The ``max_batch_size`` of a modality's model.

        Args:
            profiles: those of its plan; empty for a graph.

        Raises:
            UsageError: no profile takes as many rows as were asked for, so that Triton would refuse the model.
        """
        largest = [profile["batch"][2] for profile in profiles]
        if self.max_batch_size is None:
            # A batch may mix requests for any of the profiles, so every profile has to take as many rows.
            return min(_DEFAULT_BATCH_SIZE, *largest) if largest else _DEFAULT_BATCH_SIZE
        if largest and self.max_batch_size > max(largest):
            raise UsageError(
                f"--max-batch-size {self.max_batch_size} is more than the {max(largest)} rows that the profiles of "
                f"{modality} take; ask for fewer, or give a --profile {modality}:batch=MIN,OPT,MAX of as many."
            )
        return self.max_batch_size
