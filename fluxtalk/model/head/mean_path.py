"""The mean path: what mean pooling reads, as the part of a token that attention need not learn again.

Shapes: B batch, L features, E feature dimension, M averages, K tokens asked for, N register tokens, O token dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.model.head.register_linear import RegisterLinear

INITIAL_GATE = 0.1
"""Share of what attention reads in a token before training: the head begins as the baseline that it must equal."""


class MeanPath(nn.Module):
    """Map the mean of one modality's features to the first part of its tokens, and scale what attention adds.

    Args:
        config: its ``mean_path`` is ``linear``, or ``mlp`` with a hidden layer of four times the head's width; its
            ``output_projection`` says if each register has a slice of its own of the last layer.
        size: E.
    """

    def __init__(self, config: HeadConfig, size: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        inputs = size
        if config.mean_path == "mlp":
            inputs = 4 * config.dim
            self.hidden = nn.Sequential(nn.Linear(size, inputs), nn.GELU(), nn.Dropout(config.dropout))
        own = config.output_projection == "per_register"
        self.output = RegisterLinear(config.num_register_tokens, inputs, config.layout.dim, own)
        self.gate = nn.Parameter(torch.tensor(INITIAL_GATE))

    def forward(self, mean_BE: Tensor, read_BKO: Tensor, index_K: Tensor) -> Tensor:
        """Add the mean's part to what attention read for the registers ``index_K``: (B, K, O).

        Only their slices of the last layer are computed, so the first k tokens stay the first k.
        """
        hidden_BKI = self.hidden(mean_BE)[:, None]
        if self.output.own:
            hidden_BKI = hidden_BKI.expand(-1, read_BKO.shape[1], -1)
        summed: Tensor = self.output(hidden_BKI, index_K) + self.gate * read_BKO
        return summed


def mean_weights(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Build the weights (B, 1, L) that average a row's features; all 0 for a row without any."""
    present = mask_BL.to(dtype)
    return (present / present.sum(dim=1, keepdim=True).clamp_min(1.0))[:, None]


class FoldedLayerNorm:
    """Layer normalization of frozen features, with its affine part folded into what reads them.

    With ``y = n * g + b``, n of mean 0 and variance 1, a score ``y q`` is ``n (g q)`` up to ``b q``, which is the same
    for all features and which softmax ignores; an average ``sum_l w_l y_l`` is ``(sum_l w_l n_l) g + b sum_l w_l``.
    So training writes n once, without a gradient, which frozen features need not have, and no further copy: dropout on
    features, drawn once for a row, falls on the averages too.

    Args:
        norm: LayerNorm over E.
        features_BLE: without gradient.
        dropout: drops single numbers in training.
    """

    def __init__(self, norm: nn.LayerNorm, features_BLE: Tensor, dropout: nn.Module) -> None:
        self._norm = norm
        with torch.no_grad():
            self._normalized_BLE = F.layer_norm(features_BLE, norm.normalized_shape, None, None, norm.eps)
            self._kept_B1E = dropout(torch.ones_like(features_BLE[:, :1]))

    def scores(self, q: Tensor) -> Tensor:
        """Score ([B,] M, E) queries: (B, L, M), up to a number that is the same for all L."""
        return torch.matmul(self._normalized_BLE, (q * self._norm.weight).transpose(-1, -2))

    def averages(self, weights_BML: Tensor) -> Tensor:
        """Average the normalized features with these weights, and drop numbers of the averages: (B, M, E)."""
        total_BME = torch.matmul(weights_BML, self._normalized_BLE)
        bias_BME = weights_BML.sum(dim=-1, keepdim=True) * (self._kept_B1E * self._norm.bias)
        return torch.addcmul(bias_BME, total_BME, self._kept_B1E * self._norm.weight)
