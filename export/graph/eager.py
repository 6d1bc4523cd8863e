"""Outputs of eager PyTorch that every graph is held against: of a batch, and of the longest input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fluxtalk.arrays import Array
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.embedder import Embedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.runtime.golden import Golden
from fluxtalk.tokens import ATTENTION

_MAX_ROW_BYTES = 4 << 20
"""Bytes of the longest row that is kept in the bundle: about a minute of sound, any text."""


def eager_outputs(embedder: Embedder, inputs: dict[str, Array], attention: bool) -> dict[str, Array]:
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


def longest_case(
    embedder: Embedder, preprocess: Mapping[str, Any], inputs: dict[str, Array], attention: bool
) -> Golden | None:
    """Make one row of the longest input that preprocessing gives, and embed it with eager PyTorch.

    Args:
        preprocess: settings of the preprocessing; ``max_length`` is the longest input.
        inputs: the golden batch, whose longest item is repeated until it is as long.

    Returns:
        None if the length has no limit, if a row would be large, or if a golden item is as long already.

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
    if lengths[row] >= longest or longest * bytes_each > _MAX_ROW_BYTES:
        return None
    case = {name: np.resize(array[row][real], (longest, *array.shape[2:]))[None] for name, array in inputs.items()}
    try:
        return case, eager_outputs(embedder, case, attention)
    except (RuntimeError, IndexError, ValueError) as error:
        raise UsageError(
            f"The {embedder.modality} encoder does not run the longest input that its preprocessing gives, of length "
            f"{longest} ({reason(error)}); create stage 1 with a max_length that the encoder takes."
        ) from error
