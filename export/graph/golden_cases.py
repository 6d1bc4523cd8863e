"""Golden vectors beyond a batch of items: where registers looked, and the longest input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS, PrecisionEntry
from fluxtalk.errors import UsageError, reason
from fluxtalk.export.graph.graph_writer import graph_name, widened
from fluxtalk.export.precision.precision import runs_on_cpu
from fluxtalk.model.embedder import Embedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.golden import Golden, replay_longest
from fluxtalk.tokens import ATTENTION

_LARGEST = 4 << 20
"""Bytes of a row that is worth its place in every copy of the bundle: about a minute of sound, any text."""

Arrays = dict[str, NDArray[Any]]


def eager_outputs(embedder: Embedder, inputs: Arrays, attention: bool) -> Arrays:
    """What eager PyTorch makes of a batch at k = N.

    Returns:
        ``tokens`` and ``embeddings``, float32 (batch, N, dim); with ``attention``, that too: (batch, N, length).
    """
    tokens = embedder.head.config.num_register_tokens
    if not attention:
        return dict(zip(OUTPUTS, embedder.embed_arrays(inputs, tokens), strict=True))
    device = embedder.head.registers.device
    with torch.inference_mode():
        features = embedder.encoder(*to_tensors(inputs, device))
        found, weights = embedder.read_with_attention(features, torch.arange(tokens, device=device))
    return {
        "tokens": found.tokens.cpu().numpy(),
        "embeddings": found.embeddings.cpu().numpy(),
        ATTENTION: weights.cpu().numpy(),
    }


def longest_case(embedder: Embedder, preprocess: Mapping[str, Any], inputs: Arrays, attention: bool) -> Golden | None:
    """One row of the longest input that preprocessing gives, and what eager PyTorch makes of it.

    Args:
        preprocess: its settings; ``max_length`` is the longest input.
        inputs: the golden batch, whose longest item is repeated until it is as long.

    Returns:
        None where no input is the longest, where a row would be large, or where an item is as long already.

    Raises:
        UsageError: the encoder does not run an input of that length.
    """
    longest: int | None = preprocess.get("max_length")
    if longest is None or "mask" not in inputs:
        return None
    lengths = inputs["mask"].sum(axis=1)
    row = int(lengths.argmax())
    real = inputs["mask"][row]
    bytes_each = sum(array[row, 0].nbytes for array in inputs.values())
    if lengths[row] >= longest or longest * bytes_each > _LARGEST:
        return None
    case = {name: np.resize(array[row][real], (longest, *array.shape[2:]))[None] for name, array in inputs.items()}
    try:
        return case, eager_outputs(embedder, case, attention)
    except (RuntimeError, IndexError, ValueError) as error:
        raise UsageError(
            f"The {embedder.modality} encoder does not run the longest input that its preprocessing gives, of length "
            f"{longest} ({reason(error)}); create stage 1 with a max_length that the encoder takes."
        ) from error


def prove_longest(
    folder: Path, longest: Mapping[str, Golden], precisions: Mapping[str, PrecisionEntry], allow_quality_loss: bool
) -> dict[str, PrecisionEntry]:
    """Run each graph that runs on the CPU on its modality's longest input.

    Returns:
        the precisions; where a loss is allowed, with promises that were widened to what was measured.

    Raises:
        ParityError: a graph does not run it, or differs from eager PyTorch by more than its precision promises.
    """
    proved = dict(precisions)
    for name in filter(runs_on_cpu, precisions):
        for modality, case in longest.items():
            session = OnnxRuntimeSession(folder / graph_name(modality, name), precision=name)
            try:
                for report in replay_longest(modality, name, session, case, proved[name].tolerance):
                    if report.broken and allow_quality_loss and name != "fp32":
                        wider = widened(proved[name].tolerance, report.difference, report.attention)
                        proved[name] = dataclasses.replace(proved[name], tolerance=wider)
                    # Held to what the bundle promises in the end.
                    dataclasses.replace(report, tolerance=proved[name].tolerance).require()
            finally:
                session.close()
    return proved
