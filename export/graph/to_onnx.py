"""One modality's embedder as an ONNX graph: batch, length and k dynamic, standard operators, no random node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX, TensorSpec
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.errors import UsageError
from fluxtalk.export.graph.graph_tools import fold_constants, random_nodes
from fluxtalk.export.graph.layers import attach, detach, note_layers
from fluxtalk.export.options import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.tracing import (
    EXPORT_ERRORS,
    example_inputs,
    exporting,
    random_refusal,
    refusal,
)
from fluxtalk.preprocess import Preprocessor
from fluxtalk.tokens import ATTENTION

EXTERNAL_DATA = 1_500_000_000
"""Bytes of weights above which they go into a file beside the graph."""


class _NamedFeatures(nn.Module):
    """The embedder with the value between encoder and head as one more output, which gives it a name in the graph."""

    def __init__(self, embedder: EagerEmbedder, attention: bool) -> None:
        super().__init__()
        self.embedder = embedder
        self.attention = attention

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *arrays, token_index = inputs
        features = self.embedder.encoder(*arrays)
        if self.attention:
            read, attention = self.embedder.read_with_attention(features, token_index)
            return *read, attention, features.features_BLD
        return *self.embedder.read(features, token_index), features.features_BLD


def export_onnx(
    embedder: EagerEmbedder,
    preprocess: Preprocessor,
    sample: Arrays,
    opset: int = DEFAULT_OPSET,
    attention: bool = False,
) -> onnx.ModelProto:
    """Export an embedder; the same module gives the same bytes.

    Args:
        embedder: in float32, on the CPU.
        preprocess: names the inputs.
        sample: a preprocessed batch, whose sizes do not stay in the graph.
        attention: whether the graph also gives where each register looked.

    Returns:
        A checked ONNX model, without source paths; `layers.detach` tells which values its modules end
        with. Its value between encoder and head is called `FEATURES`.

    Raises:
        UsageError: the opset is not supported, the encoder cannot be exported, or it draws random numbers.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(f"--opset is in {MIN_OPSET}..{MAX_OPSET}; got {opset}.")
    arguments, shapes = _arguments(embedder, preprocess, sample)
    outputs = [*OUTPUTS, *[ATTENTION] * attention, FEATURES]
    try:
        with exporting() as report:
            program = torch.onnx.export(
                _NamedFeatures(embedder, attention).eval(),
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=[*preprocess.input_names, TOKEN_INDEX],
                output_names=outputs,
                dynamic_shapes={"inputs": shapes},
                verbose=False,
            )
    except EXPORT_ERRORS as error:
        # Tracebacks show notes, and --debug shows the traceback.
        error.add_note(report.getvalue().strip() or "The exporter printed nothing.")
        raise UsageError(refusal(embedder.modality, error)) from error
    assert program is not None
    model = program.model_proto
    random = random_nodes(model)
    if random:
        raise UsageError(random_refusal(embedder.modality, random))
    _require_dynamic(model, shapes, embedder.modality)
    layers = note_layers(model)
    _strip_paths(model)
    named = [output for output in model.graph.output if output.name == FEATURES]
    model.graph.output.remove(named[0])
    model.graph.value_info.extend(named)
    folded = fold_constants(model)
    attach(folded, layers)
    return folded


def input_specs(model: onnx.ModelProto) -> list[TensorSpec]:
    """Describe a graph's inputs, in order: names, types, and sizes by axis or number."""
    specs = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        specs.append(TensorSpec(value.name, dtype, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]))
    return specs


def graph_files(model: onnx.ModelProto, folder: Path, name: str, limit: int = EXTERNAL_DATA) -> None:
    """Write a graph into a folder and check it; weights of more than ``limit`` bytes go into ``name`` + ``.data``.

    Raises:
        UsageError: the graph is not valid ONNX, or uses operators that are not standard.
    """
    path = folder / name
    detach(model)
    size = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    try:
        if size > limit:
            # A protocol buffer holds at most 2 GiB.
            onnx.save_model(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=1024)
        else:
            write_atomically(path, model.SerializeToString(deterministic=True))
        # Checked by its path, so that the checker finds external data.
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise UsageError(f"The graph {name} is not valid ONNX ({error}); use another --opset.") from error


def _arguments(
    embedder: EagerEmbedder, preprocess: Preprocessor, sample: Arrays
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Example inputs and their dynamic dimensions, the token index last."""
    arguments, shapes = example_inputs(preprocess, sample, embedder.modality, embedder.reduction.config.pool)
    tokens = embedder.head.config.num_register_tokens
    # With one register token k cannot vary, so that the fixed size of 1 is right.
    arguments.append(torch.arange(tokens))
    shapes.append({0: Dim("k", min=1, max=tokens)} if tokens > 1 else None)
    return tuple(arguments), tuple(shapes)


def _require_dynamic(model: onnx.ModelProto, shapes: Sequence[Any], modality: str) -> None:
    """Refuse a graph of the example's sizes, which the exporter falls back to silently if code fixes them."""
    for value, expected in zip(model.graph.input, shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        for place, dim in (expected or {}).items():
            if dims[place].dim_param != dim.__name__:
                raise UsageError(
                    f"The {modality} encoder fixes the {dim.__name__} of {value.name} to the example's "
                    f"{dims[place].dim_value}; write it with x.shape[0] and not len(x), and without sizes as numbers."
                )


def _strip_paths(model: onnx.ModelProto) -> None:
    """Remove the paths of this machine's source tree that the exporter noted."""
    for container in (model, model.graph, *model.functions):
        container.doc_string = ""
        del container.metadata_props[:]
    for values in (
        model.graph.node,
        model.graph.value_info,
        model.graph.input,
        model.graph.output,
        model.graph.initializer,
    ):
        for value in values:
            value.doc_string = ""
            del value.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
