"""Options of an export and their values. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtalk.errors import UsageError
from fluxtalk.scoring.parity import PRECISIONS

MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 18, 22, 20
"""ONNX opsets. 20 brings a native Gelu; 23 brings an Attention operator, which ONNX Runtime's quantizer and
TensorRT-RTX refuse."""
INT8_METHODS = ("static", "weight-only", "dynamic")
"""Ways to make int8, in order of preference. ``auto`` tries the first two; with the last, a row depends on its
neighbors in the batch, so it has to be named."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `fluxtalk.export.write_bundle.write_bundle`.

    Raises:
        UsageError: a value is not one of those that its field allows.
    """

    precisions: tuple[str, ...] = ("fp32",)
    """Precisions of the bundle, each once; serving takes the first unless another is asked for."""
    int8: str = "auto"
    """One of `INT8_METHODS`; ``auto`` takes ``static`` if it passes the quality gate, else ``weight-only``."""
    tokens: int | None = None
    """Register tokens to keep, from the first; None keeps all."""
    attention: bool = False
    """Adds the output ``attention`` to the graphs: where each register looked."""
    opset: int = DEFAULT_OPSET
    eval_items: int = 1000
    """Ids of held-out pairs that quality is measured on, at most."""
    allow_quality_loss: bool = False
    """Writes the bundle although a precision fails the quality gate."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown or not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise UsageError(
                f"--precision is one of {', '.join(PRECISIONS)}, each once; got {', '.join(self.precisions)}."
            )
        if self.int8 not in ("auto", *INT8_METHODS):
            raise UsageError(f"--int8 is one of auto, {', '.join(INT8_METHODS)}; got {self.int8!r}.")
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(f"--opset is in {MIN_OPSET}..{MAX_OPSET}; got {self.opset}.")
        if self.eval_items < 2:
            raise UsageError(f"--eval-items is at least 2; got {self.eval_items}.")
