"""Decision which operators of a float32 graph are computed in half precision, and which keep float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import constants, consumers, inputs_of, producers

HALF_TYPES: dict[str, int] = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
_ARITHMETIC = frozenset(
    {"Abs", "Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish"}
    | {"Mul", "Neg", "PRelu", "Relu", "Sigmoid", "Softplus", "Sub", "Tanh"}
)
_MOVEMENT = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"}
    | {"Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"}
    | {"Unsqueeze", "Where", "MaxPool"}
)
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_RANGES = {"fp16": (2.0**-14, 65504.0), "bf16": (2.0**-126, 3.3895313892515355e38)}
"""Type to its smallest and largest normal number."""


@dataclass(frozen=True)
class HalfPlan:
    """Values and nodes in half precision; made by `plan_half`."""

    floats: frozenset[str]
    """Float32 values of the graph, weights included."""
    half: frozenset[str]
    """The values among them that their node computes in half precision."""

    def is_half(self, node: onnx.NodeProto) -> bool:
        """True if a node is computed in half precision."""
        return any(name in self.half for name in node.output)

    def rounds(self, node: onnx.NodeProto) -> bool:
        """True if a half node's results have to be rounded: moving numbers leaves them as they were."""
        return node.op_type in _PRODUCTS | _ARITHMETIC


def plan_half(model: onnx.ModelProto, kind: str) -> HalfPlan:
    """Decide which values are half precision.

    Args:
        model: in float32, from `graph_tools.copied`.
        kind: ``fp16`` or ``bf16``.

    Raises:
        UsageError: the graph has control flow, or the type of a value cannot be inferred.
    """
    types = _element_types(model)
    floats = frozenset(name for name, kind_of in types.items() if kind_of == onnx.TensorProto.FLOAT)
    return _Planner(model, types, floats, kind).plan()


class _Planner:
    """Applies the rules of `_own_type` to every node, in the graph's order."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], floats: frozenset[str], kind: str) -> None:
        self._model = model
        self._types = types
        self._floats = floats
        self._kind = kind
        self._constants = constants(model)
        self._consumers = consumers(model)
        self._producers = producers(model)
        self._outputs = {value.name for value in model.graph.output}
        self._opset = next(part.version for part in model.opset_import if part.domain in ("", "ai.onnx"))
        self._after_tokens = self._downstream(OUTPUTS[0])
        self._open: set[str] = set(self._constants)
        """Undecided values: constants, masks as numbers, and these after being moved."""
        self._given = {value.name for value in model.graph.input}
        """Inputs of the graph as floats, also after being moved, scaled and shifted."""
        self._half: set[str] = set()

    def plan(self) -> HalfPlan:
        undecided = []
        for node in self._model.graph.node:
            outputs = [name for name in node.output if name in self._floats]
            if not outputs:
                continue
            half = self._own_type(node)
            if half is None:
                self._open.update(outputs)
                undecided.append(node)
            elif half:
                self._half.update(outputs)
        # An undecided value takes the type of its readers, which are decided first: they come later.
        for node in reversed(undecided):
            readers = [reader for name in node.output for reader in self._consumers.get(name, [])]
            if any(name in self._half for reader in readers for name in reader.output):
                self._half.update(name for name in node.output if name in self._floats)
        return HalfPlan(self._floats, frozenset(self._half))

    def _own_type(self, node: onnx.NodeProto) -> bool | None:
        """True if a node is half precision, False if float32, None if its readers decide."""
        given = [name for name in node.input if name in self._floats]
        known = [name for name in given if name not in self._open]
        all_half = all(name in self._half for name in known)
        if known and self._given.issuperset(known) and node.op_type in _ARITHMETIC | _MOVEMENT:
            # (pixel - mean) / std in bfloat16 would be wrong by a hundredth.
            self._given.update(node.output)
            return False
        if self._is_float(node):
            self._given.update(node.output if node.op_type == "Cast" else ())
            return False
        if node.op_type in _MOVEMENT or node.op_type == "Cast":
            return all_half if known else None
        if node.op_type in _ARITHMETIC:
            any_half = any(name in self._half for name in known)
            if known and not any_half and (len(known) > 1 or self._leads_to(node, self._is_float)):
                return False
            if node.op_type in ("Mul", "Sub") and any_half and not all_half:
                # x - mean and x * (1 / norm) of a normalization that is written out.
                return False
        return True

    def _is_float(self, node: onnx.NodeProto) -> bool:
        """True if a node is float32 whatever its neighbors are."""
        if node.domain or self._after_tokens.intersection(node.input):
            return True
        if node.op_type == "Cast":
            return bool(self._types[node.input[0]] != onnx.TensorProto.BOOL)
        if node.op_type not in _PRODUCTS | _ARITHMETIC | _MOVEMENT or not self._standard_allows_half(node):
            return True
        if node.op_type in _PRODUCTS:
            return False
        if node.op_type == "Div" and node.input[1] not in self._constants:
            return True
        if node.op_type == "Mul" and node.input[0] == node.input[1]:
            # A square: 256 is enough to overflow float16.
            return True
        if any(self._is_lost(name) for name in node.input):
            return True
        return self._leads_to(node, lambda reader: reader.op_type in _SOFTMAX)

    def _leads_to(self, node: onnx.NodeProto, target: Callable[[onnx.NodeProto], bool]) -> bool:
        """True if all readers of a node's outputs, through moves and arithmetic, are target nodes."""
        for name in node.output:
            readers = self._consumers.get(name, [])
            if name in self._outputs or not readers:
                return False
            for reader in readers:
                through = reader.op_type in _ARITHMETIC | _MOVEMENT
                if not target(reader) and not (through and self._leads_to(reader, target)):
                    return False
        return True

    def _is_lost(self, name: str) -> bool:
        """True if half precision rounds a constant scalar, such as -3.4e38 or 1e-12, to infinity or 0."""
        tensor = self._constants.get(name)
        if tensor is None or name not in self._floats or int(np.prod(tensor.dims)) != 1:
            return False
        value = abs(float(onnx.numpy_helper.to_array(tensor).reshape(())))
        smallest, largest = _RANGES[self._kind]
        return value != 0 and math.isfinite(value) and not smallest <= value <= largest

    def _standard_allows_half(self, node: onnx.NodeProto) -> bool:
        return _allows(node.op_type, self._opset, self._kind)

    def _downstream(self, value: str) -> set[str]:
        found = {value}
        for node in self._model.graph.node:
            if found.intersection(node.input):
                found.update(node.output)
        return found


@functools.cache
def _allows(operator: str, opset: int, kind: str) -> bool:
    """True if ONNX defines an operator for a half type: a convolution has no bfloat16 before opset 22."""
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({'float16' if kind == 'fp16' else 'bfloat16'})"
    by_name = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return wanted in by_name.get(schema.outputs[0].type_str, ())


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the element type of every value."""
    for node in model.graph.node:
        if set(inputs_of(node)) - set(node.input) or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise UsageError(
                f"The graph has control flow ({node.op_type} {node.name}), which cannot be converted to half "
                "precision; write the encoder without it, or use --precision fp32."
            )
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.input, *inferred.value_info]}
    types.update((value.name, value.type.tensor_type.elem_type) for value in inferred.output)
    types.update((tensor.name, tensor.data_type) for tensor in inferred.initializer)
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise UsageError(
                    f"The type of {name}, which {node.op_type} {node.name} gives, cannot be inferred, so the graph "
                    "cannot be converted to half precision; use --precision fp32."
                )
    return types
