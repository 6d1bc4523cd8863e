"""`small-image`: a transformer over few patches behind a convolution stem, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluxtalk.errors import UsageError
from fluxtalk.model.head.attention import EncoderBlock


class SmallImageEncoder(nn.Module):
    """Normalized images (batch, channels, size, size) to one feature per 8 x 8 patch.

    The stem halves the image three times; convolutions see over the patch's edge, which a plain patch
    projection does not (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").
    """

    patch = 8

    def __init__(
        self, size: int = 32, channels: int = 1, dim: int = 128, depth: int = 4, heads: int = 4, stem: int = 32
    ) -> None:
        super().__init__()
        if size % self.patch:
            raise UsageError(f"small-image takes sizes that are multiples of {self.patch}; got {size}.")
        self.dim = dim
        self.heads = heads
        self.grid = size // self.patch
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(stem, 2 * stem, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * stem, dim, 3, stride=2, padding=1),
        )
        self.position = nn.Parameter(torch.randn(self.grid**2, dim) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode (batch, channels, size, size) to (batch, (size / 8) ** 2, dim)."""
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features
