"""Heads without register tokens, to compare with: one vector per modality from mean-pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.token_head import TokenHead

PROJECTIONS = ("linear", "mlp")


class MeanPoolHead(TokenHead):
    """LayerNorm on each feature, mean over the features, projection: a single token.

    Args:
        config: has one register token; ``dim``, ``mean_path_width``, ``dropout`` and the features' dropouts are used.
        projection: ``linear``, or ``mlp`` with a hidden layer of ``mean_path_width`` widths: the alignment head of
            Vouitsis et al. 2024, "Data-Efficient Multimodal Fusion on a Single GPU" (FuseMix).
    """

    def __init__(self, config: HeadConfig, seed: int = 0, projection: str = "linear") -> None:
        super().__init__(config, seed)
        if config.num_register_tokens != 1 or projection not in PROJECTIONS:
            raise UsageError(
                f"A mean-pool head has 1 token and a projection of {' or '.join(PROJECTIONS)}; "
                f"got {config.num_register_tokens} and {projection!r}."
            )
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.norm = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in config.dims.items()})
        self.projection = nn.ModuleDict(
            {name: _projection(projection, size, config) for name, size in config.dims.items()}
        )

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """See `TokenHead.tokens`; ``index_K`` is always the one token."""
        if mask_BL is None:
            mask_BL = torch.ones(features_BLE.shape[:2], dtype=torch.bool, device=features_BLE.device)
        mask = mask_BL[..., None].float()
        features = self.feature_dropout(self.norm[modality](features_BLE))
        pooled = (features * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        token: Tensor = self.projection[modality](pooled)
        return token[:, None]


def _projection(kind: str, size: int, config: HeadConfig) -> nn.Module:
    if kind == "linear":
        return nn.Linear(size, config.dim)
    hidden = config.mean_path_width * config.dim
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, config.dim))
