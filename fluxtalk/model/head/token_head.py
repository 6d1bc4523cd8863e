"""Base of every head: features in, an ordered sequence of tokens per modality out.

Shapes: B batch, L features, E feature dimension, N tokens, K tokens asked for, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from fluxtalk.config import HeadConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.head.nested_dropout import NestedDropout
from fluxtalk.model.head.pooling import l2_normalize, pool_kept, prefix_embeddings, prefix_weights
from fluxtalk.model.head.token_dropout import hide_features
from fluxtalk.tokens import CONCAT, check_token_count


@dataclass(frozen=True)
class RegisterOutputs:
    """Tokens of a batch of pairs."""

    tokens: dict[str, Tensor]
    """Modality to (B, K, D); dropped tokens are 0."""
    keep: dict[str, Tensor]
    """Modality to bool (B, K): which tokens nested dropout kept, always a prefix of at least one."""
    num_overlapping: int
    """Number of overlapping tokens among all N; the rest are complementary."""
    present: dict[str, Tensor] = field(default_factory=dict)
    """Modality to bool (B,): False where the sample has no item of it. A modality that is not named has all."""

    def pooled(self, modality: str) -> Tensor:
        """Average each sample's kept overlapping tokens and L2-normalize: (B, D)."""
        return pool_kept(self.tokens[modality], self.keep[modality], self.num_overlapping)

    def narrowed(self, dim: int) -> RegisterOutputs:
        """Cut every token to its first ``dim`` numbers."""
        return replace(self, tokens={modality: tokens[..., :dim] for modality, tokens in self.tokens.items()})

    def has(self, modality: str) -> Tensor:
        """Return bool (B,): True if a sample has an item of the modality."""
        keep = self.keep[modality]
        return self.present.get(modality, torch.ones(len(keep), dtype=torch.bool, device=keep.device))


class TokenHead(nn.Module):
    """Nested dropout, token dropout and pooling around a subclass's `tokens`.

    Args:
        config: sizes and rates; the subclass builds what it needs from them.
        seed: random seed of nested dropout, if the caller does not pass its draws.
    """

    def __init__(self, config: HeadConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        for name in config.dims:
            if hasattr(nn.ModuleDict, name):
                raise UsageError(
                    f"A modality cannot be called {name!r}, which PyTorch uses itself; choose another name."
                )
        self.nested_dropout = NestedDropout(
            config.num_register_tokens, config.nested_dropout_rate, config.nested_dropout_schedule, seed
        )
        self.prefix_weights: Tensor
        self.register_buffer(
            "prefix_weights",
            prefix_weights(config.num_register_tokens, config.num_overlapping_tokens),
            persistent=False,
        )
        self._draws = 0

    @classmethod
    def from_config(cls, config: HeadConfig, seed: int = 0) -> Self:
        """Build the head that a checkpoint's configuration describes."""
        return cls(config, seed)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.prefix_weights.device

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        """Compute the tokens ``index_K`` (int64, (K,)) of one modality: (B, K, D).

        A token never depends on later ones, and the number of tokens rides on the *shape* of ``index_K``, so that
        an exported graph takes any.
        """
        raise NotImplementedError

    def forward(
        self,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        k: int | None = None,
        prefix_lengths: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
        hide_rate: float | None = None,
    ) -> RegisterOutputs:
        """Read every modality given.

        Args:
            features: modality to (B, L, E).
            masks: modality to bool (B, L), True where there is a feature; all True if absent. A row of False
                is a sample without an item of that modality.
            k: compute the first ``k`` tokens only; nested dropout is then off.
            prefix_lengths: modality to int64 (B,), this step's draw of nested dropout. If absent, a module
                in training mode draws for itself.
            hidden: modality to uniform numbers (B, L), this step's draw of token dropout. If absent, a module in
                training mode draws for itself.
            hide_rate: rate of token dropout; None takes the configuration's.

        Raises:
            UsageError: a modality is unknown, or a shape does not fit.
            TokenCountError: ``k`` is not in ``1..num_register_tokens``.
        """
        count = check_token_count(k, self.config.num_register_tokens, "this head")
        index = torch.arange(count, device=self.device)
        tokens: dict[str, Tensor] = {}
        keep: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        drawn = False
        for modality, values in features.items():
            mask = (masks or {}).get(modality)
            self._check(modality, values, mask)
            if mask is None:
                mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
            present[modality] = mask.any(dim=1)
            seen = self._hide(mask, (hidden or {}).get(modality), hide_rate)
            read = self.tokens(modality, values, seen, index)
            lengths = (prefix_lengths or {}).get(modality)
            if lengths is None and self.training and k is None:
                lengths = self.nested_dropout.sample(len(values), self._draws, modality)
                drawn = True
            if lengths is None:
                keep[modality] = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
                tokens[modality] = read
            else:
                keep[modality] = index < lengths.to(read.device)[:, None]
                tokens[modality] = read * keep[modality][..., None].to(read.dtype)
        self._draws += drawn
        return RegisterOutputs(tokens, keep, self.config.num_overlapping_tokens, present)

    def embeddings(self, tokens_BKD: Tensor, index_K: Tensor) -> Tensor:
        """Compute what the summary of every prefix of ``tokens_BKD`` is made of: (B, K, D), each row of length 1.

        Row j - 1 is the mean of the overlapping tokens among the first j. If the summary is ``concat``, it is the
        direction of token j: the first j rows side by side, divided by sqrt(j), are the summary of j tokens.
        """
        if self.config.layout.summary == CONCAT:
            return l2_normalize(tokens_BKD)
        return prefix_embeddings(tokens_BKD, self.prefix_weights[index_K][:, index_K])

    def modality_parameters(self, modality: str) -> set[str]:
        """Name the parameters that only this modality uses."""
        part = f".{modality}."
        return {name for name, _ in self.named_parameters() if part in name}

    def _hide(self, mask_BL: Tensor, uniform_BL: Tensor | None, rate: float | None) -> Tensor:
        rate = self.config.token_dropout if rate is None else rate
        if not self.training or not rate:
            return mask_BL
        if uniform_BL is None:
            uniform_BL = torch.rand(mask_BL.shape, device=mask_BL.device)
        return hide_features(mask_BL, uniform_BL, rate)

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
