"""What the transformations of a graph share: constants, ancestors, folding, cutting, and counting multiply-adds.

Every function takes a model whose weights are in memory, and leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.utils
from numpy.typing import NDArray

from fluxtalk.errors import UsageError, reason
from fluxtalk.runtime.backends.onnxruntime_session import import_onnxruntime

Arrays = dict[str, NDArray[Any]]

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
_COUNTED = ("MatMul", "MatMulInteger", "Gemm", "Conv", "Einsum")


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with local functions inlined, and `Constant` nodes as initializers."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if result.functions:
        result = onnx.inliner.inline_local_functions(result)
    nodes = []
    for node in result.graph.node:
        value = _constant(node)
        if value is None:
            nodes.append(node)
        else:
            value.name = node.output[0]
            result.graph.initializer.append(value)
    replace_nodes(result, nodes)
    return result


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Name to tensor of what cannot change: initializers that are not inputs too."""
    inputs = {value.name for value in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, those of its inner graphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inner = {value.name for value in [*graph.input, *graph.initializer]}
            inner.update(name for part in graph.node for name in part.output)
            names.extend(name for part in graph.node for name in inputs_of(part) if name not in inner)
            names.extend(value.name for value in graph.output if value.name not in inner)
    return names


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Value to the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Value to the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(inputs_of(node)):
            found.setdefault(name, []).append(node)
    return found


def ancestors(model: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    """The nodes that a value is made of, in the graph's order.

    Raises:
        UsageError: the graph has no such value.
    """
    wanted = {value}
    found = []
    known = {part.name for part in [*model.graph.input, *model.graph.initializer]} | set(producers(model))
    if value not in known:
        raise UsageError(f"The graph should have a value called {value}, and has none; export it again.")
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(inputs_of(node))
            found.append(node)
    return found[::-1]


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Change the model's nodes, and drop the initializers that none of them reads."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in inputs_of(node)} | {value.name for value in model.graph.output}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    values = used | {name for node in kept for name in node.output}
    for info in [info for info in model.graph.value_info if info.name not in values]:
        model.graph.value_info.remove(info)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every chain of operators over constants by its result, unless that is larger than what it is made of.

    The size of a result does not matter otherwise, so that whole weights are folded into each other. Results are
    computed by ONNX Runtime with one thread; the same model gives the same bytes.
    """
    model = copied(model)
    known = constants(model)
    nodes = [node for node in model.graph.node if _foldable(node)]
    folding: list[onnx.NodeProto] = []
    made_of: dict[str, set[str]] = {name: {name} for name in known}
    for node in nodes:
        names = inputs_of(node)
        if all(name in made_of for name in names):
            folding.append(node)
            sources = set[str]().union(*(made_of[name] for name in names))
            made_of.update((name, sources) for name in node.output if name)
    if not folding:
        replace_nodes(model, list(model.graph.node))
        return model
    results = _evaluate(model, folding)
    sizes = {name: tensor.ByteSize() for name, tensor in known.items()}
    small: set[str] = set(known)
    for node in folding:
        outputs = [name for name in node.output if name]
        allowed = {name: sum(sizes[source] for source in made_of[name]) for name in outputs}
        # Of nothing at all come only shapes and the like, which are small.
        if all(name in small for name in inputs_of(node)) and all(
            results[name].nbytes <= max(allowed[name], 64) for name in outputs
        ):
            small.update(outputs)
    left = [node for node in model.graph.node if not all(name in small for name in node.output if name)]
    needed = {name for node in left for name in inputs_of(node)} | {value.name for value in model.graph.output}
    for node in folding:
        for name in node.output:
            if name in needed and name in small:
                model.graph.initializer.append(onnx.numpy_helper.from_array(results[name], name))
    replace_nodes(model, left)
    return model


def cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model between values, such as its head: from `frozen_features` on.

    Args:
        inputs: values that the part is given; graph inputs that it reads are added.
        outputs: values that it gives.

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
    """How many multiplications with addition the matrix products and convolutions of a graph take.

    The graph is run once, by ONNX Runtime on the CPU, on zeros of the sizes given, for the shapes within.

    Args:
        dims: the size of every dimension of the inputs that has a name, such as ``batch=1, length=64, k=4``.

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
    shapes = dict(zip(names, run(model, zeros(model, dims)), strict=True))
    return sum(_products(node, shapes) for node in counted)


def zeros(model: onnx.ModelProto, dims: Mapping[str, int]) -> Arrays:
    """Zeros for every input of a graph; masks are True.

    Raises:
        UsageError: the size of a named dimension is missing.
    """
    arrays: Arrays = {}
    for value in model.graph.input:
        sizes = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in dims:
                raise UsageError(f"The input {value.name} has a dimension {dim.dim_param}; give its size.")
            sizes.append(dims[dim.dim_param] if dim.dim_param else dim.dim_value)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = np.full(sizes, dtype == np.bool_, dtype)
    return arrays


def run(model: onnx.ModelProto, inputs: Arrays, optimize: bool = True) -> list[NDArray[Any]]:
    """All outputs of a model, by ONNX Runtime on the CPU with one thread.

    Raises:
        UsageError: it cannot be run.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: list[NDArray[Any]] = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's exceptions have no public base
        raise UsageError(f"ONNX Runtime cannot run the graph ({reason(error)}); use another --opset.") from None
    return results


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a `Constant` node of plain numbers."""
    if node.op_type != "Constant" or node.domain:
        return None
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        return tensor
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        return None
    result: onnx.TensorProto = onnx.numpy_helper.from_array(np.asarray(value, kinds[attribute.name]))
    return result


def _foldable(node: onnx.NodeProto) -> bool:
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return not inner and not node.domain and not node.op_type.startswith(_RANDOM)


def _evaluate(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> Arrays:
    part = onnx.ModelProto()
    part.CopyFrom(model)
    names = [name for node in nodes for name in node.output if name]
    for values in (part.graph.input, part.graph.output, part.graph.value_info):
        del values[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    replace_nodes(part, nodes)
    return dict(zip(names, run(part, {}, optimize=False), strict=True))


def _products(node: onnx.NodeProto, shapes: Mapping[str, NDArray[Any]]) -> int:
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
