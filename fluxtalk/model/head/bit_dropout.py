"""Dropout that draws 16 random bits for a number: on a CPU, PyTorch's own costs more than the products around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class BitDropout(nn.Dropout):
    """Drop single numbers with probability ``p``, to a 65,536th, in training; elsewhere than on a CPU, as PyTorch does.

    The draws come from PyTorch's generator, four of them from 64 bits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of x, and scale the others so that the expectation stays."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
        return x * kept
