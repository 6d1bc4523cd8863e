"""The module in which two implementations of an embedder part, by their intermediate outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import TOKEN_INDEX
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import run_model, scopes_of
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import to_tensors

_NOTE = "fluxtalk.layers"
_SMALLEST = 2.0**-24
"""Half a unit in float32's last place: a smaller relative difference is none."""
ROWS = 4
"""Rows whose intermediate outputs are compared: those that differ most."""


@dataclass(frozen=True)
class LayerDifference:
    """The module at whose output the difference grows the most."""

    path: str
    """Path of the module in the embedder; empty if no module's output could be compared."""
    kind: str
    before: float
    """Largest relative difference of the outputs computed before it."""
    after: float
    """Relative difference of its own output."""

    def line(self) -> str:
        """Clause for a sentence about the difference."""
        if not self.path:
            return "arises in no module whose output could be compared"
        return f"arises most in {self.path} ({self.kind}), from {self.before:.0e} to {self.after:.0e} of the values"


def eager_layers(embedder: EagerEmbedder, inputs: Sequence[Tensor]) -> dict[str, Array]:
    """Run an embedder at k = N and keep the first float output of each module, in the order in which they finish.

    Args:
        inputs: the preprocessing's arrays in order.
    """
    kept: dict[str, Array] = {}

    def keep(name: str, output: Any) -> None:
        parts = output.values() if isinstance(output, Mapping) else output
        tensors = parts if not isinstance(parts, Tensor) else (parts,)
        first = next((part for part in tensors if isinstance(part, Tensor) and part.is_floating_point()), None)
        if first is not None:
            kept.pop(name, None)
            kept[name] = first.to(torch.float64, copy=True).numpy()  # a later module may change it in place

    hooks = [
        module.register_forward_hook(lambda _module, _given, output, name=name: keep(name, output))
        for name, module in embedder.named_modules()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    ]
    try:
        with torch.no_grad():
            embedder(*inputs, torch.arange(embedder.head.config.num_register_tokens))
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def worst_layer(
    found: Mapping[str, Array], expected: Mapping[str, Array], kinds: Mapping[str, str] | None = None
) -> LayerDifference:
    """Find the module whose output differs more than all outputs before it by the largest factor.

    Args:
        found: module to its output, as of `eager_layers`.
        expected: the same, of what ``found`` is compared with; its order counts.
        kinds: module to the name of its class.
    """
    worst, before, factor = LayerDifference("", "", 0.0, 0.0), _SMALLEST, 0.0
    for path, wanted in expected.items():
        if path not in found or found[path].shape != wanted.shape or not wanted.size:
            continue
        after = max(_relative(found[path], wanted), _SMALLEST)
        if after / before > factor:
            factor, worst = after / before, LayerDifference(path, (kinds or {}).get(path, "module"), before, after)
        before = max(before, after)
    return worst


def note_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Map each module to the value that it ends with, by the exporter's notes, before they are stripped."""
    layers: dict[str, str] = {}
    for node in model.graph.node:
        for path, _ in scopes_of(node):
            name = path.removeprefix("embedder.")
            if name not in ("", "embedder"):
                layers[name] = node.output[0]
    # The tracer's own modules begin with an underscore.
    return {name: value for name, value in layers.items() if not name.startswith("_")}


def attach(model: onnx.ModelProto, layers: Mapping[str, str]) -> None:
    """Keep the modules' values with a model in memory; `detach` takes them off before it is written."""
    model.metadata_props.append(onnx.StringStringEntryProto(key=_NOTE, value=json.dumps(layers)))


def detach(model: onnx.ModelProto) -> dict[str, str]:
    """Take off what `attach` kept."""
    layers: dict[str, str] = {}
    for part in [part for part in model.metadata_props if part.key == _NOTE]:
        layers = json.loads(part.value)
        model.metadata_props.remove(part)
    return layers


def graph_difference(
    embedder: EagerEmbedder,
    model: onnx.ModelProto,
    layers: Mapping[str, str],
    inputs: Arrays,
    found: Array,
    expected: Array,
) -> str:
    """Say in which module a graph leaves eager PyTorch, of the rows that differ most.

    Args:
        layers: module to the value of the graph that it ends with.
        inputs: a batch.
        found: embeddings of the batch by the graph, (B, N, D).
        expected: the same by eager PyTorch.

    Returns:
        A clause for a sentence.
    """
    apart = np.nan_to_num(np.abs(found - expected), nan=np.inf).max(axis=(1, 2))
    rows = np.argsort(-apart, kind="stable")[:ROWS]
    part = {name: array[rows] for name, array in inputs.items()}
    values = {value for node in model.graph.node for value in node.output}
    present = {path: value for path, value in layers.items() if value in values}
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    names = [*dict.fromkeys(present.values())]
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    index = np.arange(embedder.head.config.num_register_tokens)
    try:
        results = dict(zip(names, run_model(opened, {**part, TOKEN_INDEX: index}), strict=True))
    except UsageError as error:
        return f"arises in a module that could not be found ({error})"
    mine = {path: results[value] for path, value in present.items()}
    kinds = {path: type(module).__name__ for path, module in embedder.named_modules()}
    layer = worst_layer(mine, eager_layers(embedder, to_tensors(part)), kinds)
    if layer.path and layer.after <= 16 * _SMALLEST:
        return "is gone when ONNX Runtime gives every module's output, so one of its optimizations makes it"
    return layer.line()


def _relative(found: Array, expected: Array) -> float:
    """Largest distance of a row, relative to its length; infinite if a number is missing on one side only."""
    same = np.isnan(found) & np.isnan(expected)
    apart = np.where(same, 0.0, found.astype(np.float64) - expected)
    axes = tuple(range(1, expected.ndim))
    lengths = np.sqrt(np.square(np.where(same, 0.0, expected)).sum(axis=axes))
    distances = np.sqrt(np.square(apart).sum(axis=axes))
    value = float(np.max(np.where(distances > 0, distances / np.maximum(lengths, 1e-30), 0.0), initial=0.0))
    return value if np.isfinite(value) else float("inf")
