"""Folding, cutting, and counting against sums done by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import ancestors, cut, fold_constants, inputs_of, multiply_adds, run
from tests.export.graphs import DIMS, content, embed, graph, inputs, model_of, node, operators

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
    np.testing.assert_allclose(run(folded, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-4, atol=1e-2)
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
    assert run(folded, {"x": np.ones((1, 1), np.float32)})[0].item() == 6


def test_values_read_in_inner_graphs_are_inputs() -> None:
    branch = onnx.helper.make_graph(
        [node("Identity", ["outer"], "inner")],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    chosen = onnx.helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    assert set(inputs_of(chosen)) == {"condition", "outer"}


def test_multiply_adds_by_hand() -> None:
    weights = {
        "w": np.ones((8, 16), np.float32),
        "turned": np.ones((5, 16), np.float32),
        "kernel": np.ones((6, 2, 3, 3), np.float32),
    }
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Gemm", ["a", "turned"], "b", transB=1),
        node("Conv", ["picture", "kernel"], "c", group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Einsum", ["b", "b"], "d", equation="bi,bj->bij"),
        node("Einsum", ["d", "turned"], "e", equation="...ij,jk->...ik"),
    ]
    given = {"x": (FLOAT, ["batch", 8]), "picture": (FLOAT, ["batch", 4, "size", "size"])}
    model = model_of(nodes, given, {"c": 4, "e": 3}, weights)
    expected = 3 * 8 * 16 + 3 * 16 * 5 + 3 * 6 * (5 * 5) * 2 * 9 + 3 * 5 * 5 + 3 * 5 * 5 * 16
    assert multiply_adds(model, batch=3, size=10) == expected
    with pytest.raises(UsageError, match=r"dimension size; give its size"):
        multiply_adds(model, batch=3)


def test_multiply_adds_of_an_exported_graph_follow_its_sizes() -> None:
    one, batch, longer = (
        multiply_adds(graph("text"), batch=b, length=length, k=4) for b, length in ((1, 8), (2, 8), (1, 16))
    )
    # Everything is done for each row, but for what is folded.
    assert batch == 2 * one
    # Products of weights grow with the length, attention faster, and the head's tokens not at all.
    assert 1.5 * one < longer < 2.5 * one
    assert multiply_adds(graph("text"), batch=1, length=8, k=1) < one


@pytest.mark.parametrize("modality", ["text", "image", "features"])
def test_encoder_and_head_cut_apart_give_what_they_gave_together(modality: str) -> None:
    model = graph(modality)
    arrays = inputs(modality, 3)
    expected = embed(model, arrays)
    encoder = cut(model, [], [FEATURES])
    head = cut(model, [FEATURES], list(OUTPUTS))
    onnx.checker.check_model(encoder, full_check=True)
    onnx.checker.check_model(head, full_check=True)
    assert TOKEN_INDEX not in [value.name for value in encoder.graph.input]
    assert len(encoder.graph.node) == len(ancestors(model, FEATURES))
    given = {value.name for value in encoder.graph.input}
    (features,) = run(encoder, {name: array for name, array in arrays.items() if name in given})
    assert features.shape[2] == DIMS[modality]
    everything = {**arrays, FEATURES: features, TOKEN_INDEX: np.arange(4)}
    tokens, embeddings = run(head, {value.name: everything[value.name] for value in head.graph.input})
    np.testing.assert_allclose(tokens, expected["tokens"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embeddings, expected["embeddings"], rtol=0, atol=1e-6)


def test_values_that_are_not_there_are_named() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        cut(graph("features"), ["nowhere"], list(OUTPUTS))
    with pytest.raises(UsageError, match="should have a value called nowhere"):
        ancestors(graph("features"), "nowhere")


def test_the_absorbed_queries_of_the_first_block_are_a_constant() -> None:
    """From the registers alone nothing is left to compute before the scores."""
    made = operators(cut(graph("features"), [FEATURES], ["tokens"]))
    # Of the features, of the feed-forward, of the output; the queries' own is folded.
    assert list(made.values()).count("LayerNormalization") == 3
