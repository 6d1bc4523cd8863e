"""A float32 graph with an 8-bit encoder, for the CPU. The head stays float32, so that k never changes a scale.

The weights of matrix products are int8 with one scale for each output channel; large embedding tables have one for each
row. The activations differ by method:

- *static*: uint8, with scales from calibration data. A row does not depend on others.
- *dynamic*: uint8, with a scale from each batch: a row depends on its neighbors.
- *weight-only*: float32. ONNX Runtime may round them to 8 bits too, in blocks of a row, so that rows stay independent.

Beside uint8 activations, weights have seven of their bits: a processor without VNNI adds two products of eight bits in
16, and what is too large for these becomes the largest number that they hold, without a word.

Convolutions before a transformer stay float32: in int8 they would cost more cosine than all its products do. If they
hold most of an encoder's weights, these are int8 and the activations float32. All methods use standard operators.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import ancestors, constants, copied, replace_nodes
from fluxtalk.runtime.backends.onnxruntime_session import import_onnxruntime

MIN_TABLE_ELEMENTS = 1 << 16
"""Elements from which on an embedding table in int8 is worth two more operators."""


def nothing_to_quantize(model: onnx.ModelProto) -> bool:
    """True if the graph has no encoder with weights, because features are precomputed."""
    return not _weighted(copied(model))


def quantize_static(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> onnx.ModelProto:
    """Quantize weights to int8, and activations to uint8 in the range that they have on calibration data.

    The range is from the smallest to the largest number seen: cutting off outliers, or the range of least entropy,
    hardly changed the cosines and needs inputs of one length.

    Args:
        model: in float32, with constants folded.
        calibration: batches of the graph's inputs; ``token_index`` may be left out.

    Raises:
        UsageError: the encoder has nothing to quantize, or there is no batch.
    """
    if not calibration:
        raise UsageError(
            "Static int8 takes its scales from calibration data, and got no batch; give some, or use weight-only int8."
        )
    quantization = _quantization()

    def quantize(prepared: onnx.ModelProto, products: list[str], path: Path) -> None:
        quantization.quantize_static(
            prepared,
            path,
            _CalibrationReader(prepared, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            nodes_to_quantize=products,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            # Results stay float32, because rounding them costs cosine.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )

    return _quantized(model, quantize)


def quantize_dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize weights to int8, and activations to uint8 in the range that they have in each batch.

    Raises:
        UsageError: the encoder has nothing to quantize.
    """
    quantization = _quantization()

    def quantize(prepared: onnx.ModelProto, products: list[str], path: Path) -> None:
        quantization.quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            nodes_to_quantize=products,
        )

    return _quantized(model, quantize)


def weight_only_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize weights to int8, each followed by DequantizeLinear; activations stay float32.

    Raises:
        UsageError: the encoder has nothing to quantize.
    """
    prepared = _prepared(model)
    return _with_int8_weights(prepared, {node.name for node in _weighted(prepared)})


class _CalibrationReader:
    """Calibration data in the interface of ONNX Runtime's `CalibrationDataReader`."""

    def __init__(self, model: onnx.ModelProto, batches: Sequence[Arrays]) -> None:
        # The head runs too, but its ranges are not used.
        self._given = {TOKEN_INDEX: np.arange(1)} if TOKEN_INDEX in {v.name for v in model.graph.input} else {}
        self._left = iter(batches)

    def get_next(self) -> Arrays | None:
        """Return the next batch; None after the last."""
        batch = next(self._left, None)
        return None if batch is None else {**self._given, **batch}


def _quantized(model: onnx.ModelProto, quantize: Callable[[onnx.ModelProto, list[str], Path], None]) -> onnx.ModelProto:
    """Quantize the encoder's matrix products by ONNX Runtime, then the weights of its other nodes."""
    prepared = _prepared(model)
    weighted = _weighted(prepared)
    products = [node.name for node in weighted if node.op_type == "MatMul"]
    if products:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            path = Path(folder) / "quantized.onnx"
            quantize(prepared, products, path)
            prepared = onnx.load(path)
        prepared.producer_name, prepared.producer_version = model.producer_name, model.producer_version
        del prepared.metadata_props[:]
        prepared.metadata_props.extend(model.metadata_props)
        for name in [part for part in prepared.opset_import if part.domain not in ("", "ai.onnx")]:
            if not any(node.domain == name.domain for node in prepared.graph.node):
                prepared.opset_import.remove(name)
    return _with_int8_weights(prepared, {node.name for node in weighted}.difference(products))


def _with_int8_weights(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Replace the weights of the nodes of these names by int8."""
    weights = _Int8Weights(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
        elif node.op_type == "Gather":
            nodes.extend(weights.lookup(node))
        else:
            nodes.extend(weights.product(node))
    replace_nodes(model, nodes)
    return model


class _Int8Weights:
    """Writes int8 weights, each once, and the nodes that make float32 of them again."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._tensors = constants(model)
        self._written: dict[tuple[str, int], str] = {}

    def product(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Nodes of a product or convolution with int8 weights."""
        axis = _channel_axis(node)
        fresh = (node.input[1], axis) not in self._written
        name = self._int8(node.input[1], axis)
        if fresh:
            yield onnx.helper.make_node(
                "DequantizeLinear", [name, f"{name}_scale"], [f"{name}_float"], name=f"{name}_float", axis=axis
            )
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[1] = f"{name}_float"
        yield changed

    def lookup(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Nodes of an embedding lookup that makes float32 of the rows that are read only."""
        name, out = self._int8(node.input[0], 0, keepdims=True), node.output[0]
        for source, found in ((name, f"{out}__int8"), (f"{name}_scale", f"{out}__scale")):
            yield onnx.helper.make_node("Gather", [source, node.input[1]], [found], name=found, axis=0)
        cast = f"{out}__float"
        yield onnx.helper.make_node("Cast", [f"{out}__int8"], [cast], name=cast, to=onnx.TensorProto.FLOAT)
        yield onnx.helper.make_node("Mul", [cast, f"{out}__scale"], [out], name=node.name)

    def _int8(self, name: str, axis: int, keepdims: bool = False) -> str:
        if (name, axis) not in self._written:
            array = onnx.numpy_helper.to_array(self._tensors[name])
            others = tuple(place for place in range(array.ndim) if place != axis)
            largest = np.abs(array).max(axis=others, keepdims=True)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            # The name has the axis, because another node may read the same weights along another one.
            new = self._written[name, axis] = f"{name}__int8_{axis}"
            rounded = np.rint(array / scale).clip(-127, 127).astype(np.int8)
            self._graph.initializer.append(onnx.numpy_helper.from_array(rounded, new))
            flat = scale if keepdims else scale.reshape(-1)
            self._graph.initializer.append(onnx.numpy_helper.from_array(flat, f"{new}_scale"))
        return self._written[name, axis]


def _channel_axis(node: onnx.NodeProto) -> int:
    """Dimension of a node's weights that holds the output channels."""
    return 0 if node.op_type == "Conv" else 1


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model, with unique node names and `MatMul` for every product, which all methods support."""
    model = copied(model)
    if not _weighted(model):
        raise UsageError(
            "There is nothing to quantize: int8 is for the weights of an encoder, and these features are "
            "precomputed; use --precision fp32."
        )
    _split_gemms(model)
    names = {node.name for node in model.graph.node}
    if len(names) < len(model.graph.node) or "" in names:
        for number, node in enumerate(model.graph.node):
            node.name = f"node_{number}"
    return model


def _split_gemms(model: onnx.ModelProto) -> None:
    """Split the encoder's `Gemm` nodes into matrix product and addition, in place."""
    gemms = {node.output[0] for node in _weighted(model) if node.op_type == "Gemm"}
    tensors = constants(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in gemms:
            nodes.append(node)
            continue
        weight, transposed = node.input[1], f"{node.input[1]}__transposed"
        if _transposes(node):
            if transposed not in tensors:
                array = np.ascontiguousarray(onnx.numpy_helper.to_array(tensors[weight]).T)
                tensors[transposed] = onnx.numpy_helper.from_array(array, transposed)
                model.graph.initializer.append(tensors[transposed])
            weight = transposed
        bias = node.input[2] if len(node.input) == 3 else ""
        product = f"{node.output[0]}__product" if bias else node.output[0]
        nodes.append(
            onnx.helper.make_node("MatMul", [node.input[0], weight], [product], name=f"{node.output[0]}__product")
        )
        if bias:
            nodes.append(onnx.helper.make_node("Add", [product, bias], list(node.output), name=node.name))
    replace_nodes(model, nodes)


def _is_plain(node: onnx.NodeProto) -> bool:
    """True if a `Gemm` is x W + b or x W^T + b."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return not values.get("transA") and values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0


def _transposes(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _weighted(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes of the encoder whose weights can be int8."""
    tensors = constants(model)

    def matrix(name: str) -> onnx.TensorProto | None:
        tensor = tensors.get(name)
        fits = tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
        return tensor if fits else None

    found = []
    for node in ancestors(model, FEATURES):
        if node.op_type == "Gather":
            table, axis = matrix(node.input[0]), next((a.i for a in node.attribute if a.name == "axis"), 0)
            chosen = table is not None and axis == 0 and int(np.prod(table.dims)) >= MIN_TABLE_ELEMENTS
        elif node.op_type == "Conv":
            weight = tensors.get(node.input[1])
            chosen = weight is not None and weight.data_type == onnx.TensorProto.FLOAT
        else:
            plain = node.op_type == "MatMul" or (node.op_type == "Gemm" and _is_plain(node))
            chosen = plain and matrix(node.input[1]) is not None
        if chosen:
            found.append(node)
    sizes = [int(np.prod(tensors[node.input[0 if node.op_type == "Gather" else 1]].dims)) for node in found]
    convolved = sum(size for node, size in zip(found, sizes, strict=True) if node.op_type == "Conv")
    return found if 2 * convolved >= sum(sizes) else [node for node in found if node.op_type != "Conv"]


def _quantization() -> Any:
    """Import ONNX Runtime's quantizer.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    import_onnxruntime()
    from onnxruntime import quantization

    return quantization


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's advice, by the root logger, to prepare the model: its constants are folded already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
