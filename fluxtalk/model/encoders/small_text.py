"""`small-text`: a transformer over token ids with learned positions, for short texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluxtalk.model.head.attention import EncoderBlock, additive_mask


class SmallTextEncoder(nn.Module):
    """Token ids and mask (batch, length) to one feature per token."""

    def __init__(
        self,
        vocabulary: int,
        max_length: int = 32,
        dim: int = 128,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.token = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        nn.init.normal_(self.token.weight, std=0.02)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode input_ids int64 (batch, length) with mask bool (batch, length) to (batch, length, dim)."""
        x = self.token(input_ids) + self.position[: input_ids.shape[1]]
        bias = additive_mask(mask, x.dtype)
        for block in self.blocks:
            x = block(x, bias)
        features: Tensor = self.norm(x)
        return features
