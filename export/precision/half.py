"""A float32 graph in float16 or bfloat16, by the types of its values.

Matrix products, convolutions and elementwise arithmetic are computed in half precision. Normalization, softmax, sums,
powers, roots, unknown operators, and everything after the tokens stay in float32, and so do scores on their way to a
softmax (`half_plan.py`). The input is the float32 graph whose parity was measured, so any encoder can be converted.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import copied, replace_nodes
from fluxtalk.export.precision.half_plan import HALF_TYPES, HalfPlan, plan_half

_NUMPY: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def to_half(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Convert weights and most operators to half precision; inputs and outputs keep their types.

    Args:
        model: in float32.
        kind: ``fp16`` or ``bf16``.

    Raises:
        UsageError: a weight does not fit into float16, or the graph cannot be converted.
    """
    return _converted(model, kind, _HalfTypes)


def emulate_half(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Make a float32 graph that computes the numbers of `to_half`, by rounding every value that is half there.

    It measures bfloat16 on a processor that has no operators for it. Operators accumulate in float32 in both, as on a
    GPU. Any optimization level of ONNX Runtime keeps the rounding.

    Raises:
        UsageError: as `to_half`.
    """
    return _converted(model, kind, _RoundedFloats)


def _converted(model: onnx.ModelProto, kind: str, writer: type[_Writer]) -> onnx.ModelProto:
    if kind not in HALF_TYPES:
        raise UsageError(f"Half precision is {' or '.join(HALF_TYPES)}; got {kind!r}.")
    model = copied(model)
    plan = plan_half(model, kind)
    writing = writer(model, plan, kind)
    for node in model.graph.node:
        writing.add(node)
    for value in model.graph.output:
        if value.name in plan.half:
            writing.read(value.name, half=False)
    writing.finish()
    return model


class _Writer:
    """Rewrites the nodes of a graph; converts each value once to each type that its readers want.

    Args:
        model: changed by `finish`.
        plan: tells which nodes and values are half.
    """

    def __init__(self, model: onnx.ModelProto, plan: HalfPlan, kind: str) -> None:
        self.model = model
        self.plan = plan
        self.kind = kind
        self.nodes: list[onnx.NodeProto] = []
        self.outputs = {value.name for value in model.graph.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names: dict[tuple[str, bool], str] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Write a node in the type that the plan assigns."""
        half = self.plan.is_half(node)
        written = onnx.NodeProto()
        written.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self.plan.floats:
                written.input[place] = self.read(name, half)
        self.write(written, half)

    def read(self, name: str, half: bool) -> str:
        """Name of a float value in a type; writes the conversion if it is not there yet."""
        if (name, half) not in self._names:
            if name in self._tensors and half:
                self._names[name, half] = self._half_weight(self._tensors[name])
            elif name in self._tensors or (name in self.plan.half) == half:
                self._names[name, half] = name
            else:
                self._names[name, half] = self.convert(name, half)
        return self._names[name, half]

    def named(self, name: str, half: bool, new: str) -> None:
        """Note the name of a value in a type."""
        self._names[name, half] = new

    def write(self, node: onnx.NodeProto, half: bool) -> None:
        """Write a node whose inputs have the right type."""
        raise NotImplementedError

    def convert(self, name: str, half: bool) -> str:
        """Write the conversion of a value to its other type, and return its name in that type."""
        raise NotImplementedError

    def weight(self, array: NDArray[Any], name: str) -> onnx.TensorProto:
        """Make an initializer of a rounded weight."""
        raise NotImplementedError

    def cast(self, name: str, new: str, to: int) -> None:
        """Write a `Cast` node."""
        self.nodes.append(onnx.helper.make_node("Cast", [name], [new], name=f"{new}__cast", to=to))

    def finish(self) -> None:
        """Replace the model's nodes by those that were written."""
        replace_nodes(self.model, self.nodes)

    def _half_weight(self, tensor: onnx.TensorProto) -> str:
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            rounded = array.astype(_NUMPY[self.kind])
        if (np.isinf(rounded) & np.isfinite(array)).any():
            # bfloat16 has float32's range, except for numbers that round up at its end.
            other = "bf16 or fp32" if self.kind == "fp16" else "fp32"
            raise UsageError(
                f"The weight {tensor.name} has numbers up to {np.abs(array[np.isfinite(array)]).max():.3g}, and "
                f"{self.kind} ends at {float(ml_dtypes.finfo(_NUMPY[self.kind]).max):.3g}; use --precision {other}."
            )
        name = f"{tensor.name}__{self.kind}"
        self.model.graph.initializer.append(self.weight(rounded, name))
        return name


class _HalfTypes(_Writer):
    """Writes half values in the half type."""

    def write(self, node: onnx.NodeProto, half: bool) -> None:
        if half:
            if node.op_type == "Cast":
                node.attribute[0].i = HALF_TYPES[self.kind]
            for place, name in enumerate(node.output):
                if name in self.outputs:
                    # The graph's output keeps its name and type, and is converted from this value.
                    node.output[place] = f"{name}__{self.kind}"
                    self.named(name, True, node.output[place])
        self.nodes.append(node)

    def convert(self, name: str, half: bool) -> str:
        new = f"{name}__{self.kind if half else 'fp32'}" if half or name not in self.outputs else name
        self.cast(self.read(name, not half), new, HALF_TYPES[self.kind] if half else onnx.TensorProto.FLOAT)
        return new

    def weight(self, array: NDArray[Any], name: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=HALF_TYPES[self.kind], dims=array.shape)
        tensor.raw_data = array.tobytes()
        return tensor

    def finish(self) -> None:
        for info in self.model.graph.value_info:
            if info.name in self.plan.half:
                info.type.tensor_type.elem_type = HALF_TYPES[self.kind]
        super().finish()


class _RoundedFloats(_Writer):
    """Writes half values in float32, rounded to numbers of the half type."""

    def write(self, node: onnx.NodeProto, half: bool) -> None:
        rounded = [name for name in node.output if half and self.plan.rounds(node) and name in self.plan.half]
        for place, name in enumerate(node.output):
            if name in rounded:
                node.output[place] = f"{name}__exact"
        self.nodes.append(node)
        for name in rounded:
            self._round(f"{name}__exact", name)

    def convert(self, name: str, half: bool) -> str:
        if not half:
            return name
        new = f"{name}__{self.kind}"
        self._round(name, new)
        return new

    def weight(self, array: NDArray[Any], name: str) -> onnx.TensorProto:
        tensor: onnx.TensorProto = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        return tensor

    def _round(self, name: str, new: str) -> None:
        self.cast(name, f"{new}__rounded", HALF_TYPES[self.kind])
        self.cast(f"{new}__rounded", new, onnx.TensorProto.FLOAT)
