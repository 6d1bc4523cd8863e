"""Parts of a graph, and multiply-adds counted against sums done by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bench.latency.graphs import cut, multiply_adds
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import ancestors, run_model
from tests.export.graphs import DIMS, embed, graph, inputs, model_of, node, operators

FLOAT = onnx.TensorProto.FLOAT


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
    (features,) = run_model(encoder, {name: array for name, array in arrays.items() if name in given})
    assert features.shape[2] == DIMS[modality]
    everything = {**arrays, FEATURES: features, TOKEN_INDEX: np.arange(4)}
    tokens, embeddings = run_model(head, {value.name: everything[value.name] for value in head.graph.input})
    np.testing.assert_allclose(tokens, expected["tokens"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embeddings, expected["embeddings"], rtol=0, atol=1e-6)


def test_a_graph_is_not_cut_at_a_value_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        cut(graph("features"), ["nowhere"], list(OUTPUTS))


def test_the_absorbed_queries_of_the_first_block_are_a_constant() -> None:
    """From the registers alone nothing is left to compute before the scores."""
    made = operators(cut(graph("features"), [FEATURES], ["tokens"]))
    # Of the features, of the feed-forward, of the output; the queries' own is folded.
    assert list(made.values()).count("LayerNormalization") == 3
