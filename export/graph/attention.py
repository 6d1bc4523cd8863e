"""Scaled dot product attention as ONNX operators, for the exporter.

The exporter's own translation swaps the last two axes of the keys by arithmetic on shapes and a copy, scales
queries and keys apart, and looks for NaN behind every softmax, where the finite fill of a mask leaves none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention


def translations() -> dict[Any, Any]:
    """Return PyTorch operator to translation, as the exporter's ``custom_translation_table`` takes it."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate attention over (B, heads, L, size) with a bool mask or none; the rest is left to the exporter."""
    ranks = {len(part.shape) for part in (query, key, value)}
    masked = attn_mask is not None
    other = dropout_p or is_causal or enable_gqa or (masked and attn_mask.dtype != ir.DataType.BOOL)
    if other or ranks != {4} or not isinstance(query.shape[-1], int):
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scaled = op.Mul(query, op.Constant(value=ir.tensor(factor, dtype=query.dtype)))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if masked:
        kept = op.Constant(value=ir.tensor(0.0, dtype=query.dtype))
        # Finite: a row without any key is uniform, and never NaN.
        hidden = op.Constant(value=ir.tensor(query.dtype.min, dtype=query.dtype))
        scores = op.Add(scores, op.Where(attn_mask, kept, hidden))
    return op.MatMul(op.Softmax(scores, axis=-1), value)
