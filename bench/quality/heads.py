"""Heads to compare register tokens with, each trained by the same trainer on the same batches.

Mean-pool heads are in `fluxtalk.model.head.baselines`.
Shapes: B batch, L features, E feature dimension, N tokens, K tokens asked for, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig, require
from fluxtalk.model.head.attention import CrossAttention, SelfAttention
from fluxtalk.model.head.register_linear import RegisterLinear
from fluxtalk.model.head.registers import RegisterBlock, RegisterTokenModule
from fluxtalk.model.head.token_head import RegisterOutputs, TokenHead


class AttentionPoolHead(TokenHead):
    """One learnable probe, cross-attention, projection: a single token, without feed-forward.

    Args:
        config: with one register token.

    Raises:
        UsageError: it has several.
    """

    def __init__(self, config: HeadConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        require(
            config.num_register_tokens == 1,
            f"An attention pool has 1 token; got {config.num_register_tokens}: set num_register_tokens to 1.",
        )
        self.probe = nn.Parameter(torch.randn(1, config.dim) * 0.02)
        self.feature_norm = _feature_norm(config)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.attention = CrossAttention(config.dim, config.dims, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.dim, config.dim)

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """Compute the one token; ``index_K`` has no other choice."""
        features = self.feature_dropout(self.feature_norm[modality](features_BLE))
        read = self.attention(self.probe, features, _mask(features_BLE, mask_BL), modality)
        token: Tensor = self.output(self.dropout(read))
        return token


class QueryFormerHead(TokenHead):
    """Queries that see each other in both directions: cross-attention, full self-attention, feed-forward.

    Like the Q-Former of Li et al. 2023, "BLIP-2", in the width, depth and order of `RegisterBlock`, so that the
    self-attention's mask is all that sets it apart from causal registers. A query depends on all others, so there is
    no prefix property: the first ``k`` tokens of ``tokens(..., arange(k))`` are those of a head that was run with its
    first ``k`` queries alone, not a part of what all give.
    """

    def __init__(self, config: HeadConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.queries = nn.Parameter(torch.randn(config.num_register_tokens, config.dim) * 0.02)
        self.feature_norm = _feature_norm(config)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.blocks = nn.ModuleList(_bidirectional(config) for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, config.dim)

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """The tokens of the queries ``index_K``, which see each other and no other query: (B, K, D)."""
        mask = _mask(features_BLE, mask_BL)
        features = self.feature_dropout(self.feature_norm[modality](features_BLE))
        x = self.queries[index_K]
        for block in self.blocks:
            x = block(x, features, mask, modality)
        tokens: Tensor = self.output(self.output_norm(x))
        return tokens


class NarrowTokensHead(RegisterTokenModule):
    """Register tokens of fewer numbers than the head is wide, so that one token cannot hold all that is shared.

    Args:
        config: of the head.
        width: numbers of a token.
    """

    def __init__(self, config: HeadConfig, seed: int = 0, width: int = 4) -> None:
        super().__init__(seed=seed, **config.to_dict())
        require(width >= 1, f"A token has 1 number or more; got {width}.")
        own = config.output_projection == "per_register"
        self.output = RegisterLinear(config.num_register_tokens, config.dim, width, own)


class MatryoshkaHead(TokenHead):
    """One vector of N D numbers, read from all N registers, that is useful cut to its first k D: nested dimensions.

    Kusupati et al. 2022, "Matryoshka Representation Learning", on the register head: the baseline at equal bytes. The
    registers give D numbers each, mean path included, and one linear map mixes all N D of them, so that any number of
    the vector can come from any register. The map is added to what it reads: without that path the means, which carry
    most of what is found, pass through two linear maps, and recall is much lower (docs/LOG.md, 2026-11-30).

    Token ``j`` is the vector with all but its block ``j`` set to 0, so the normalized mean of the first ``k`` tokens is
    exactly the normalized first k D numbers, and training at several k trains the truncations. All registers are
    computed whatever k is.
    """

    def __init__(self, config: HeadConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        count, size = config.num_register_tokens, config.layout.dim
        self.registers = RegisterTokenModule.from_config(replace(config, output_projection="per_register"), seed)
        self.mixed = nn.Linear(count * size, count * size)
        self.block_of_number: Tensor
        self.register_buffer("block_of_number", torch.arange(count).repeat_interleave(size), persistent=False)

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """Compute tokens of shape (B, K, N D)."""
        every_N = torch.arange(self.config.num_register_tokens, device=index_K.device)
        read_BX = self.registers.tokens(modality, features_BLE, mask_BL, every_N).flatten(1)
        numbers_B1X: Tensor = (read_BX + self.mixed(read_BX))[:, None]
        return numbers_B1X * (self.block_of_number == index_K[:, None]).to(numbers_B1X.dtype)


class ManyVectorsHead(TokenHead):
    """Every feature vector, projected: the first N of them are the tokens, zero where there is no feature.

    Like the late interaction of Khattab and Zaharia 2020, "ColBERT": as many bytes as there are features, so an upper
    bound. A zero vector is 0 from everything; it never lowers a maximum that is above 0.

    Args:
        most: modality to the most vectors that it has, for those that have fewer than N: what is compared, and so what
            a step takes, grows with the product of both sides' numbers.
    """

    def __init__(self, config: HeadConfig, seed: int = 0, most: Mapping[str, int] | None = None) -> None:
        super().__init__(config, seed)
        self._most = dict(most or {})
        self.feature_norm = _feature_norm(config)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.output = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(size, config.dim),
                    nn.GELU(),
                    nn.Dropout(config.dropout),
                    nn.Linear(config.dim, config.layout.dim),
                )
                for name, size in config.dims.items()
            }
        )

    def forward(self, *features: Any, prefix_lengths: Any = None, **more: Any) -> RegisterOutputs:
        """Compute all tokens, whatever nested dropout drew: see `TokenHead.forward`."""
        return super().forward(*features, **{"k": self.config.num_register_tokens, **more})

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """Project the first N features: (B, K, D), less if the modality has fewer; ``index_K`` chooses among them."""
        mask = _mask(features_BLE, mask_BL)
        count = min(self.config.num_register_tokens, self._most.get(modality, self.config.num_register_tokens))
        features = self.feature_dropout(self.feature_norm[modality](features_BLE[:, :count]))
        projected = self.output[modality](features) * mask[:, :count, None]
        missing = max(0, count - projected.shape[1])
        padded: Tensor = nn.functional.pad(projected, (0, 0, 0, missing))
        return padded[:, index_K[:count]]


def _bidirectional(config: HeadConfig) -> RegisterBlock:
    block = RegisterBlock(config.dim, config.dims, config.heads, True, config.dropout)
    block.self_attention = SelfAttention(config.dim, config.heads, causal=False)
    return block


def _feature_norm(config: HeadConfig) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.LayerNorm(size) for name, size in config.dims.items()})


def _mask(features_BLE: Tensor, mask_BL: Tensor | None) -> Tensor:
    if mask_BL is not None:
        return mask_BL
    return torch.ones(features_BLE.shape[:2], dtype=torch.bool, device=features_BLE.device)
