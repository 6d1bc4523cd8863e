"""One modality's embedder as an ONNX graph: batch, length and k dynamic, standard operators, no random node."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

import fluxtalk
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import FEATURES, OUTPUTS, TOKEN_INDEX, TensorSpec
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.errors import UsageError, reason
from fluxtalk.export.graph.graph_tools import fold_constants
from fluxtalk.export.options import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from fluxtalk.model.eager_embedder import EagerEmbedder
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
        A checked ONNX model, without source paths. Its value between encoder and head is called `FEATURES`.

    Raises:
        UsageError: the opset is not supported, or the encoder cannot be exported.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(f"--opset is in {MIN_OPSET}..{MAX_OPSET}; got {opset}.")
    arguments, shapes = _arguments(embedder, preprocess, sample)
    outputs = [*OUTPUTS, *[ATTENTION] * attention, FEATURES]
    try:
        with _quiet() as report:
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
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        # Tracebacks show notes, and --debug shows the traceback.
        error.add_note(report.getvalue().strip() or "The exporter printed nothing.")
        raise UsageError(_refusal(embedder.modality, error)) from error
    assert program is not None
    model = program.model_proto
    _require_dynamic(model, shapes, embedder.modality)
    _strip_paths(model)
    named = [output for output in model.graph.output if output.name == FEATURES]
    model.graph.output.remove(named[0])
    model.graph.value_info.extend(named)
    return fold_constants(model)


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
    """Example inputs and their dynamic dimensions; at least two rows, because the exporter fixes sizes 0 and 1."""
    batch, length = Dim("batch", min=1), Dim("length", min=1)
    tokens = embedder.head.config.num_register_tokens
    arguments: list[Tensor] = []
    shapes: list[Any] = []
    for name in preprocess.input_names:
        array = torch.from_numpy(sample[name])
        if min(array.shape[: 1 if preprocess.kind == "image" else 2]) < 2:
            raise UsageError(
                f"Export needs a sample of at least two {embedder.modality} items, of length 2 or more; "
                f"got {tuple(array.shape)}."
            )
        if preprocess.kind != "image":
            # Pooling has to see more than one window, because the exporter fixes a size of 1.
            missing = max(0, embedder.reduction.config.pool + 1 - array.shape[1])
            array = torch.cat([array, array.new_zeros(array.shape[0], missing, *array.shape[2:])], dim=1)
        arguments.append(array)
        shapes.append({0: batch} if preprocess.kind == "image" else {0: batch, 1: length})
    # With one register token k cannot vary, so that the fixed size of 1 is right.
    arguments.append(torch.arange(tokens))
    shapes.append({0: Dim("k", min=1, max=tokens)} if tokens > 1 else None)
    return tuple(arguments), tuple(shapes)


def _refusal(modality: str, error: BaseException) -> str:
    """The exporter's reason, and the encoder's line that caused it if the traceback has one."""
    while error.__cause__ is not None:
        error = error.__cause__
    # Frames before the encoder's are FluxTalk's, frames inside its tensor operations are PyTorch's.
    foreign = (*(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (fluxtalk, torch)), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    where = f" at {frames[-1].filename}, line {frames[-1].lineno}, `{frames[-1].line}`" if frames else ""
    why = " ".join(reason(error).split())[:300]
    return (
        f"The {modality} encoder cannot be exported to ONNX{where} ({why}); write it without control flow that depends "
        "on values and with standard operators, or run with --debug for the exporter's report."
    )


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


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Capture what the exporter prints (graphs, progress, warnings of versions), and yield it."""
    printed = io.StringIO()
    names = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield printed
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
