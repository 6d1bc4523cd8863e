"""Attention: the register tokens' cross-attention, causal self-attention, and encoder blocks.

Shapes: B batch, L features, E feature dimension, N registers, K of them asked for, D width, H heads,
d = D / H, M = H K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e4
"""Added to the scores of padding. Finite, the one form on which eager PyTorch, ONNX Runtime and TensorRT agree;
exp(-1e4) is exactly 0 in every precision, so padding has no weight."""


def additive_mask(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert (B, L) bool, True where there is a feature, to (B, 1, 1, L): 0 there and -1e4 on padding."""
    return (~mask_BL).to(dtype)[:, None, None, :] * MASKED


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (..., L, D) to (..., H, L, D / H)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (..., H, L, D / H) to (..., L, D)."""
    return x.transpose(-3, -2).flatten(-2)


class FeedForward(nn.Sequential):
    """Linear x4, GELU, linear."""

    def __init__(
        self, dim: int, dropout: float = 0.0, expansion: int = 4, dropout_type: type[nn.Dropout] = nn.Dropout
    ) -> None:
        super().__init__(
            nn.Linear(dim, expansion * dim), nn.GELU(), dropout_type(dropout), nn.Linear(expansion * dim, dim)
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, L, dim).

    Args:
        dim: width; a multiple of ``heads``.
        causal: position i sees positions up to i only.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BLD: Tensor, bias_B11L: Tensor | None = None) -> Tensor:
        """Attend; ``bias_B11L`` is an `additive_mask`, not to be combined with ``causal``."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        if self.causal:
            length = x_BLD.shape[1]
            later = torch.ones(length, length, dtype=torch.bool, device=x_BLD.device).triu(1)
            bias_B11L = later.to(x_BLD.dtype) * MASKED
        result: Tensor = self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias_B11L)))
        return result


class WeightedReads(Protocol):
    """Features y = n g + b that can be scored against queries and averaged, as the absorbed `CrossAttention` needs."""

    def scores(self, q: Tensor) -> Tensor:
        """Score ([B,] M, E) queries: (B, M, L), up to a number that is the same for all L."""
        ...

    def averages(self, weights_BML: Tensor) -> Tensor:
        """Average n with these weights: (B, M, E)."""
        ...

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Compute weight and bias of the map of n that equals this map of y; the weights of an average sum to one."""
        ...


class CrossAttention(nn.Module):
    """A few queries read many features.

    Two forms of the same algebra. *Plain* projects all L features to keys and values: 2 L E D multiply-adds.
    *Absorbed* moves the key projection to the queries and the value projection behind the average, since
    ``q (x W_k)^T = (q W_k^T) x^T`` and ``A (x W_v) = (A x) W_v``: 2 N H L E (DeepSeek-AI 2024, "DeepSeek-V2",
    section 2.1.2). It is exact because nothing nonlinear stands between features and projections; the value
    bias passes through, because attention weights sum to one.

    Args:
        dim: width of queries and output; a multiple of ``heads``.
        feature_dims: modality to E. Each has its own key and value projection; query and output are shared.
        form: ``plain``, ``absorbed``, or ``auto``: absorbed if N H < D, when it is cheaper.
    """

    def __init__(self, dim: int, feature_dims: Mapping[str, int], heads: int, form: str = "auto") -> None:
        super().__init__()
        self.heads = heads
        self.form = form
        self.query = nn.Linear(dim, dim)
        # A key bias would add the same number to every score of a query, which softmax ignores.
        self.key = nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in feature_dims.items()})
        self.value = nn.ModuleDict({name: nn.Linear(size, dim) for name, size in feature_dims.items()})
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        features_BLE: Tensor,
        mask_BL: Tensor,
        modality: str,
        index_K: Tensor | None = None,
        weights: list[Tensor] | None = None,
        reads: WeightedReads | None = None,
    ) -> Tensor:
        """Read the features.

        Args:
            x: queries (B, N, D), or (N, D) if they are the same for all samples.
            features_BLE: (B, L, E).
            mask_BL: bool, True where there is a feature.
            index_K: read for these of the (N, D) queries alone. Everything that depends on the queries only is
                computed for all N before, so that an exported graph holds it as a constant.
            weights: if given, the attention weights (B, H, K, L) are appended.
            reads: the same features in a form that is cheaper to read absorbed; ``features_BLE`` is then not read.

        Returns:
            (B, K, D). A row without any feature gives exactly 0, whatever its padding holds.
        """
        if reads is not None:
            read = self._from_reads(x, mask_BL, modality, index_K, weights, reads)
        elif self.is_absorbed(x.shape[-2]):
            read = self._absorbed(x, features_BLE, mask_BL, modality, index_K, weights)
        else:
            read = self._plain(x, features_BLE, mask_BL, modality, index_K, weights)
        any_B11 = mask_BL.any(dim=1)[:, None, None].to(read.dtype)
        result: Tensor = self.out(read) * any_B11
        return result

    def is_absorbed(self, queries: int) -> bool:
        """Return whether so many queries are read in the absorbed form."""
        return self.form == "absorbed" or (self.form == "auto" and queries * self.heads < self.query.in_features)

    def _plain(
        self,
        x: Tensor,
        features_BLE: Tensor,
        mask_BL: Tensor,
        modality: str,
        index_K: Tensor | None,
        weights: list[Tensor] | None,
    ) -> Tensor:
        q = _chosen(split_heads(self.query(x), self.heads), index_K)
        if x.ndim == 2:
            q = q.expand(features_BLE.shape[0], -1, -1, -1)
        k = split_heads(self.key[modality](features_BLE), self.heads)
        v = split_heads(self.value[modality](features_BLE), self.heads)
        bias = additive_mask(mask_BL, q.dtype)
        if weights is None:
            return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
        scores_BHKL = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + bias
        weights.append(scores_BHKL.softmax(dim=-1))
        return merge_heads(torch.matmul(weights[-1].to(v.dtype), v))

    def _absorbed(
        self,
        x: Tensor,
        features_BLE: Tensor,
        mask_BL: Tensor,
        modality: str,
        index_K: Tensor | None,
        weights: list[Tensor] | None,
    ) -> Tensor:
        key, value = cast(nn.Linear, self.key[modality]), cast(nn.Linear, self.value[modality])
        key_HdE = torch.unflatten(key.weight, 0, (self.heads, -1))
        value_HdE = torch.unflatten(value.weight, 0, (self.heads, -1))
        q = split_heads(self.query(x), self.heads)  # ([B,] H, N, d)
        q = _chosen(_per_head(q * q.shape[-1] ** -0.5, key_HdE), index_K).flatten(-3, -2)  # ([B,] H K, E)
        scores_BLM = torch.matmul(features_BLE, q.transpose(-1, -2))
        scores_BLM = scores_BLM + (~mask_BL).to(q.dtype)[..., None] * MASKED
        weights_BML = scores_BLM.softmax(dim=1).to(features_BLE.dtype).transpose(1, 2)
        if weights is not None:
            weights.append(torch.unflatten(weights_BML, 1, (self.heads, -1)))
        mean_BME = torch.matmul(weights_BML, features_BLE)
        mean_BHKE = torch.unflatten(mean_BME, 1, (self.heads, -1))
        read_BHKd = _per_head(mean_BHKE, value_HdE.transpose(1, 2))
        return merge_heads(read_BHKd) + value.bias

    def _from_reads(
        self,
        x: Tensor,
        mask_BL: Tensor,
        modality: str,
        index_K: Tensor | None,
        weights: list[Tensor] | None,
        reads: WeightedReads,
    ) -> Tensor:
        """Read as `_absorbed` does; M is K by H here, so that no average is copied on its way to its head's product."""
        key, value = cast(nn.Linear, self.key[modality]), cast(nn.Linear, self.value[modality])
        q = split_heads(self.query(x), self.heads)  # ([B,] H, N, d)
        q = _per_head(q * q.shape[-1] ** -0.5, torch.unflatten(key.weight, 0, (self.heads, -1)))
        q = _chosen(q, index_K).transpose(-3, -2).flatten(-3, -2)  # ([B,] K H, E)
        scores_BML = reads.scores(q) + (~mask_BL).to(q.dtype)[:, None] * MASKED
        weights_BML = scores_BML.softmax(dim=-1)
        if weights is not None:
            weights.append(torch.unflatten(weights_BML, 1, (-1, self.heads)).transpose(1, 2))
        mean_XHE = torch.unflatten(reads.averages(weights_BML), 1, (-1, self.heads)).flatten(0, 1)
        weight, bias = reads.folded(value)
        value_HEd = torch.unflatten(weight, 0, (self.heads, -1)).transpose(1, 2)
        read_XHd = torch.bmm(mean_XHE.transpose(0, 1), value_HEd).transpose(0, 1)
        return torch.unflatten(read_XHd.flatten(1), 0, (len(mask_BL), -1)) + bias


def _chosen(x: Tensor, index_K: Tensor | None) -> Tensor:
    """Select (..., K, i) of (..., N, i)."""
    return x if index_K is None else x[..., index_K, :]


def _per_head(x: Tensor, weight_Hij: Tensor) -> Tensor:
    """Map (H, N, i) or (B, H, N, i) to (..., H, N, j), each head by its own matrix."""
    if x.ndim == 3:
        return torch.bmm(x, weight_Hij)
    # One product per head over all samples; a broadcast matmul would copy the weights for every sample.
    rows_HXi = x.transpose(0, 1).flatten(1, 2)
    return torch.unflatten(torch.bmm(rows_HXi, weight_Hij), 1, (x.shape[0], x.shape[2])).transpose(0, 1)


class EncoderBlock(nn.Module):
    """A pre-norm transformer block: self-attention and feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, bias_B11L: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), bias_B11L))
        result: Tensor = x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))
        return result
