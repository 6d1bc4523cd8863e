"""A linear map for each register, or one for all.

Shapes: B batch, K tokens asked for, D width before.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RegisterLinear(nn.Module):
    """A linear map of its own for each register, or one that all share.

    With one for all, registers that read nearly the same stay nearly the same, and later tokens repeat the first: good
    for their average, useless if they are compared side by side (docs/quality.md has the measurement).

    Args:
        registers: N.
        inputs: width of a token before the map.
        outputs: width of a token after it.
        own: each register has its own map.
    """

    def __init__(self, registers: int, inputs: int, outputs: int, own: bool) -> None:
        super().__init__()
        self.own = own
        self.maps = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(registers if own else 1))

    def forward(self, x_BKD: Tensor, index_K: Tensor | None = None) -> Tensor:
        """Map the tokens of the registers ``index_K``, or of all: (B, K, outputs)."""
        if not self.own or len(self.maps) == 1:
            mapped: Tensor = self.maps[0](x_BKD)
            return mapped
        linears = [cast(nn.Linear, linear) for linear in self.maps]
        weight_KDO = torch.stack([linear.weight.T for linear in linears])
        bias_K1O = torch.stack([linear.bias for linear in linears])[:, None]
        if index_K is not None:
            weight_KDO, bias_K1O = weight_KDO[index_K], bias_K1O[index_K]
        return torch.baddbmm(bias_K1O, x_BKD.transpose(0, 1), weight_KDO).transpose(0, 1)

    def of_one(self, x_BD: Tensor, index_K: Tensor) -> Tensor:
        """Map one and the same vector for the registers ``index_K``: (B, K, outputs), or (B, 1, outputs) if shared."""
        if not self.own or len(self.maps) == 1:
            mapped: Tensor = self.maps[0](x_BD)[:, None]
            return mapped
        # One product with all maps, though only K are asked for: to take K maps out of N, a graph would copy megabytes
        # of weights at every call, which costs a single short text more than the product.
        linears = [cast(nn.Linear, linear) for linear in self.maps]
        weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        mapped_BND = torch.unflatten(F.linear(x_BD, weight, bias), 1, (len(linears), -1))
        # In training: rising numbers, as many as there are registers, are all of them in order.
        return mapped_BND if self.training and len(index_K) == len(linears) else mapped_BND[:, index_K]
