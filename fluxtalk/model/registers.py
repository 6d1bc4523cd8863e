"""The register head: a few learnable tokens that read each modality's features.

Shapes: B batch, L features, E feature dimension, N register tokens, K tokens asked for, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError, check_token_count
from fluxtalk.model.attention import CrossAttention, FeedForward, SelfAttention
from fluxtalk.model.nested_dropout import NestedDropout
from fluxtalk.model.pooling import pool_kept, prefix_embeddings, prefix_weights


@dataclass(frozen=True)
class RegisterOutputs:
    """What the head gives for a batch of pairs."""

    tokens: dict[str, Tensor]
    """Modality to (B, K, D); dropped tokens are 0."""
    keep: dict[str, Tensor]
    """Modality to bool (B, K): which tokens nested dropout kept, always a prefix of at least one."""
    num_overlapping: int
    """How many of all N tokens are overlapping; the rest are complementary."""

    def pooled(self, modality: str) -> Tensor:
        """(B, D): the L2-normalised mean of each sample's kept overlapping tokens."""
        return pool_kept(self.tokens[modality], self.keep[modality], self.num_overlapping)


class RegisterBlock(nn.Module):
    """Pre-norm cross-attention to the features, causal self-attention (optional), feed-forward.

    Shared by all ``feature_dims`` but for the key and value projections, of which each modality has its own.
    """

    def __init__(
        self, dim: int, feature_dims: Mapping[str, int], heads: int, self_attention: bool, dropout: float
    ) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, feature_dims, heads)
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        # Causal: a register that saw a later one would change when the later one is cut off.
        self.self_attention = SelfAttention(dim, heads, causal=True) if self_attention else None
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, features_BLE: Tensor, mask_BL: Tensor, modality: str) -> Tensor:
        """(B, N, D), or (N, D) where all samples begin the same, to (B, N, D)."""
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), features_BLE, mask_BL, modality))
        if self.self_attention is not None and self.self_norm is not None:
            x = x + self.dropout(self.self_attention(self.self_norm(x)))
        result: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return result


class RegisterTokenModule(nn.Module):
    """Learnable register tokens that read features of several modalities through cross-attention.

    One register parameter (N, D) is shared by all modalities, and broadcast, never copied. Per modality are
    the LayerNorm on the features and the key and value projections; with ``block_weights="per_modality"``
    also the rest of each block.

    Args:
        dims: modality to feature dimension; at least one.
        dim: width of the tokens, a multiple of ``heads``.
        num_register_tokens: N.
        num_overlapping_tokens: how many of them, from the first, carry what the modalities share.
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
        super().__init__()
        self.config = HeadConfig(
            dims=dict(dims),
            dim=dim,
            num_register_tokens=num_register_tokens,
            num_overlapping_tokens=num_overlapping_tokens,
            nested_dropout_rate=nested_dropout_rate,
            **settings,  # type: ignore[arg-type]  # the dataclass refuses what it does not know
        )
        config = self.config
        for name in config.dims:
            if hasattr(nn.ModuleDict, name):
                raise UsageError(
                    f"A modality cannot be called {name!r}, which PyTorch uses itself; choose another name."
                )
        self.nested_dropout = NestedDropout(
            num_register_tokens, nested_dropout_rate, config.nested_dropout_schedule, seed
        )
        # Not zeros: registers that start equal stay equal.
        self.registers = nn.Parameter(torch.randn(num_register_tokens, dim) * 0.02)
        self.feature_norm = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in config.dims.items()})
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.blocks = nn.ModuleList(self._block_of_layer() for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.prefix_weights: Tensor
        self.register_buffer(
            "prefix_weights", prefix_weights(num_register_tokens, num_overlapping_tokens), persistent=False
        )
        self._draws = 0

    @classmethod
    def from_config(cls, config: HeadConfig, seed: int = 0) -> RegisterTokenModule:
        """Build the head that a checkpoint's configuration describes."""
        return cls(seed=seed, **config.to_dict())

    def forward(
        self,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        k: int | None = None,
        prefix_lengths: Mapping[str, Tensor] | None = None,
    ) -> RegisterOutputs:
        """Read every modality given.

        Args:
            features: modality to (B, L, E).
            masks: modality to bool (B, L), True where there is a feature; all True where absent.
            k: compute the first ``k`` tokens only; nested dropout is then off.
            prefix_lengths: modality to int64 (B,), this step's draw of nested dropout. Where absent, a module
                in training mode draws for itself.

        Raises:
            UsageError: a modality is unknown, or a shape does not fit.
            TokenCountError: ``k`` is not in ``1..num_register_tokens``.
        """
        count = check_token_count(k, self.config.num_register_tokens, "this head")
        index = torch.arange(count, device=self.registers.device)
        tokens: dict[str, Tensor] = {}
        keep: dict[str, Tensor] = {}
        for modality, values in features.items():
            mask = (masks or {}).get(modality)
            self._check(modality, values, mask)
            read = self.tokens(modality, values, mask, index)
            lengths = (prefix_lengths or {}).get(modality)
            if lengths is None and self.training and k is None:
                lengths = self.nested_dropout.sample(len(values), self._draws, modality)
            if lengths is None:
                keep[modality] = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
                tokens[modality] = read
            else:
                keep[modality] = index < lengths.to(read.device)[:, None]
                tokens[modality] = read * keep[modality][..., None].to(read.dtype)
        if self.training:
            self._draws += 1
        return RegisterOutputs(tokens, keep, self.config.num_overlapping_tokens)

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """The register tokens ``index_K`` (int64, (K,)) of one modality: (B, K, D).

        The number of tokens rides on the *shape* of ``index_K``, so that an exported graph takes any.
        """
        if mask_BL is None:
            mask_BL = torch.ones(features_BLE.shape[:2], dtype=torch.bool, device=features_BLE.device)
        features = self.feature_dropout(self.feature_norm[modality](features_BLE))
        if self.training and self.config.token_dropout:
            mask_BL = _drop_features(mask_BL, self.config.token_dropout)
        # (K, D): all samples ask the first block the same, so its queries are computed once.
        x = self.registers[index_K]
        for layer in self.blocks:
            block = layer[modality] if isinstance(layer, nn.ModuleDict) else layer
            x = block(x, features, mask_BL, modality)
        tokens: Tensor = self.output(self.output_norm(x))
        return tokens

    def embeddings(self, tokens_BKD: Tensor, index_K: Tensor) -> Tensor:
        """The pooled embedding of every prefix of ``tokens_BKD``: (B, K, D), each of length 1."""
        return prefix_embeddings(tokens_BKD, self.prefix_weights[index_K][:, index_K])

    def _block_of_layer(self) -> nn.Module:
        config = self.config
        if config.block_weights == "shared":
            return RegisterBlock(config.dim, config.dims, config.heads, config.self_attention, config.dropout)
        return nn.ModuleDict(
            {
                name: RegisterBlock(config.dim, {name: size}, config.heads, config.self_attention, config.dropout)
                for name, size in config.dims.items()
            }
        )

    def _check(self, modality: str, values: Tensor, mask: Tensor | None) -> None:
        if modality not in self.config.dims:
            raise UsageError(f"This head reads {', '.join(self.config.dims)}; got features of {modality!r}.")
        if values.ndim != 3 or values.shape[2] != self.config.dims[modality]:
            raise UsageError(
                f"Features of {modality} have shape (batch, length, {self.config.dims[modality]}); "
                f"got {tuple(values.shape)}."
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape != values.shape[:2]):
            raise UsageError(
                f"The mask of {modality} is bool {tuple(values.shape[:2])}; got {mask.dtype} {tuple(mask.shape)}."
            )


def _drop_features(mask_BL: Tensor, rate: float) -> Tensor:
    """Hide a random share of the features, never all of a row."""
    kept = mask_BL & (torch.rand(mask_BL.shape, device=mask_BL.device) >= rate)
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask_BL)
