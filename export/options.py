"""What a bundle is to hold."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtalk.errors import UsageError
from fluxtalk.export.graph.to_onnx import DEFAULT_OPSET
from fluxtalk.export.precision.convert import INT8_METHODS, check_precisions


@dataclass(frozen=True)
class ExportOptions:
    """Options of `fluxtalk.export.write_bundle.write_bundle`.

    Raises:
        UsageError: a value has no meaning.
    """

    precisions: tuple[str, ...] = ("fp32",)
    """The first is what serving takes where none is asked for."""
    int8: str = "auto"
    """How int8 is made: ``static``, ``weight-only`` or ``dynamic``; ``auto`` takes the first two that pass the gate."""
    tokens: int | None = None
    """Keep the first register tokens only; None keeps all."""
    attention: bool = False
    """Whether graphs also give where each register looked."""
    opset: int = DEFAULT_OPSET
    eval_items: int = 1000
    """Ids of held-out pairs that quality is measured on."""
    allow_quality_loss: bool = False

    def __post_init__(self) -> None:
        check_precisions(self.precisions)
        if self.int8 not in ("auto", *INT8_METHODS):
            raise UsageError(f"int8 is made by auto, {', '.join(INT8_METHODS)}; got {self.int8!r}.")
        if self.eval_items < 2:
            raise UsageError(f"--eval_items is at least 2; got {self.eval_items}.")
