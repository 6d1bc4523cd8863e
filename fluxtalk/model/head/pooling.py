"""Pooling register tokens to embeddings; the numpy twin is `fluxtalk.tokens`."""

from __future__ import annotations

import torch
from torch import Tensor


def l2_normalize(x: Tensor) -> Tensor:
    """Divide the last dimension by its L2 norm, in float32 at least."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * x.square().sum(dim=-1, keepdim=True).clamp_min(1e-24).rsqrt()


def prefix_weights(num_tokens: int, num_overlapping: int) -> Tensor:
    """Build weights (num_tokens, num_tokens): row j averages the overlapping tokens among the first j + 1."""
    rows = torch.arange(num_tokens)[:, None]
    columns = torch.arange(num_tokens)[None, :]
    chosen = (columns <= rows) & (columns < num_overlapping)
    return chosen / chosen.sum(dim=1, keepdim=True)


def prefix_embeddings(tokens_BKD: Tensor, weights_KK: Tensor) -> Tensor:
    """Pool every prefix: (B, K, D) tokens to (B, K, D) embeddings of length 1.

    Args:
        weights_KK: `prefix_weights`, cut to K tokens.
    """
    tokens = tokens_BKD if tokens_BKD.dtype == torch.float64 else tokens_BKD.float()
    # Not a matrix product: it would be the only float32 one in a half-precision graph, and some GPUs have none for it.
    means_BKD = (weights_KK.to(tokens.dtype)[..., None] * tokens[:, None]).sum(dim=2)
    return l2_normalize(means_BKD)


def pool_kept(tokens_BKD: Tensor, keep_BK: Tensor, num_overlapping: int) -> Tensor:
    """Average each sample's kept overlapping tokens and L2-normalize, (B, D).

    Args:
        keep_BK: bool, at least the first token of each sample.
    """
    overlapping = keep_BK[:, :num_overlapping, None].to(tokens_BKD.dtype)
    total = (tokens_BKD[:, :num_overlapping] * overlapping).sum(dim=1)
    return l2_normalize(total / overlapping.sum(dim=1))
