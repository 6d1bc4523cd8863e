"""Tracing of a module for export: example inputs whose sizes may vary, the exporter's failures, random operators.

The export uses it, and the trial runs of an encoder before anybody trains a head on it. Needs PyTorch alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import decompositions
from torch.export import Dim, ExportedProgram

from fluxtalk.arrays import Arrays
from fluxtalk.errors import UsageError, reason
from fluxtalk.preprocess import Preprocessor

EXPORT_ERRORS: tuple[type[BaseException], ...] = (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException)
"""Errors of the exporter that speak of the module, and not of the exporter's use."""


def example_inputs(
    preprocess: Preprocessor, sample: Arrays, modality: str, pool: int = 1
) -> tuple[list[Tensor], list[Any]]:
    """Example inputs of an encoder and their dynamic dimensions, batch and length.

    Args:
        preprocess: names the inputs.
        sample: a preprocessed batch of at least two rows, of length 2 or more: the exporter fixes sizes 0 and 1.
        modality: its name, for errors.
        pool: features that are averaged behind the encoder; the example then has more than one window.

    Raises:
        UsageError: the sample is too small.
    """
    batch, length = Dim("batch", min=1), Dim("length", min=1)
    arguments: list[Tensor] = []
    shapes: list[Any] = []
    for name in preprocess.input_names:
        array = torch.from_numpy(sample[name])
        if min(array.shape[: 1 if preprocess.kind == "image" else 2]) < 2:
            raise UsageError(
                f"Export needs a sample of at least two {modality} items, of length 2 or more; "
                f"got {tuple(array.shape)}."
            )
        if preprocess.kind != "image":
            # Pooling has to see more than one window, because the exporter fixes a size of 1.
            missing = max(0, pool + 1 - array.shape[1])
            array = torch.cat([array, array.new_zeros(array.shape[0], missing, *array.shape[2:])], dim=1)
        arguments.append(array)
        shapes.append({0: batch} if preprocess.kind == "image" else {0: batch, 1: length})
    return arguments, shapes


def refusal(modality: str, error: BaseException) -> str:
    """Sentence with the exporter's reason, and the encoder's line that caused it if the traceback has one."""
    while error.__cause__ is not None:
        error = error.__cause__
    # Frames before the encoder's are FluxTalk's, frames inside its tensor operations are PyTorch's.
    packages = (Path(__file__).parents[1], Path(torch.__file__).parent)
    foreign = (*(f"{folder}{os.sep}" for folder in packages), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    where = f" at {frames[-1].filename}, line {frames[-1].lineno}, `{frames[-1].line}`" if frames else ""
    why = " ".join(reason(error).split())[:300]
    return (
        f"The {modality} encoder cannot be exported to ONNX{where} ({why}); write it without control flow that depends "
        "on values and with standard operators, or run with --debug for the exporter's report."
    )


def random_operators(program: ExportedProgram) -> list[str]:
    """Name the operators of a traced module that draw random numbers, each with the module it is in."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and _draws(node):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            found.append(f"{str(node.target).removesuffix('.default')} in {named_module(stack)}")
    return list(dict.fromkeys(found))


def random_refusal(modality: str, operators: list[str]) -> str:
    """Sentence about an encoder that draws random numbers."""
    return (
        f"The {modality} encoder draws random numbers ({', '.join(operators[:3])}), so an item never has the same "
        "embedding twice; draw only if self.training, or take the draw out."
    )


def named_module(stack: list[Any]) -> str:
    """Name the innermost module of a trace's stack of (path, class): its path and its class."""
    if not stack:
        return "the module itself"
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__qualname__", str(kind))
    return f"{path or 'the module itself'} ({name.rpartition('.')[2]})"


@contextlib.contextmanager
def exporting() -> Iterator[io.StringIO]:
    """Trace as this package exports: nothing printed, any length behind an LSTM, attention as plain products.

    Yields:
        What the exporter prints (graphs, progress, warnings of versions).
    """
    with _quiet_exporter() as printed, _lstm_of_any_length(), _attention_as_products():
        yield printed


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[io.StringIO]:
    """Capture what the exporter prints, and yield it."""
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


@contextlib.contextmanager
def _lstm_of_any_length() -> Iterator[None]:
    """Let the length of an `LSTM`'s input vary in what is traced inside.

    The exporter keeps the operator, and takes the shape of its output from a decomposition that loops over the steps,
    which fixes their number in all that follows. PyTorch's decomposition for the CPU library gives the same shape
    without a loop, but is not chosen while tracing, because the library is off then. Where a version of PyTorch has
    no such choice, nothing is changed; the trial run of an encoder refuses a graph of one length.
    """
    loop_free = getattr(decompositions, "mkldnn_one_layer_lstm", None)
    chosen = getattr(decompositions, "select_one_layer_lstm_function", None)
    if loop_free is None or chosen is None:
        yield
        return
    decompositions.select_one_layer_lstm_function = lambda *_: loop_free
    try:
        yield
    finally:
        decompositions.select_one_layer_lstm_function = chosen


@contextlib.contextmanager
def _attention_as_products() -> Iterator[None]:
    """Let `scaled_dot_product_attention` be traced as two products and a softmax.

    The exporter's own form computes the shape of every key anew, scales twice, and looks for NaN in all weights of an
    attention with a boolean mask, which also hides it from engines that would fuse it.
    """
    original = F.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p:  # which is refused later, by its operator
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (heads.repeat_interleave(groups, dim=-3) for heads in (key, value))
        scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.arange(query.shape[-2])[:, None] >= torch.arange(key.shape[-2])
        if attn_mask is None:
            return torch.matmul(scores.softmax(dim=-1), value)
        if attn_mask.dtype != torch.bool:
            return torch.matmul((scores + attn_mask).softmax(dim=-1), value)
        lowest = torch.where(attn_mask, 0.0, torch.finfo(scores.dtype).min).to(scores.dtype)
        # A query that may see no key gets 0.
        seen = attn_mask.any(dim=-1, keepdim=True).to(scores.dtype)
        return torch.matmul((scores + lowest).softmax(dim=-1), value) * seen

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _draws(node: torch.fx.Node) -> bool:
    """True if a node draws random numbers; attention and dropout carry the mark also where they drop nothing."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = target._schema.arguments
    given = {part.name: part.default_value for part in arguments if part.has_default_value()}
    given.update(zip((part.name for part in arguments), node.args, strict=False))
    given.update(node.kwargs)
    training = given.get("train", given.get("training", True))
    return training is not False and given.get("dropout_p", 1) != 0
