"""Constant folding, and what a graph's nodes read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import ancestors, fold_constants, inputs_of, run_model
from tests.export.graphs import content, graph, model_of, node

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def test_whole_weights_are_folded_into_each_other() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((600, 500), dtype=np.float32) for name in ("a", "b")}
    weights["unused"] = np.ones(3, np.float32)
    nodes = [
        node("Transpose", ["a"], "turned", perm=[1, 0]),
        node("MatMul", ["turned", "b"], "product"),
        node("MatMul", ["x", "product"], "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 500])}, {"y": 2}, weights)
    before = content(model)
    folded = fold_constants(model)
    assert [part.op_type for part in folded.graph.node] == ["MatMul"]
    assert [tensor.name for tensor in folded.graph.initializer] == ["product"]
    x = rng.standard_normal((3, 500), dtype=np.float32)
    np.testing.assert_allclose(run_model(folded, {"x": x})[0], run_model(model, {"x": x})[0], rtol=1e-4, atol=1e-2)
    assert content(model) == before
    assert content(fold_constants(model)) == content(folded)


def test_what_would_grow_is_left() -> None:
    nodes = [
        node("Relu", ["a"], "positive"),
        node("Expand", ["positive", "shape"], "large"),
        node("Neg", ["large"], "negative"),
        node("Add", ["x", "negative"], "y"),
    ]
    weights = {"a": np.ones((1, 64), np.float32), "shape": np.array([1000, 64])}
    folded = fold_constants(model_of(nodes, {"x": (FLOAT, ["batch", 64])}, {"y": 2}, weights))
    assert [part.op_type for part in folded.graph.node] == ["Expand", "Neg", "Add"]


def test_random_numbers_are_not_constant() -> None:
    nodes = [node("RandomUniformLike", ["a"], "random"), node("Add", ["x", "random"], "y")]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 64])}, {"y": 2}, {"a": np.ones((1, 64), np.float32)})
    assert [part.op_type for part in fold_constants(model).graph.node] == ["RandomUniformLike", "Add"]


def test_constant_nodes_of_every_kind_become_initializers() -> None:
    nodes = [
        onnx.helper.make_node("Constant", [], ["two"], value_float=2.0),
        onnx.helper.make_node("Constant", [], ["three"], value=onnx.numpy_helper.from_array(np.array([3], np.float32))),
        onnx.helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        node("Mul", ["two", "three"], "six"),
        node("Unsqueeze", ["six", "axes"], "row"),
        node("Mul", ["x", "row"], "y"),
    ]
    folded = fold_constants(model_of(nodes, {"x": (FLOAT, ["batch", 1])}, {"y": 2}))
    assert [part.op_type for part in folded.graph.node] == ["Mul"]
    assert run_model(folded, {"x": np.ones((1, 1), np.float32)})[0].item() == 6


def test_values_read_in_inner_graphs_are_inputs() -> None:
    branch = onnx.helper.make_graph(
        [node("Identity", ["outer"], "inner")],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    chosen = onnx.helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    assert set(inputs_of(chosen)) == {"condition", "outer"}


def test_a_value_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="has no value called nowhere"):
        ancestors(graph("features"), "nowhere")
