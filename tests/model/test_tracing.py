"""How modules are traced for export."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from fluxtalk.export.graph.graph_tools import run_model
from fluxtalk.model.tracing import exporting

HEADS, LENGTH, WIDTH = 4, 5, 8


class Attention(nn.Module):
    """Attention with one kind of mask."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        given = None if self.options.get("is_causal") or mask.dtype == torch.int64 else mask
        return F.scaled_dot_product_attention(query, key, value, given, **self.options)


def masks() -> dict[str, Tensor]:
    """A mask of each kind; an integer one stands for none."""
    torch.manual_seed(1)
    seen = torch.rand(3, 1, LENGTH, LENGTH) < 0.6
    seen[1, :, 2] = False  # sees no key
    return {
        "boolean": seen,
        "additive": torch.randn(3, 1, LENGTH, LENGTH),
        "none": torch.zeros(3, 1, LENGTH, LENGTH, dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("mask", "key_heads", "options"),
    [
        ("boolean", HEADS, {}),
        ("additive", HEADS, {"scale": 0.5}),
        ("none", HEADS, {}),
        ("none", HEADS, {"is_causal": True}),
        ("boolean", 2, {"enable_gqa": True}),
    ],
)
def test_attention_is_two_products_and_equals_eager(mask: str, key_heads: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, HEADS, LENGTH, WIDTH)
    key, value = torch.randn(2, 3, key_heads, LENGTH, WIDTH)
    arguments = (query, key, value, masks()[mask])
    sizes = {0: Dim("batch", min=1), 2: Dim("length", min=1)}
    module = Attention(**options)
    before = F.scaled_dot_product_attention
    with exporting():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(sizes, sizes, sizes, {**sizes, 3: sizes[2]}),
        )
    assert F.scaled_dot_product_attention is before
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMul") == 2
    assert kinds.count("Softmax") == 1
    assert "IsNaN" not in kinds
    for length in (LENGTH, 1):  # another length, too
        part = [array[:2, :, :length] for array in arguments[:3]] + [arguments[3][:2, :, :length, :length]]
        names = [given.name for given in graph.graph.input]
        arrays = dict(zip((*("query", "key", "value"), "mask"), (array.numpy() for array in part), strict=True))
        (found,) = run_model(graph, {name: arrays[name] for name in names})
        np.testing.assert_allclose(found, module(*part).numpy(), rtol=0, atol=1e-6)
