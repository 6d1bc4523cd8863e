"""Tells a missing compiler behind `torch.compile` from a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from torch._inductor.exc import GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing

from fluxtalk.errors import reason

_NO_C_COMPILER = "Failed to find C compiler"
"""Triton's words in ``triton/runtime/build.py``; the exception has no type of its own."""


def missing_compiler(error: BaseException) -> str | None:
    """Missing compiler, in the words of PyTorch or Triton; None if something else went wrong."""
    for inner in _wrapped(error):
        if isinstance(inner, GPUTooOldForTriton | InvalidCxxCompiler | TritonMissing):
            return reason(inner)
        if isinstance(inner, RuntimeError) and str(inner).startswith(_NO_C_COMPILER):
            return reason(inner)
    return None


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and those inside it; PyTorch's exceptions hold theirs in ``inner_exception``."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = getattr(current, "inner_exception", None) or current.__cause__
