"""Conversion of a float32 graph to a precision, and the tolerance of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx

from fluxtalk.arrays import Arrays
from fluxtalk.export.options import INT8_METHODS
from fluxtalk.export.precision.half import to_half
from fluxtalk.export.precision.int8 import nothing_to_quantize, quantize_dynamic, quantize_static, weight_only_int8
from fluxtalk.scoring.parity import TOLERANCES, Tolerance


def methods_of(precision: str, int8: str) -> tuple[str, ...]:
    """Methods that make a precision, in the order in which they are tried; ``("",)`` for all but int8.

    Args:
        int8: ``auto``, or one of `INT8_METHODS`.
    """
    if precision != "int8":
        return ("",)
    return INT8_METHODS[:2] if int8 == "auto" else (int8,)


def convert(model: onnx.ModelProto, precision: str, method: str, calibration: Sequence[Arrays]) -> onnx.ModelProto:
    """Convert the graph of a modality to a precision.

    Args:
        model: in float32; not changed.
        method: one of `methods_of`.
        calibration: batches of the graph's inputs, for ``static``.

    Raises:
        UsageError: the graph cannot be converted.
    """
    if precision == "fp32":
        return model
    if precision != "int8":
        return to_half(model, precision)
    if nothing_to_quantize(model):
        # Precomputed features: the graph is only the head, which stays float32.
        return model
    methods: dict[str, Callable[[], onnx.ModelProto]] = {
        "static": lambda: quantize_static(model, calibration),
        "weight-only": lambda: weight_only_int8(model),
        "dynamic": lambda: quantize_dynamic(model),
    }
    return methods[method]()


def runs_on_cpu(precision: str) -> bool:
    """True unless ONNX Runtime's CPU provider lacks the operators, as it does for bfloat16."""
    return precision != "bf16"


def tolerance_of(precision: str, method: str) -> Tolerance:
    """Tolerance of a precision made by a method, against eager float32, before anything is measured."""
    tolerance = TOLERANCES[precision]
    # A dynamic scale is taken over the whole batch, so that a row depends on the others.
    return dataclasses.replace(tolerance, rows=None) if method == "dynamic" else tolerance
