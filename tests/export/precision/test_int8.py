"""8 bits: in the encoder only, in standard operators, and what they cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest

from bench.latency.graphs import cut
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import ancestors, constants, run_model
from fluxtalk.export.precision.int8 import (
    MIN_TABLE_ELEMENTS,
    nothing_to_quantize,
    quantize_dynamic,
    quantize_static,
    weight_only_int8,
)
from fluxtalk.scoring.parity import TOLERANCES, embedding_difference
from tests.export.graphs import DIMS, VOCABULARY, content, embed, graph, inputs, model_of, node

FLOAT, INT8, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.INT64
METHODS = ("static", "dynamic", "weight-only")

each_method = pytest.mark.parametrize("method", METHODS)
each_encoder = pytest.mark.parametrize("modality", ["text", "image"])


def quantized(modality: str, method: str) -> onnx.ModelProto:
    return _METHODS[method](graph(modality), calibration(modality))


def calibration(modality: str) -> list[Arrays]:
    """Batches of several lengths."""
    return [inputs(modality, 8, length, seed=length) for length in (5, 9, 17)]


_METHODS: dict[str, Callable[[onnx.ModelProto, list[Arrays]], onnx.ModelProto]] = {
    "static": quantize_static,
    "dynamic": lambda model, _: quantize_dynamic(model),
    "weight-only": lambda model, _: weight_only_int8(model),
}


@each_encoder
@each_method
def test_graphs_are_standard_deterministic_and_small(modality: str, method: str) -> None:
    model = graph(modality)
    before = content(model)
    found = quantized(modality, method)
    onnx.checker.check_model(found, full_check=True)
    assert {part.domain for part in found.graph.node} == {""}
    assert [(part.domain, part.version) for part in found.opset_import] == [("", 20)]
    assert content(found) == content(quantized(modality, method))
    assert content(model) == before
    assert b"/tmp" not in content(found)
    assert found.producer_name == model.producer_name
    assert not found.metadata_props
    assert list(found.graph.input) == list(model.graph.input)
    assert list(found.graph.output) == list(model.graph.output)
    # All the encoder's matrices, and its table: a quarter. A few operators are added, biases and convolutions stay.
    for name in encoder_weights(found):
        tensor = constants(found)[name]
        assert tensor.data_type != FLOAT or len(tensor.dims) == 4 or np.prod(tensor.dims) < MIN_TABLE_ELEMENTS // 16
    kept = sum(constants(model)[name].ByteSize() for name in encoder_weights(model) if is_small_or_conv(model, name))
    whole = sum(constants(model)[name].ByteSize() for name in encoder_weights(model))
    now = sum(constants(found)[name].ByteSize() for name in encoder_weights(found))
    assert now < kept + 0.3 * (whole - kept)


@each_encoder
@each_method
def test_the_head_is_as_it_was(modality: str, method: str) -> None:
    model, found = graph(modality), quantized(modality, method)
    arrays = inputs(modality, 3)
    (features,) = run_model(cut(model, [], [FEATURES]), encoder_inputs(model, arrays))
    everything = {**arrays, FEATURES: features, TOKEN_INDEX: np.arange(3)}
    heads = [cut(part, [FEATURES], list(OUTPUTS)) for part in (model, found)]
    before, after = (
        run_model(head, {value.name: everything[value.name] for value in head.graph.input}) for head in heads
    )
    for expected, given in zip(before, after, strict=True):
        np.testing.assert_array_equal(given, expected)
    assert sorted(part.op_type for part in heads[0].graph.node) == sorted(part.op_type for part in heads[1].graph.node)


@each_encoder
@each_method
def test_cosines_prefixes_and_rows(modality: str, method: str) -> None:
    model, found = graph(modality), quantized(modality, method)
    arrays = inputs(modality, 16, 12, seed=100)
    got, expected = embed(found, arrays), embed(model, arrays)
    difference = embedding_difference(got["embeddings"], expected["embeddings"])
    assert TOLERANCES["int8"].min_cosine < difference.min_cosine < 1 - 1e-7
    for k in (1, 2, 3):
        prefix = embed(found, arrays, k)["embeddings"]
        np.testing.assert_allclose(prefix, got["embeddings"][:, :k], rtol=0, atol=TOLERANCES["int8"].prefix)
    alone = [embed(found, {name: array[row : row + 1] for name, array in arrays.items()}) for row in range(4)]
    apart = max(np.abs(one["embeddings"][0] - got["embeddings"][row]).max() for row, one in enumerate(alone))
    if method == "dynamic":
        assert apart > 1e-4
    else:
        assert apart <= 1e-5


def test_static_scales_come_from_the_calibration_data() -> None:
    dark = [{"pixels": batch["pixels"] // 64} for batch in calibration("image")]
    model, arrays = graph("image"), inputs("image", 8, seed=100)
    expected = embed(model, arrays)["embeddings"]

    def cosine(batches: Sequence[Arrays]) -> float:
        found = embed(quantize_static(model, batches), arrays)["embeddings"]
        return embedding_difference(found, expected).min_cosine

    assert cosine(dark) < cosine(calibration("image"))
    with_index = [{**batch, TOKEN_INDEX: np.arange(2)} for batch in dark]
    assert content(quantize_static(model, with_index)) == content(quantize_static(model, dark))
    with pytest.raises(UsageError, match="calibration data, and got no batch"):
        quantize_static(model, [])


def test_static_leaves_logging_as_it_was() -> None:
    handlers = list(logging.root.handlers)
    quantized("image", "static")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == logging.NOTSET


def test_precomputed_features_have_nothing_to_quantize() -> None:
    assert nothing_to_quantize(graph("features"))
    for modality in ("text", "image"):
        assert not nothing_to_quantize(graph(modality))
    for method in METHODS:
        with pytest.raises(UsageError, match="nothing to quantize"):
            _METHODS[method](graph("features"), [inputs("features", 2)])


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Gemm of transposed weights", "Gemm without bias"])
def test_weights_are_rounded_by_output_channel(operator: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((40, 24), dtype=np.float32) * np.geomspace(0.01, 100, 24, dtype=np.float32)
    w[:, 5] = 0
    turned = "transposed" in operator
    bias = [] if operator in ("MatMul", "Gemm without bias") else ["b"]
    attributes = {"transB": 1} if turned else {}
    weights = {"w": np.ascontiguousarray(w.T) if turned else w, "b": np.ones(24, np.float32)}
    nodes = [node(operator.split()[0], ["x", "w", *bias], FEATURES, **attributes), node("Relu", [FEATURES], "y")]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 40])}, {"y": 2}, {n: weights[n] for n in ("w", *bias)})
    found = weight_only_int8(model)
    x = rng.standard_normal((4, 40), dtype=np.float32)
    scale = np.abs(w).max(axis=0) / 127
    scale[5] = 1
    rounded = np.rint(w / scale) * scale
    np.testing.assert_allclose(
        run_model(found, {"x": x}, optimize=False)[0], np.maximum(x @ rounded + len(bias), 0), rtol=1e-4, atol=1e-3
    )
    (matrix,) = [tensor for tensor in found.graph.initializer if tensor.data_type == INT8]
    assert sorted(matrix.dims) == [24, 40]
    # So many rows that no column's largest number is small by chance.
    x = rng.standard_normal((64, 40), dtype=np.float32)
    for dynamic_or_static in (quantize_dynamic(model), quantize_static(model, [{"x": x}])):
        (got,) = run_model(dynamic_or_static, {"x": x})
        (expected,) = run_model(model, {"x": x})
        largest = np.abs(expected).max(axis=0) + 1e-6
        assert (np.abs(got - expected).max(axis=0) / largest).max() < 0.05


def test_weights_are_float32_again_before_the_product_and_written_once() -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((16, 16), dtype=np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["a", "w"], FEATURES),
        node("MatMul", [FEATURES, "w"], "y"),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 16])}, {"y": 2}, weights)
    found = weight_only_int8(model)
    assert [part.op_type for part in found.graph.node] == ["DequantizeLinear", "MatMul", "MatMul", "MatMul"]
    # The last belongs to the head.
    assert found.graph.node[-1].input[1] == "w"


def test_big_tables_become_float32_row_by_row() -> None:
    assert VOCABULARY * DIMS["text"] >= MIN_TABLE_ELEMENTS
    found = weight_only_int8(graph("text"))
    lookups = [part for part in ancestors(found, FEATURES) if part.op_type == "Gather" and "input_ids" in part.input]
    assert len(lookups) == 2
    tables = [constants(found)[part.input[0]] for part in lookups]
    assert {(table.data_type, tuple(table.dims)) for table in tables} == {
        (INT8, (VOCABULARY, DIMS["text"])),
        (FLOAT, (VOCABULARY, 1)),
    }
    small = {"table": np.ones((10, 8), np.float32)}
    nodes = [node("Gather", ["table", "ids"], FEATURES), node("Relu", [FEATURES], "y")]
    assert nothing_to_quantize(model_of(nodes, {"ids": (INT64, ["batch"])}, {"y": 2}, small))


@each_method
def test_convolutions_are_quantized_where_they_are_most_of_the_encoder(method: str) -> None:
    behind = quantized("image", method)
    convolutions = [part for part in ancestors(behind, FEATURES) if part.op_type == "Conv"]
    assert [constants(behind)[part.input[1]].data_type for part in convolutions] == [FLOAT] * 3
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3), dtype=np.float32),
        "v": rng.standard_normal((8, 8, 3, 3), dtype=np.float32),
    }
    nodes = [node("Conv", ["x", "w"], "a"), node("Conv", ["a", "v"], FEATURES), node("Relu", [FEATURES], "y")]
    model = model_of(nodes, {"x": (FLOAT, ["batch", 3, 8, 8])}, {"y": 4}, weights)
    x = rng.standard_normal((2, 3, 8, 8), dtype=np.float32)
    found = _METHODS[method](model, [{"x": x}])
    assert [tensor.data_type for tensor in found.graph.initializer if len(tensor.dims) == 4] == [INT8, INT8]
    (expected,), (got,) = run_model(model, {"x": x}), run_model(found, {"x": x})
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def encoder_weights(model: onnx.ModelProto) -> set[str]:
    return {name for part in ancestors(model, FEATURES) for name in part.input if name in constants(model)}


def is_small_or_conv(model: onnx.ModelProto, name: str) -> bool:
    return len(constants(model)[name].dims) != 2


def encoder_inputs(model: onnx.ModelProto, arrays: Arrays) -> Arrays:
    return {value.name: arrays[value.name] for value in cut(model, [], [FEATURES]).graph.input}
