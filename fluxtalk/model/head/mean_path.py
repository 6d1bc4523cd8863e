"""The mean path: what mean pooling reads, as the part of a token that attention need not learn again.

Shapes: B batch, L features, E feature dimension, M averages, K tokens asked for, N register tokens, O token dimension.
"""

from __future__ import annotations

import torch
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
    """Layer normalization of frozen features that is never written out, but folded into what reads them.

    With ``y = (x - m) r * g + b``, a score ``y q`` is ``r (x (g q) - m sum(g q))`` up to ``b q``, which is the same for
    all features and which softmax ignores; an average ``sum_l w_l y_l`` is ``(sum_l w_l r_l x_l - sum_l w_l r_l m_l) g
    + b sum_l w_l``. So training reads the features twice in products, and never writes a copy of them; the gradient
    needs no copy either, because frozen features have none. Serving normalizes first, which rounds better.

    Args:
        norm: LayerNorm over E.
        features_BLE: without gradient.
    """

    def __init__(self, norm: nn.LayerNorm, features_BLE: Tensor) -> None:
        self.norm = norm
        self.features_BLE = features_BLE
        with torch.no_grad():
            variance_BL, mean_BL = torch.var_mean(features_BLE, dim=-1, correction=0)
            self.scale_BL = (variance_BL + norm.eps).rsqrt()
            self.shift_BL = mean_BL * self.scale_BL

    def scores(self, q: Tensor) -> Tensor:
        """Score ([B,] M, E) queries: (B, L, M), up to a number that is the same for all L."""
        q = q * self.norm.weight
        sums = q.sum(dim=-1)[..., None, :]
        return torch.matmul(self.features_BLE, q.transpose(-1, -2)) * self.scale_BL[..., None] - (
            self.shift_BL[..., None] * sums
        )

    def averages(self, weights_BML: Tensor) -> Tensor:
        """Average the normalized features with these weights: (B, M, E)."""
        total_BME = torch.matmul(weights_BML * self.scale_BL[:, None], self.features_BLE)
        shift_BM1 = (weights_BML * self.shift_BL[:, None]).sum(dim=-1, keepdim=True)
        weight_BM1 = weights_BML.sum(dim=-1, keepdim=True)
        return (total_BME - shift_BM1) * self.norm.weight + weight_BM1 * self.norm.bias


class DroppedReads:
    """Reads with dropout on single numbers of each average, which needs no copy of the features.

    Args:
        reads: the reads.
        dropout: drops numbers in training.
    """

    def __init__(self, reads: FoldedLayerNorm, dropout: nn.Module) -> None:
        self._reads = reads
        self._dropout = dropout

    def scores(self, q: Tensor) -> Tensor:
        """Score as the reads do."""
        return self._reads.scores(q)

    def averages(self, weights_BML: Tensor) -> Tensor:
        """Average as the reads do, and drop numbers of the averages."""
        dropped: Tensor = self._dropout(self._reads.averages(weights_BML))
        return dropped
