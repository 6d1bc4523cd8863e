"""The mean path: what mean pooling reads, as the part of a token that attention need not learn again.

Shapes: B batch, L features, E feature dimension, M averages, K tokens asked for, N register tokens,
I width of the hidden layer, O token dimension.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.model.head.bit_dropout import BitDropout
from fluxtalk.model.head.regions import Regions
from fluxtalk.model.head.register_linear import RegisterLinear

INITIAL_GATE = 0.1
"""Share of what attention reads in a token before training: the head begins as the baseline that it must equal."""


class MeanPath(nn.Module):
    """Map means of one modality's features to the first part of its tokens, and scale what attention adds.

    Args:
        config: its ``mean_path`` is ``linear``, or ``mlp`` with a hidden layer of ``mean_path_width`` widths of the
            head; its ``output_projection`` says if each register has a slice of its own of the last layer; with
            ``regions``, each register has a mean of its own, and only the first token has what attention reads.
        modality: whose features are read.
    """

    def __init__(self, config: HeadConfig, modality: str) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        inputs = size = config.dims[modality]
        if config.mean_path == "mlp":
            inputs = config.mean_path_width * config.dim
            self.hidden = nn.Sequential(nn.Linear(size, inputs), nn.GELU(), BitDropout(config.dropout))
        own = config.output_projection == "per_register"
        self.output = RegisterLinear(config.num_register_tokens, inputs, config.layout.dim, own)
        self.gate = nn.Parameter(torch.tensor(INITIAL_GATE))
        self.regions: Regions | None = None
        if config.regions:
            self.regions = Regions(config.num_register_tokens, size, config.grids.get(modality))

    def forward(self, features_BLE: Tensor, mask_BL: Tensor, read_BKO: Tensor, index_K: Tensor) -> Tensor:
        """Add the mean's part to what attention read for the registers ``index_K``: (B, K, O).

        Args:
            features_BLE: normalized.
        """
        if self.regions is None:
            mean_B1E = torch.matmul(mean_weights(mask_BL, features_BLE.dtype), features_BLE)
            return self._added(self.hidden(mean_B1E[:, 0]), read_BKO, index_K)
        weights_BKL = self.regions(features_BLE, mask_BL, index_K)
        return self._added(self.hidden(torch.matmul(weights_BKL, features_BLE)), read_BKO, index_K)

    def from_reads(self, reads: FoldedLayerNorm, mask_BL: Tensor, read_BKO: Tensor, index_K: Tensor) -> Tensor:
        """Add the part of the mean of features whose norm is folded: (B, K, O), the numbers of `forward`."""
        average = reads.mean_BE
        if self.regions is not None:
            scores_BKL = reads.scores(self.regions.queries(index_K))
            average = reads.averages(self.regions.weights(scores_BKL, mask_BL, index_K))
        if len(self.hidden):
            return self._added(
                self.hidden[1:](reads.through(cast(nn.Linear, self.hidden[0]), average)), read_BKO, index_K
            )
        return self._added(reads.normalized(average), read_BKO, index_K)

    def _added(self, hidden: Tensor, read_BKO: Tensor, index_K: Tensor) -> Tensor:
        """Map what all registers share, (B, I), or each one's own, (B, K, I), and add what attention read."""
        gate: Tensor = self.gate
        if self.regions is None:
            mapped = self.output.of_one(hidden, index_K)
        else:
            mapped = self.output(hidden, index_K)
            # Attention sees the whole item; a token that has it too stops telling its region from others (docs/LOG.md).
            gate = gate * (index_K == 0).to(read_BKO.dtype)[:, None]
        summed: Tensor = mapped + gate * read_BKO
        return summed


def mean_weights(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Build the weights (B, 1, L) that average a row's features; all 0 for a row without any."""
    present = mask_BL.to(dtype)
    return (present / present.sum(dim=1, keepdim=True).clamp_min(1.0))[:, None]


class FoldedLayerNorm:
    """Layer normalization of frozen features, folded into what reads them: nothing as large as the features is written.

    With ``y = n * g + b`` and ``n = (x - mean(x)) / std(x)``: a score ``y q`` is ``x c / std(x)`` with ``c = g q`` less
    its mean, up to ``b q``, which is the same for all features and which softmax ignores; an average
    ``sum_l w_l n_l`` is ``sum_l v_l x_l - sum_l v_l mean(x_l)`` with ``v_l = w_l / std(x_l)``; and a linear map of y is
    one of n. Mean and deviation of frozen features need no gradient. Dropout on features is drawn once for a row, and
    falls on averages of n.

    Args:
        norm: LayerNorm over E.
        features_BLE: without gradient.
        mask_BL: bool, True where there is a feature.
        dropout: drops single numbers in training.
    """

    def __init__(self, norm: nn.LayerNorm, features_BLE: Tensor, mask_BL: Tensor, dropout: nn.Dropout) -> None:
        self._norm = norm
        self._features_BLE = features_BLE
        with torch.no_grad():
            self._mean_BL1 = features_BLE.mean(dim=-1, keepdim=True)
            square_BL1 = torch.linalg.vector_norm(features_BLE, dim=-1, keepdim=True).square() / features_BLE.shape[-1]
            variance_BL1 = (square_BL1 - self._mean_BL1.square()).clamp_min(0.0)
            self._scale_B1L = (variance_BL1 + norm.eps).rsqrt().transpose(1, 2)
            self._kept_B1E = dropout(torch.ones_like(features_BLE[:, :1])) if dropout.p else None
            self.mean_BE = self.averages(mean_weights(mask_BL, features_BLE.dtype))[:, 0]
            self.present_B1 = mask_BL.any(dim=1, keepdim=True).to(features_BLE.dtype)

    def scores(self, q: Tensor) -> Tensor:
        """Score ([B,] M, E) queries: (B, M, L), up to a number that is the same for all L."""
        q = q * self._norm.weight
        centered = q - q.mean(dim=-1, keepdim=True)
        scores_BML: Tensor = torch.matmul(centered, self._features_BLE.transpose(1, 2)) * self._scale_B1L
        return scores_BML

    def averages(self, weights_BML: Tensor) -> Tensor:
        """Average n with these weights, and drop numbers of the averages: (B, M, E)."""
        scaled_BML = weights_BML * self._scale_B1L
        total_BME = torch.baddbmm(-torch.bmm(scaled_BML, self._mean_BL1), scaled_BML, self._features_BLE)
        return total_BME if self._kept_B1E is None else total_BME * self._kept_B1E

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Compute weight and bias of the map of n that equals this map of y; the weights of an average sum to one."""
        return linear.weight * self._norm.weight, torch.addmv(linear.bias, linear.weight, self._norm.bias)

    def normalized(self, average: Tensor) -> Tensor:
        """Turn averages of n, (B, E) or (B, M, E), into averages of y; that of a row without any feature is 0."""
        return average * self._norm.weight + self._for_each(average) * self._norm.bias

    def through(self, linear: nn.Linear, average: Tensor) -> Tensor:
        """Map averages of y, given as averages of n, (B, E) or (B, M, E); that of a row without any feature is 0.

        The mean over all features needs no gradient, so none is computed for it.
        """
        of_bias = self._for_each(average) * torch.mv(linear.weight, self._norm.bias)
        return F.linear(average, linear.weight * self._norm.weight, linear.bias) + of_bias

    def _for_each(self, average: Tensor) -> Tensor:
        """Give 1 for a row with features, else 0, in a shape that multiplies a vector for each average."""
        return self.present_B1 if average.ndim == 2 else self.present_B1[:, None]
