"""Half precision of attention whose mask is boolean: the guard of rows that see no key."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX
from fluxtalk.export.graph.graph_tools import producers, run_model
from fluxtalk.export.precision.half import emulate_half, to_half
from fluxtalk.scoring.parity import TOLERANCES, embedding_difference
from tests.export.graphs import model_of, node, types
from tests.export.to_tensorrt.trt_bundles import WORDS, embedder_of, graph_of, kinds

FLOAT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
HALF = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
DEAD_ROW, ROWS, KEYS, WIDTH = 2, 5, 7, 8
NODES = [
    node("MatMul", ["q", "k"], "scores"),
    node("Where", ["mask", "zero", "lowest"], "bias"),
    node("Add", ["scores", "bias"], "biased"),
    node("Softmax", ["biased"], "raw"),
    node("IsNaN", ["raw"], "undefined"),
    node("Where", ["undefined", "zero", "raw"], "guarded"),
    node("MatMul", ["guarded", "v"], "y"),
]
each_kind = pytest.mark.parametrize("kind", ["fp16", "bf16"])


def attention(*more: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Attention as PyTorch's exporter writes it for a boolean mask, with a mask of true infinities."""
    rng = np.random.default_rng(0)
    weights: Arrays = {
        "k": rng.standard_normal((WIDTH, KEYS), dtype=np.float32),
        "v": rng.standard_normal((KEYS, WIDTH), dtype=np.float32),
        "zero": np.array(0, np.float32),
        "lowest": np.array(-np.inf, np.float32),
    }
    given: dict[str, tuple[int, list[int | str]]] = {"q": (FLOAT, ["rows", WIDTH]), "mask": (BOOL, ["rows", KEYS])}
    return model_of([*NODES, *more], given, dict.fromkeys(outputs, 2), weights)


def queries() -> Arrays:
    """Rows of which one sees no key."""
    rng = np.random.default_rng(1)
    mask = rng.random((ROWS, KEYS)) < 0.6
    mask[:, 0], mask[DEAD_ROW] = True, False
    return {"q": rng.standard_normal((ROWS, WIDTH), dtype=np.float32), "mask": mask}


@each_kind
def test_a_guarded_softmax_is_rounded_in_front_of_its_guard(kind: str) -> None:
    """TensorRT's fusion of attention takes no conversion between guard and product; test_trt.py compiles it."""
    half = to_half(attention(), kind)
    made, by = types(half), producers(half)
    assert made["raw"] == FLOAT
    assert made["guarded"] == HALF[kind]
    product = next(part for part in half.graph.node if "guarded" in part.input)
    assert product.op_type == "MatMul"
    rounded = by[by["guarded"].input[2]]
    assert (rounded.op_type, rounded.input[0]) == ("Cast", "raw")


@each_kind
def test_rows_without_a_key_are_exactly_zero_and_the_others_are_rounded_once(kind: str) -> None:
    model, arrays = attention(), queries()
    (exact,) = run_model(model, arrays)
    assert not exact[DEAD_ROW].any()
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def rounded(array: NDArray) -> NDArray:
        return array.astype(NUMPY[kind]).astype(np.float32)

    scores = rounded(rounded(arrays["q"]) @ rounded(weights["k"]))
    scores = np.where(arrays["mask"], scores, -np.inf)
    alive = np.arange(ROWS) != DEAD_ROW
    exponents = np.exp(scores[alive] - scores[alive].max(axis=1, keepdims=True))
    expected = np.zeros((ROWS, WIDTH), np.float32)
    expected[alive] = rounded(rounded(exponents / exponents.sum(axis=1, keepdims=True)) @ rounded(weights["v"]))
    step = float(ml_dtypes.finfo(NUMPY[kind]).eps)
    for half in (emulate_half(model, kind), *([to_half(model, kind)] if kind == "fp16" else [])):
        (found,) = run_model(half, arrays)
        assert not found[DEAD_ROW].any()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2 * step * np.abs(expected).max())


@pytest.mark.parametrize(
    ("more", "outputs"),
    [
        ([], ("y", "guarded")),
        ([node("ReduceSum", ["guarded", "axis"], "total")], ("y", "total")),
    ],
)
def test_a_guard_that_is_read_as_a_number_keeps_float32(more: list[onnx.NodeProto], outputs: tuple[str, ...]) -> None:
    axis = onnx.helper.make_node("Constant", [], ["axis"], value_ints=[1])
    model = attention(*([axis] if more else []), *more, outputs=outputs)
    assert types(to_half(model, "fp16"))["guarded"] == FLOAT
    arrays = queries()
    (_, expected), (_, found) = run_model(model, arrays), run_model(to_half(model, "fp16"), arrays)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    if more:
        # Sums of unrounded probabilities are 1 to float32's last digits.
        np.testing.assert_allclose(found[np.arange(ROWS) != DEAD_ROW], 1, rtol=0, atol=1e-6)


@each_kind
def test_an_encoder_of_boolean_masks_keeps_its_tier_against_eager(kind: str) -> None:
    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(1, 10, (8, 1))
    mask[3] = False
    arrays: Arrays = {"input_ids": rng.integers(0, len(WORDS), (8, 9)), "mask": mask}
    with torch.no_grad():
        expected = embedder_of("masked", kinds()["masked"]).embed_arrays(arrays, 4)[1]
    graph = graph_of("masked", kinds()["masked"])
    assert sum(part.op_type == "IsNaN" for part in graph.graph.node) == 2
    half = to_half(graph, kind) if kind == "fp16" else emulate_half(graph, kind)
    found = dict(zip(OUTPUTS, run_model(half, {**arrays, TOKEN_INDEX: np.arange(4)}), strict=True))["embeddings"]
    assert np.isfinite(found).all()
    assert not embedding_difference(found, expected).violations(TOLERANCES[kind])
