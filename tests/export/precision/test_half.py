"""Half precision: which operator has which type, what large numbers do, and that rounding is what it says."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import constants, consumers, run_model
from fluxtalk.export.precision.half import emulate_half, to_half
from fluxtalk.scoring.parity import TOLERANCES, embedding_difference
from tests.export.graphs import content, embed, graph, inputs, model_of, node, operators, types

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
BOOL, INT64 = onnx.TensorProto.BOOL, onnx.TensorProto.INT64
HALF = {"fp16": FLOAT16, "bf16": BFLOAT16}
MODALITIES = ("text", "image", "features")

each_kind = pytest.mark.parametrize("kind", ["fp16", "bf16"])
each_modality = pytest.mark.parametrize("modality", MODALITIES)


@each_kind
@each_modality
def test_graphs_are_valid_deterministic_and_half_the_size(modality: str, kind: str) -> None:
    model = graph(modality)
    before = content(model)
    half = to_half(model, kind)
    onnx.checker.check_model(half, full_check=True)
    assert {part.domain for part in half.graph.node} == {""}
    assert content(half) == content(to_half(model, kind))
    assert content(model) == before
    # A convolution has no bfloat16 at opset 20, and is a good part of so small an encoder.
    assert half.ByteSize() < (0.75 if (modality, kind) == ("image", "bf16") else 0.6) * model.ByteSize()
    for ours, theirs in ((half.graph.input, model.graph.input), (half.graph.output, model.graph.output)):
        assert list(ours) == list(theirs)


@each_kind
@each_modality
def test_products_are_half_and_norms_and_softmax_are_not(modality: str, kind: str) -> None:
    half = to_half(graph(modality), kind)
    made = types(half)
    after = downstream(half, OUTPUTS[0])
    found: Counter[tuple[str, int]] = Counter()
    for part in half.graph.node:
        if part.output[0] not in after:
            found[part.op_type, made[part.output[0]]] += 1
        else:
            assert HALF[kind] not in [made[name] for name in part.input]
    assert found["MatMul", HALF[kind]] > 5
    assert not found["MatMul", FLOAT]
    assert found["Gelu", HALF[kind]]
    # Between convolutions, which have no bfloat16 at opset 20, there is nothing to gain.
    assert found["Gelu", FLOAT] == (2 if (modality, kind) == ("image", "bf16") else 0)
    for operator in ("LayerNormalization", "Softmax"):
        assert found[operator, FLOAT]
        assert not found[operator, HALF[kind]]
    assert made[FEATURES] == FLOAT
    # What goes into a softmax was added up in float32, the mask included.
    by_output = {name: part for part in half.graph.node for name in part.output}
    for part in half.graph.node:
        if part.op_type == "Softmax" and modality != "image":
            addition = by_output[part.input[0]]
            assert addition.op_type == "Add"
            assert {made[name] for name in addition.input} == {FLOAT}


@each_kind
@each_modality
def test_no_value_is_converted_twice_or_for_nothing(modality: str, kind: str) -> None:
    half = to_half(graph(modality), kind)
    made, by_output, readers = types(half), operators(half), consumers(half)
    ends = {value.name for value in half.graph.output}
    casts = [part for part in half.graph.node if part.op_type == "Cast" and made[part.output[0]] in (FLOAT, HALF[kind])]
    assert max(Counter((part.input[0], made[part.output[0]]) for part in casts).values()) == 1
    for part in casts:
        assert made[part.input[0]] != made[part.output[0]]
        assert part.input[0] not in constants(half)
        assert part.output[0] in readers or part.output[0] in ends
        if made[part.input[0]] in (FLOAT, HALF[kind]):
            assert by_output.get(part.input[0]) != "Cast"


def test_pixels_are_normalized_in_float32() -> None:
    half = to_half(graph("image"), "bf16")
    made, readers = types(half), consumers(half)
    value = "pixels"
    passed: list[str] = []
    while not passed or passed[-1] != "Add":
        (part,) = [reader for reader in readers[value] if reader.op_type != "Shape"]
        value = part.output[0]
        passed.append(part.op_type)
        assert made[value] in (FLOAT, onnx.TensorProto.UINT8)
    assert sorted(passed) == ["Add", "Cast", "Mul", "Transpose"]


@pytest.mark.parametrize("scale", [1.0, 1e4, 3e4])
def test_large_features_keep_the_float16_tier(scale: float) -> None:
    model = graph("features")
    arrays = inputs("features", 8, scale=scale)
    assert np.abs(arrays["features"]).max() > 2 * scale
    expected = embed(model, arrays)
    for half in (to_half(model, "fp16"), emulate_half(model, "fp16")):
        holds("fp16", embed(half, arrays)["embeddings"], expected["embeddings"])


@each_modality
def test_ordinary_inputs_keep_their_tiers(modality: str) -> None:
    model, arrays = graph(modality), inputs(modality, 8)
    expected = embed(model, arrays)["embeddings"]
    holds("fp16", embed(to_half(model, "fp16"), arrays)["embeddings"], expected)
    holds("fp16", embed(emulate_half(model, "fp16"), arrays)["embeddings"], expected)
    holds("bf16", embed(emulate_half(model, "bf16"), arrays)["embeddings"], expected)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("inverse", ["Div", "Reciprocal"])
def test_a_norm_that_is_written_out_does_not_overflow(square: str, inverse: str) -> None:
    """A residual stream of hundreds: its squares leave float16."""
    rng = np.random.default_rng(0)
    weights: Arrays = {
        "up": (rng.standard_normal((32, 64)) * 60).astype(np.float32),
        "out": (rng.standard_normal((64, 16)) / 8).astype(np.float32),
        "gain": (1 + 0.1 * rng.standard_normal(64)).astype(np.float32),
        "two": np.array([2], np.float32),
        "epsilon": np.array([1e-6], np.float32),
        "axes": np.array([-1]),
    }
    nodes = [
        node("MatMul", ["x", "up"], "first"),
        node("Gelu", ["first"], "second"),
        node("Add", ["first", "second"], "stream"),
        node("Pow", ["stream", "two"], "squares") if square == "Pow" else node("Mul", ["stream", "stream"], "squares"),
        node("ReduceMean", ["squares", "axes"], "mean"),
        node("Add", ["mean", "epsilon"], "safe"),
        node("Sqrt", ["safe"], "norm"),
        *(
            [node("Div", ["stream", "norm"], "normed")]
            if inverse == "Div"
            else [node("Reciprocal", ["norm"], "factor"), node("Mul", ["stream", "factor"], "normed")]
        ),
        node("Mul", ["normed", "gain"], "scaled"),
        node("MatMul", ["scaled", "out"], "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 32])}, {"y": 2}, weights)
    made = types(to_half(model, "fp16"))
    assert {made[name] for name in ("squares", "mean", "safe", "norm")} == {FLOAT}
    assert {made[name] for name in ("first", "second", "stream")} == {FLOAT16}
    x = rng.standard_normal((16, 32), dtype=np.float32)
    (stream,) = run_model(model_of(nodes[:3], {"x": (FLOAT, ["batch", 32])}, {"stream": 2}, weights), {"x": x})
    assert np.abs(stream).max() > 1000
    (expected,) = run_model(model, {"x": x})
    for half in (to_half(model, "fp16"), emulate_half(model, "fp16")):
        (found,) = run_model(half, {"x": x})
        assert np.isfinite(found).all()
        holds("fp16", unit(found), unit(expected))


def test_masks_of_the_smallest_float_are_added_in_float32() -> None:
    lowest = np.array([np.finfo(np.float32).min], np.float32)
    nodes = [
        node("MatMul", ["x", "w"], "raw"),
        node("Mul", ["raw", "scale"], "scores"),
        node("Where", ["mask", "zero", "lowest"], "bias"),
        node("Add", ["scores", "bias"], "biased"),
        node("Softmax", ["biased"], "weights"),
        node("MatMul", ["weights", "v"], "y"),
    ]
    rng = np.random.default_rng(0)
    weights: Arrays = {
        "w": rng.standard_normal((8, 6), dtype=np.float32),
        "v": rng.standard_normal((6, 8), dtype=np.float32),
        "scale": np.array([0.3], np.float32),
        "zero": np.array([0], np.float32),
        "lowest": lowest,
    }
    model = model_of(nodes, {"x": (FLOAT, ["batch", 8]), "mask": (BOOL, ["batch", 6])}, {"y": 2}, weights)
    half = to_half(model, "fp16")
    made = types(half)
    assert {made[name] for name in ("scores", "bias", "biased", "weights")} == {FLOAT}
    given = {"x": rng.standard_normal((4, 8), dtype=np.float32), "mask": rng.random((4, 6)) < 0.7}
    given["mask"][0] = False
    np.testing.assert_allclose(run_model(half, given)[0], run_model(model, given)[0], rtol=0, atol=5e-3)


@each_kind
def test_weights_outside_of_the_range_are_refused_by_name(kind: str) -> None:
    weights = {"large": np.full((4, 4), 7e4, np.float32)}
    model = model_of([node("MatMul", ["x", "large"], "y")], {"x": (FLOAT, ["batch", 4])}, {"y": 2}, weights)
    if kind == "bf16":
        assert run_model(emulate_half(model, kind), {"x": np.ones((1, 4), np.float32)})[0][0, 0] == pytest.approx(
            2.8e5, rel=0.01
        )
        return
    for convert in (to_half, emulate_half):
        with pytest.raises(UsageError, match=r"weight large has numbers up to 7e\+04.*6\.55e\+04.*bf16 or fp32"):
            convert(model, kind)


def test_a_weight_read_in_both_types_is_there_in_both() -> None:
    weights = {"w": np.ones((4, 4), np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("ReduceSum", ["w"], "total", keepdims=0),
        node("ReduceSum", ["a"], "other", keepdims=0),
        node("Div", ["other", "total"], "y"),
    ]
    half = to_half(model_of(nodes, {"x": (FLOAT, ["batch", 4])}, {"y": 0}, weights), "fp16")
    assert sorted(tensor.data_type for tensor in half.graph.initializer) == [FLOAT, FLOAT16]


@pytest.mark.parametrize(("opset", "expected"), [(20, FLOAT), (22, BFLOAT16)])
def test_operators_are_half_where_the_standard_has_them(opset: int, expected: int) -> None:
    weights = {"w": np.ones((4, 3, 2, 2), np.float32), "v": np.ones((4, 4, 2, 2), np.float32)}
    nodes = [node("Conv", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Conv", ["b", "v"], "y")]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 3, 8, 8])}, {"y": 4}, weights, opset)
    assert types(to_half(model, "bf16"))["a"] == expected
    assert types(to_half(model, "fp16"))["a"] == FLOAT16


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"fp16 or bf16; got 'fp8'"):
        to_half(graph("features"), "fp8")
    branch = onnx.helper.make_graph(
        [node("Identity", ["x"], "inner")], "branch", [], [onnx.helper.make_tensor_value_info("inner", FLOAT, [None])]
    )
    chosen = onnx.helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    model = model_of([chosen], {"x": (FLOAT, [4]), "condition": (BOOL, [])}, {"y": 1})
    with pytest.raises(UsageError, match=r"control flow \(If choice\)"):
        to_half(model, "fp16")
    foreign = onnx.helper.make_node("Odd", ["x"], ["z"], name="odd", domain="elsewhere")
    model = model_of([node("Identity", ["x"], "y")], {"x": (FLOAT, [4])}, {"y": 1})
    model.graph.node.insert(0, foreign)
    model.graph.node[1].input[0] = "z"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(UsageError, match=r"type of z, which Odd odd gives, cannot be inferred"):
        to_half(model, "fp16")


@each_kind
def test_emulation_rounds_as_numpy_and_torch_do(kind: str) -> None:
    """A small network whose every result is rounded by hand."""
    rng = np.random.default_rng(0)
    dtype = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
    weights = {
        "w": rng.standard_normal((32, 48), dtype=np.float32),
        "b": rng.standard_normal(48, dtype=np.float32),
        "v": rng.standard_normal((48, 8), dtype=np.float32),
    }
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Add", ["a", "b"], "c"),
        node("Relu", ["c"], "d"),
        node("MatMul", ["d", "v"], "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 32])}, {"y": 2}, weights)
    x = rng.standard_normal((64, 32), dtype=np.float32)

    def rounded(array: NDArray) -> NDArray:
        return array.astype(dtype).astype(np.float32)

    w, b, v = (rounded(weights[name]) for name in "wbv")
    by_numpy = rounded(rounded(np.maximum(rounded(rounded(x) @ w) + b, 0)) @ v)
    torch_type = torch.float16 if kind == "fp16" else torch.bfloat16
    tensors = [torch.from_numpy(array).to(torch_type) for array in (x, w, b, v)]
    by_torch = (torch.relu(tensors[0] @ tensors[1] + tensors[2]) @ tensors[3]).float().numpy()
    (found,) = run_model(emulate_half(model, kind), {"x": x})
    assert np.array_equal(found, rounded(found))
    step = float(ml_dtypes.finfo(dtype).eps)
    for expected in (by_numpy, by_torch):
        # Sums in another order now and then fall to the other side of a rounding.
        assert (found == expected).mean() > 0.97
        np.testing.assert_allclose(found, expected, rtol=step, atol=step * np.abs(expected).max())


@each_modality
def test_emulated_float16_is_the_real_one_at_every_optimization_level(modality: str) -> None:
    model, arrays = graph(modality), inputs(modality, 8)
    expected = embed(model, arrays)["embeddings"]
    plain = embed(emulate_half(model, "fp16"), arrays, optimize=False)["embeddings"]
    optimized = embed(emulate_half(model, "fp16"), arrays)["embeddings"]
    real = embed(to_half(model, "fp16"), arrays)["embeddings"]
    lost = np.abs(plain - expected).mean()
    assert lost > 5e-6
    assert np.abs(optimized - plain).mean() < lost
    assert np.abs(optimized - expected).mean() == pytest.approx(lost, rel=0.25)
    # ONNX Runtime leaves some roundings between its own float16 operators out.
    assert embedding_difference(plain, real).mean_abs < 2 * lost
    coarse = embed(emulate_half(model, "bf16"), arrays)["embeddings"]
    assert np.abs(coarse - expected).mean() > 4 * lost


def holds(kind: str, found: NDArray, expected: NDArray) -> None:
    """Assert the tier's promise on embeddings."""
    assert np.isfinite(found).all()
    difference, tolerance = embedding_difference(found, expected), TOLERANCES[kind]
    assert not difference.violations(tolerance)


def unit(array: NDArray) -> NDArray:
    result: NDArray = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return result


def downstream(model: onnx.ModelProto, value: str) -> set[str]:
    found = {value}
    for part in model.graph.node:
        if found.intersection(part.input):
            found.update(part.output)
    return found - {value}
