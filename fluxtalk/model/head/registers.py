"""The register head: a few learnable tokens that read each modality's features.

Shapes: B batch, L features, E feature dimension, N register tokens, K tokens asked for, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.model.head.attention import CrossAttention, FeedForward, SelfAttention, WeightedReads
from fluxtalk.model.head.bit_dropout import BitDropout
from fluxtalk.model.head.mean_path import FoldedLayerNorm, MeanPath
from fluxtalk.model.head.register_linear import RegisterLinear
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.tokens import check_token_count

_ROWS = ("registers", "query", "places")
"""Last names of the parameters that have a row for each register: the registers, and what `Regions` learns."""


class RegisterBlock(nn.Module):
    """Pre-norm cross-attention to the features, causal self-attention (optional), feed-forward.

    Shared by all ``feature_dims``, except that each modality has key and value projections of its own.
    """

    def __init__(
        self,
        dim: int,
        feature_dims: Mapping[str, int],
        heads: int,
        self_attention: bool,
        dropout: float,
        dropout_type: type[nn.Dropout] = nn.Dropout,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, feature_dims, heads)
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        # Causal: a register that saw a later one would change when the later one is cut off.
        self.self_attention = SelfAttention(dim, heads, causal=True) if self_attention else None
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout, expansion, dropout_type)
        self.dropout = dropout_type(dropout)

    def forward(
        self,
        x: Tensor,
        features_BLE: Tensor,
        mask_BL: Tensor,
        modality: str,
        index_K: Tensor | None = None,
        weights: list[Tensor] | None = None,
        reads: WeightedReads | None = None,
    ) -> Tensor:
        """Map (B, N, D), or (N, D) if all samples begin the same, to (B, K, D).

        Args:
            index_K: continue with these of (N, D) only.
            weights: if given, the cross-attention's weights (B, H, K, L) are appended.
            reads: see `CrossAttention.forward`.
        """
        read = self.cross_attention(self.cross_norm(x), features_BLE, mask_BL, modality, index_K, weights, reads)
        x = (x if index_K is None else x[index_K]) + self.dropout(read)
        if self.self_attention is not None and self.self_norm is not None:
            x = x + self.dropout(self.self_attention(self.self_norm(x)))
        result: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return result


class RegisterTokenModule(TokenHead):
    """Learnable register tokens that read features of several modalities through cross-attention.

    One register parameter (N, D) is shared by all modalities, and broadcast, never copied. Per modality are
    the LayerNorm on the features and the key and value projections; with ``block_weights="per_modality"``
    also the rest of each block.

    Args:
        dims: modality to feature dimension; at least one.
        dim: width of the tokens, a multiple of ``heads``.
        num_register_tokens: N.
        num_overlapping_tokens: number of them, from the first, that carry what the modalities share.
        nested_dropout_rate: probability that the last token is dropped in training, in [0, 1).
        settings: the other fields of `fluxtalk.config.HeadConfig`.

    Raises:
        UsageError: the numbers do not fit together.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        dim: int = 256,
        num_register_tokens: int = 4,
        num_overlapping_tokens: int = 3,
        nested_dropout_rate: float = 0.5,
        seed: int = 0,
        **settings: object,
    ) -> None:
        config = HeadConfig(
            dims=dict(dims),
            dim=dim,
            num_register_tokens=num_register_tokens,
            num_overlapping_tokens=num_overlapping_tokens,
            nested_dropout_rate=nested_dropout_rate,
            **settings,  # type: ignore[arg-type]  # the dataclass refuses what it does not know
        )
        super().__init__(config, seed)
        # Not zeros: registers that start equal stay equal.
        self.registers = nn.Parameter(torch.randn(config.num_registers, dim) * 0.02)
        self.feature_norm = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in config.dims.items()})
        # Heads without a mean path keep the draws that they always had.
        self._dropout_type = nn.Dropout if config.mean_path == "none" else BitDropout
        self.feature_dropout = self._dropout_type(config.feature_dropout)
        self.blocks = nn.ModuleList(self._block_of_layer() for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(dim)
        self.output = RegisterLinear(
            num_register_tokens, dim, config.layout.dim, config.output_projection == "per_register"
        )
        # What the other registers read, for the first token. Without a bias: its own map has one.
        others = config.summed_registers - 1
        self.summary = nn.Linear(others * dim, config.layout.dim, bias=False) if others else None
        # Empty without one: a head of before has the same parameters, drawn in the same order.
        self.mean_path = nn.ModuleDict(
            {name: MeanPath(config, name) for name in config.dims if config.mean_path != "none"}
        )

    @classmethod
    def from_config(cls, config: HeadConfig, seed: int = 0) -> Self:
        """Build the head that a checkpoint's configuration describes."""
        return cls(seed=seed, **config.to_dict())

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """See `TokenHead.tokens`."""
        return self._read(modality, features_BLE, mask_BL, index_K, None)

    def tokens_and_attention(
        self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the tokens (B, K, D), and where their registers looked: (B, K, L).

        These are the last block's attention weights, averaged over heads; for tokens that read a region, its weights.
        A row sums to 1, with 0 on padding; the weights of a sample without any feature are meaningless.
        """
        weights: list[Tensor] = []
        tokens = self._read(modality, features_BLE, mask_BL, index_K, weights)
        attention = weights[-1].float().mean(dim=1)
        if self.summary is not None:
            attention = attention[:, index_K]
        regions = cast(MeanPath, self.mean_path[modality]).regions if self.config.regions else None
        if regions is not None:
            mask = torch.ones_like(attention[:, 0], dtype=torch.bool) if mask_BL is None else mask_BL
            of_regions = regions(self.feature_norm[modality](features_BLE), mask, index_K).float()
            attention = torch.where((index_K == 0)[:, None], attention, of_regions)
        return tokens, attention

    def truncated(self, count: int) -> RegisterTokenModule:
        """Build a head of the first ``count`` register tokens, with these weights: the same first tokens.

        Raises:
            TokenCountError: ``count`` is not in ``1..num_register_tokens``.
        """
        check_token_count(count, self.config.num_register_tokens, "this head")
        layout = self.config.layout.truncated(count)
        config = replace(
            self.config,
            num_register_tokens=layout.num_register_tokens,
            num_overlapping_tokens=layout.num_overlapping_tokens,
            summary_registers=self.config.summed_registers,
        )
        head = RegisterTokenModule.from_config(config)
        weights = self.state_dict()
        # What has a row for each register keeps those of the first ones.
        kept = {name: to.shape[:1] for name, to in head.state_dict().items() if name.rpartition(".")[2] in _ROWS}
        head.load_state_dict({n: weights[n][: kept[n][0]] if n in kept else weights[n] for n in head.state_dict()})
        return head.train(self.training)

    def _read(
        self,
        modality: str,
        features_BLE: Tensor,
        mask_BL: Tensor | None,
        index_K: Tensor,
        weights: list[Tensor] | None,
    ) -> Tensor:
        if mask_BL is None:
            mask_BL = torch.ones(features_BLE.shape[:2], dtype=torch.bool, device=features_BLE.device)
        norm = cast(nn.LayerNorm, self.feature_norm[modality])
        reads: FoldedLayerNorm | None = None
        features = features_BLE
        if self._folds(features_BLE):
            reads = FoldedLayerNorm(norm, features_BLE, mask_BL, self.feature_dropout)
        else:
            features = self.feature_dropout(norm(features_BLE))
        # (N, D): the first block's queries are the same for all samples, so they are computed once.
        x, chosen = cast(Tensor, self.registers), cast(Tensor | None, index_K)
        if self.summary is not None:  # the first token needs more of them than are asked for
            chosen = None
        for layer in self.blocks:
            block = layer[modality] if isinstance(layer, nn.ModuleDict) else layer
            x = block(x, features, mask_BL, modality, chosen, weights, reads)
            chosen = None
        tokens = self._tokens_of(self.output_norm(x), index_K)
        if self.config.mean_path != "none":
            path = cast(MeanPath, self.mean_path[modality])
            if reads is not None:
                return path.from_reads(reads, mask_BL, tokens, index_K)
            tokens = path(features, mask_BL, tokens, index_K)
        return tokens

    def _tokens_of(self, read_BXD: Tensor, index_K: Tensor) -> Tensor:
        """Map what the registers read, those of ``index_K`` or all of them, to the tokens ``index_K``: (B, K, O)."""
        if self.summary is None:
            tokens: Tensor = self.output(read_BXD, index_K)
            return tokens
        count = self.config.num_register_tokens
        others_BM = read_BXD[:, 1 : self.config.summed_registers].flatten(1)
        # All tokens, since all registers were read: a graph then copies no maps to pick K of them.
        tokens = self.output(read_BXD[:, :count])
        first_B1O = tokens[:, :1] + self.summary(others_BM)[:, None]
        tokens = torch.cat([first_B1O, tokens[:, 1:]], dim=1) if count > 1 else first_B1O
        # In training: rising numbers, as many as there are tokens, are all of them in order.
        return tokens if self.training and len(index_K) == count else tokens[:, index_K]

    def _folds(self, features_BLE: Tensor) -> bool:
        """Return whether the norm of frozen features is folded into what reads them: in training, in full precision.

        Only with a mean path, so that heads without one compute what they always did.
        """
        absorbed = self.config.num_registers * self.config.heads < self.config.dim
        full = not torch.is_autocast_enabled(features_BLE.device.type) and not features_BLE.requires_grad
        return self.training and self.config.mean_path != "none" and absorbed and full

    def _block_of_layer(self) -> nn.Module:
        config = self.config
        if config.block_weights == "shared":
            return self._block(config.dims)
        return nn.ModuleDict({name: self._block({name: size}) for name, size in config.dims.items()})

    def _block(self, dims: Mapping[str, int]) -> RegisterBlock:
        config = self.config
        return RegisterBlock(
            config.dim,
            dims,
            config.heads,
            config.self_attention,
            config.dropout,
            self._dropout_type,
            config.feed_forward,
        )
