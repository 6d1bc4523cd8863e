"""Token dropout: hiding a random share of the feature vectors, in training only.

The draws are a hash of (seed, row of the global batch, position), so that neither padding nor the number of
processes changes which features are hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hashed_uniform(seed: int, rows_B: Tensor, length: int) -> Tensor:
    """Compute uniform numbers in [0, 1), float32 (B, length), each a function of (seed, row, position) alone.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), whose int64
    products wrap around in PyTorch as they must.

    Args:
        rows_B: int64 (B,), the rows' numbers.
    """
    position = torch.arange(length, device=rows_B.device)
    x = (rows_B[:, None] << 32) + position + _signed(seed)
    x = x * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(x ^ _shifted(x, 31), 40).float() / 2**24


def hide_features(mask_BL: Tensor, uniform_BL: Tensor, rate: float) -> Tensor:
    """Hide the features whose number is below ``rate``, but never all of a row: (B, L) bool."""
    kept = mask_BL & (uniform_BL >= rate)
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask_BL)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit number."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
