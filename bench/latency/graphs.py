"""Tools of the benchmarks for ONNX graphs: parts of a graph, inputs of zeros, and multiply-adds counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx.utils

from fluxtalk.arrays import Array
from fluxtalk.errors import UsageError, reason
from fluxtalk.export.graph.graph_tools import copied, inputs_of, replace_nodes, run_model

_COUNTED = ("MatMul", "MatMulInteger", "Gemm", "Conv", "Einsum")


def cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Cut out the part of a model between values, such as its head, from `frozen_features` on.

    Args:
        inputs: values that the part starts from; graph inputs that it reads are added.
        outputs: values that it ends with.

    Raises:
        UsageError: the graph has no such value.
    """
    model = copied(model)
    wanted = set(outputs)
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output) - set(inputs):
            wanted.update(inputs_of(node))
    given = [*inputs, *(v.name for v in model.graph.input if v.name in wanted and v.name not in inputs)]
    try:
        extracted = onnx.utils.Extractor(model).extract_model(given, list(outputs))
    except ValueError as error:
        raise UsageError(
            f"The graph cannot be cut between {', '.join(inputs)} and {', '.join(outputs)} ({reason(error)}); "
            "name values that it has."
        ) from None
    extracted.graph.name = model.graph.name
    result: onnx.ModelProto = extracted
    return result


def multiply_adds(model: onnx.ModelProto, **dims: int) -> int:
    """Count the multiply-adds of a graph's matrix products and convolutions.

    The graph is run once, by ONNX Runtime on the CPU, on zeros of these sizes, to learn the shapes of its values.

    Args:
        dims: size of every named dimension of the inputs, such as ``batch=1, length=64, k=4``.

    Raises:
        UsageError: a dimension is missing, or the graph cannot be run with these sizes.
    """
    model = copied(model)
    counted = [node for node in model.graph.node if node.op_type in _COUNTED]
    names = list(dict.fromkeys(name for node in counted for name in (*node.input, node.output[0]) if name))
    if not names:
        return 0
    nodes = [*model.graph.node, *(onnx.helper.make_node("Shape", [n], [f"{n}__shape"]) for n in names)]
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}__shape", onnx.TensorProto.INT64, None))
    replace_nodes(model, nodes)
    shapes = dict(zip(names, run_model(model, zeros(model, dims)), strict=True))
    return sum(_products(node, shapes) for node in counted)


def zeros(model: onnx.ModelProto, dims: Mapping[str, int]) -> dict[str, Array]:
    """Make zeros for every input of a graph; masks are True.

    Raises:
        UsageError: the size of a named dimension is missing.
    """
    arrays: dict[str, Array] = {}
    for value in model.graph.input:
        sizes = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in dims:
                raise UsageError(f"The input {value.name} has a dimension {dim.dim_param}; give its size.")
            sizes.append(dims[dim.dim_param] if dim.dim_param else dim.dim_value)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = np.full(sizes, dtype == np.bool_, dtype)
    return arrays


def _products(node: onnx.NodeProto, shapes: Mapping[str, Array]) -> int:
    given = [[int(size) for size in shapes[name]] for name in node.input if name]
    result = math.prod(int(size) for size in shapes[node.output[0]])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        # One output number reads the whole kernel of its output channel.
        return result * math.prod(given[1][1:])
    if node.op_type == "Gemm":
        return result * given[0][0 if attributes.get("transA") else 1]
    if node.op_type == "Einsum":
        return math.prod(_einsum_sizes(attributes["equation"].decode(), given).values())
    return result * given[0][-1]


def _einsum_sizes(equation: str, given: Sequence[Sequence[int]]) -> dict[str, int]:
    """Letter to size. The dots of an equation are letters too: their dimensions, counted from the last."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), given, strict=True):
        letters = list(_letters(term, len(shape)))
        sizes.update((letter, max(sizes.get(letter, 1), size)) for letter, size in zip(letters, shape, strict=True))
    return sizes


def _letters(term: str, rank: int) -> Iterator[str]:
    before, dots, after = term.partition("...")
    yield from before
    if dots:
        yield from (f".{place}" for place in range(rank - len(before) - len(after), 0, -1))
    yield from after
