"""An image encoder of ViT-S/16's size with random weights: for what it costs, not for what it sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """Normalized images (batch, 3, 224, 224) to 197 features: a class token and 14 x 14 patches.

    Pre-norm blocks of width 384 with 6 heads (Dosovitskiy et al. 2021; Touvron et al. 2021, "DeiT-S").
    """

    def __init__(self, dim: int = 384, depth: int = 12, heads: int = 6, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images to (batch, 197, dim)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        result: Tensor = self.blocks(x + self.position)
        return result


def vit_small() -> VisionTransformer:
    """22 million parameters, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer()
