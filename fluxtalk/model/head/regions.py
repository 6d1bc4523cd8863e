"""Regions: the part of an item that each register averages, where the mean path does not read the mean of all of it.

Shapes: B batch, L features, E feature dimension, N registers, K of them asked for, P places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.config import Grid
from fluxtalk.model.head.attention import MASKED

WIDTH = 0.21
"""Deviation of a new register's window, as a share of the grid's side."""
_SCALE = 4.0
"""Scale of the scores by content, over the square root of E."""


class Regions(nn.Module):
    """Weights with which each register averages one modality's features: by what they hold, and by where they are.

    The first register begins with the mean of all, and so does every other one where there is no grid. On a grid the
    others begin with windows that are spread over it. A register's weights do not depend on other registers.

    Args:
        registers: N.
        size: E.
        grid: places of the modality's features; None weighs by content alone.
    """

    def __init__(self, registers: int, size: int, grid: Grid | None) -> None:
        super().__init__()
        query = torch.randn(registers, size) * 0.02
        query[0] = 0.0
        self.query = nn.Parameter(query)
        self.places = nn.Parameter(_windows(registers, grid)) if grid else None

    def forward(self, features_BLE: Tensor, mask_BL: Tensor, index_K: Tensor) -> Tensor:
        """Compute the weights (B, K, L) of normalized features: see `weights`."""
        return self.weights(torch.matmul(self.queries(index_K), features_BLE.transpose(1, 2)), mask_BL, index_K)

    def queries(self, index_K: Tensor) -> Tensor:
        """Give the vectors (K, E) whose products with normalized features are their scores."""
        queries_KE: Tensor = self.query[index_K] * (_SCALE * self.query.shape[1] ** -0.5)
        return queries_KE

    def weights(self, scores_BKL: Tensor, mask_BL: Tensor, index_K: Tensor) -> Tensor:
        """Turn scores by content into weights (B, K, L), which sum to one; all 0 for a row without any feature.

        Features behind the last place of the grid count as much as those at the middle of a window.
        """
        if self.places is not None:
            place_L = torch.arange(scores_BKL.shape[-1], device=scores_BKL.device).clamp(max=self.places.shape[1])
            scores_BKL = scores_BKL + F.pad(self.places, (0, 1))[index_K][:, place_L]
        scores_BKL = scores_BKL + (~mask_BL)[:, None].to(scores_BKL.dtype) * MASKED
        return scores_BKL.softmax(dim=-1) * mask_BL.any(dim=1)[:, None, None].to(scores_BKL.dtype)


def _windows(registers: int, grid: Grid) -> Tensor:
    """Compute scores (N, P) of places: 0 for the first register and for features before the grid."""
    rows, columns = torch.meshgrid(_centers(grid.height), _centers(grid.width), indexing="ij")
    windows = torch.zeros(registers, grid.places)
    for register in range(1, registers):
        across, down = _halton(register, 2), _halton(register, 3)
        if grid.height > grid.width:
            across, down = down, across
        square = (columns - across).square() * (grid.width > 1) + (rows - down).square() * (grid.height > 1)
        windows[register, grid.before :] = (-square / (2 * WIDTH**2)).flatten()
    return windows


def _centers(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count


def _halton(index: int, base: int) -> float:
    """Give the ``index``-th number of the van der Corput sequence, in (0, 1): Halton 1960."""
    found, share = 0.0, 1.0
    while index:
        share /= base
        index, digit = divmod(index, base)
        found += share * digit
    return found
