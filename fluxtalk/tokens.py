"""Register tokens in numpy: first k, pool, normalize, late interaction (torch twin: `fluxtalk.model.head.pooling`).

Shapes: B items, K tokens, D dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import check_token_count

Floats = NDArray[np.float32]


def l2_normalise(x: NDArray[np.floating]) -> Floats:
    """Divide the last dimension by its L2 norm, in float32; a zero vector stays zero."""
    x = x.astype(np.float32, copy=False)
    norm = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    unit: Floats = (x / np.maximum(norm, 1e-12)).astype(np.float32, copy=False)
    return unit


def first_tokens(tokens_BKD: Floats, k: int) -> Floats:
    """The first ``k`` tokens of each item, (B, k, D).

    Raises:
        TokenCountError: ``k`` is not in ``1..K``.
    """
    return tokens_BKD[:, : check_token_count(k, tokens_BKD.shape[1], "these embeddings")]


def pool(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """The pooled embedding: the L2-normalised mean over the overlapping tokens among the first ``k``, (B, D)."""
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    return l2_normalise(tokens_BKD[:, : min(count, num_overlapping)].mean(axis=1))


def concatenate(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """The overlapping tokens among the first ``k``, each normalised, side by side, of length 1.

    Returns:
        (B, min(k, num_overlapping) * D).
    """
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    chosen = l2_normalise(tokens_BKD[:, : min(count, num_overlapping)])
    return l2_normalise(chosen.reshape(len(chosen), -1))


def maxsim(queries_QKD: Floats, items_BKD: Floats) -> Floats:
    """Late interaction (Khattab and Zaharia 2020, "ColBERT"): (Q, B).

    Each query token takes its most similar item token; the score is the mean over query tokens, so that it
    lies in -1..1 whatever k is. Give overlapping tokens only: complementary ones are not comparable
    between modalities.
    """
    queries, items = l2_normalise(queries_QKD), l2_normalise(items_BKD)
    scores = np.einsum("qkd,bjd->qbkj", queries, items, optimize=True)
    return np.asarray(scores.max(axis=-1).mean(axis=-1), dtype=np.float32)
