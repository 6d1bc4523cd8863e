"""Tools that the transformations of a graph share: constants, readers and ancestors of a value, constant folding.

Every function takes a model whose weights are in memory, and all but `replace_nodes` leave it as it was.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.inliner

from fluxtalk.arrays import Array, Arrays
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.tracing import named_module
from fluxtalk.runtime.backends.onnxruntime_session import import_onnxruntime

_RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model, with local functions inlined and `Constant` nodes turned into initializers."""
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
    """Name to tensor of the initializers that cannot be overridden by an input of the same name."""
    inputs = {value.name for value in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, those that its subgraphs read from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inner = {value.name for value in [*graph.input, *graph.initializer]}
            inner.update(name for part in graph.node for name in part.output)
            names.extend(name for part in graph.node for name in inputs_of(part) if name not in inner)
            names.extend(value.name for value in graph.output if value.name not in inner)
    return names


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Value to the node that outputs it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Value to the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(inputs_of(node)):
            found.setdefault(name, []).append(node)
    return found


def ancestors(model: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    """Nodes that a value depends on, in the graph's order.

    Raises:
        UsageError: the graph has no such value.
    """
    wanted = {value}
    found = []
    known = {part.name for part in [*model.graph.input, *model.graph.initializer]} | set(producers(model))
    if value not in known:
        raise UsageError(f"The graph has no value called {value}; export it again.")
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(inputs_of(node))
            found.append(node)
    return found[::-1]


def scopes_of(node: onnx.NodeProto) -> list[tuple[str, str]]:
    """Modules that a node was traced in, outermost first: path and class; none once the exporter's notes are gone."""
    noted = {part.key: part.value for part in node.metadata_props}
    if _SCOPES not in noted or _CLASSES not in noted:
        return []
    names, classes = (ast.literal_eval(noted[key]) for key in (_SCOPES, _CLASSES))
    # The last of both is the operator itself.
    return list(zip(names, classes, strict=False))[:-1]


def random_nodes(model: onnx.ModelProto) -> list[str]:
    """Name the operators of a graph that draw random numbers, each with the module that it was traced in."""
    found = []
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            # `Dropout` drops only if its third input says so, and without one it does not.
            drops = node.op_type != "Dropout" or (len(node.input) > 2 and bool(node.input[2]))
            if node.op_type.startswith(_RANDOM) and drops:
                scopes = [(path.removeprefix("embedder."), kind) for path, kind in scopes_of(node)]
                found.append(f"{node.op_type} in {named_module(scopes)}")
    return list(dict.fromkeys(found))


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace the model's nodes in place, and drop the initializers that none of them reads."""
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
    """Replace every chain of operators over constants by its result, unless that is larger than the constants.

    Results of any size are kept otherwise, so that whole weights are folded into each other. They are computed by ONNX
    Runtime with one thread, so the same model gives the same bytes.
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
        # 64 bytes are allowed in any case: generators without inputs give small shapes.
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


def run_model(model: onnx.ModelProto, inputs: Arrays, optimize: bool = True) -> list[Array]:
    """Run a model by ONNX Runtime on the CPU with one thread; returns all outputs in order.

    Args:
        optimize: whether ONNX Runtime may transform the graph.

    Raises:
        UsageError: the model cannot be run.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: list[Array] = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's exceptions have no public base
        raise UsageError(f"ONNX Runtime cannot run the graph ({reason(error)}); use another --opset.") from None
    return results


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Tensor of a `Constant` node of numbers; None for other nodes."""
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
    return dict(zip(names, run_model(part, {}, optimize=False), strict=True))
