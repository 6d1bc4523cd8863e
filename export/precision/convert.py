"""The float32 graph in another precision: which transformation, what it promises, and what it runs on here."""

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
    """The ways to make a precision, in the order in which they are tried; the empty one where there is one only.

    Args:
        int8: ``auto``, or one of `INT8_METHODS`.
    """
    if precision != "int8":
        return ("",)
    return INT8_METHODS[:2] if int8 == "auto" else (int8,)


def convert(model: onnx.ModelProto, precision: str, method: str, calibration: Sequence[Arrays]) -> onnx.ModelProto:
    """The graph of a modality in a precision.

    Args:
        model: in float32; it is not changed.
        method: one of `methods_of`.
        calibration: batches of the graph's inputs, for ``static``.

    Raises:
        UsageError: the graph does not fit into the precision.
    """
    if precision == "fp32":
        return model
    if precision != "int8":
        return to_half(model, precision)
    if nothing_to_quantize(model):
        # Features come precomputed; what is left is the head, which stays float32.
        return model
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "static": lambda: quantize_static(model, calibration),
        "weight-only": lambda: weight_only_int8(model),
        "dynamic": lambda: quantize_dynamic(model),
    }
    return makers[method]()


def runs_on_cpu(precision: str) -> bool:
    """Whether ONNX Runtime's CPU provider has the operators; it has none for bfloat16."""
    return precision != "bf16"


def promise(precision: str, method: str) -> Tolerance:
    """What the precision promises against eager float32."""
    tolerance = TOLERANCES[precision]
    # The scale of an activation is taken over the whole batch.
    return dataclasses.replace(tolerance, rows=None) if method == "dynamic" else tolerance
