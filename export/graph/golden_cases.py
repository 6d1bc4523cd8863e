"""Golden cases: inputs, among them hard ones and the longest, with the outputs of eager PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.artifacts.golden import GoldenCase
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.tokens import ATTENTION

_MAX_ROW_BYTES = 4 << 20
"""Bytes of the longest row that is kept in the bundle: about a minute of sound, any text."""


def with_hard_rows(batch: Arrays, fixed_length: bool = False) -> dict[str, Array]:
    """Append hard cases to a batch of real items.

    Args:
        batch: preprocessed.
        fixed_length: every item has the same length, all of which is read (`Preprocessor.fixed_length`).

    Returns:
        The batch with one more row for items of a fixed length, all zeros: a black image, a text of the token 0. Else
        with three more: a single feature at the beginning, the same behind padding, and padding only.
    """
    first = {name: array[:1] for name, array in batch.items()}
    if fixed_length:
        row = {name: np.ones_like(array) if name == "mask" else np.zeros_like(array) for name, array in first.items()}
        return {name: np.concatenate([array, row[name]]) for name, array in batch.items()}
    start, end, empty = ({name: np.zeros_like(array) for name, array in first.items()} for _ in range(3))
    for name, array in first.items():
        start[name][:, 0] = end[name][:, -1] = True if name == "mask" else array[:, 0]
    return {name: np.concatenate([part[name] for part in (batch, start, end, empty)]) for name in batch}


def eager_outputs(embedder: EagerEmbedder, inputs: Arrays, attention: bool) -> dict[str, Array]:
    """Embed a batch with eager PyTorch at k = N.

    Returns:
        ``tokens`` and ``embeddings``, float32 (batch, N, dim); and ``attention`` (batch, N, length) if asked for.
    """
    tokens = embedder.head.config.num_register_tokens
    if not attention:
        return dict(zip(OUTPUTS, embedder.embed_arrays(inputs, tokens), strict=True))
    device = embedder.head.registers.device
    with torch.inference_mode():
        features = embedder.encoder(*to_tensors(inputs, device))
        embedded, weights = embedder.read_with_attention(features, torch.arange(tokens, device=device))
    return {
        "tokens": embedded.tokens.cpu().numpy(),
        "embeddings": embedded.embeddings.cpu().numpy(),
        ATTENTION: weights.cpu().numpy(),
    }


def longest_case(embedder: EagerEmbedder, max_length: int | None, inputs: Arrays, attention: bool) -> GoldenCase | None:
    """Make one row of the longest input that preprocessing gives, and embed it with eager PyTorch.

    Args:
        max_length: length of the longest input; None if there is none.
        inputs: the golden batch, whose longest item is repeated until it is as long.

    Returns:
        None if the length has no limit, if a row would be large, or if a golden item is as long already.

    Raises:
        UsageError: the encoder does not run an input of that length.
    """
    if max_length is None or "mask" not in inputs:
        return None
    lengths = inputs["mask"].sum(axis=1)
    row = int(lengths.argmax())
    real = inputs["mask"][row]
    bytes_each = sum(array[row, 0].nbytes for array in inputs.values())
    if lengths[row] >= max_length or max_length * bytes_each > _MAX_ROW_BYTES:
        return None
    case = {name: np.resize(array[row][real], (max_length, *array.shape[2:]))[None] for name, array in inputs.items()}
    try:
        return GoldenCase(case, eager_outputs(embedder, case, attention))
    except (RuntimeError, IndexError, ValueError) as error:
        raise UsageError(
            f"The {embedder.modality} encoder does not run the longest input that its preprocessing gives, of length "
            f"{max_length} ({reason(error)}); create stage 1 with a max_length that the encoder takes."
        ) from error
