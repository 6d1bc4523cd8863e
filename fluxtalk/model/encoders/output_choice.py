"""Choice of what an encoder's features are: a hidden layer, class tokens, the pooled vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxtalk.config import StrictConfig, require

_CLASS_TOKENS = ("keep", "drop")
_POOLED = ("leave", "append")


@dataclass(frozen=True)
class OutputChoice(StrictConfig):
    """Selection among an encoder's outputs."""

    layer: int | None = None
    """Hidden layer: 0 is the input of the first block, 1 its output, -1 the last block's output; none of them passes
    the final normalization. None takes the encoder's own output, final normalization included."""
    class_tokens: str = "keep"
    """``keep`` or ``drop`` class, distillation and register tokens, which stand before the patches."""
    pooled: str = "leave"
    """``append`` puts the encoder's own pooled vector behind the sequence; ``leave`` leaves it out."""

    def __post_init__(self) -> None:
        require(
            self.layer is None or (isinstance(self.layer, int) and not isinstance(self.layer, bool)),
            f"An encoder's layer is an integer; got {self.layer!r}.",
        )
        require(self.class_tokens in _CLASS_TOKENS, f"class_tokens is one of keep, drop; got {self.class_tokens!r}.")
        require(self.pooled in _POOLED, f"pooled is one of leave, append; got {self.pooled!r}.")

    def apply(self, features: Tensor, class_tokens: int, pooled: Tensor | None) -> Tensor:
        """Drop and append what was chosen.

        Args:
            features: (batch, length, dim), or a map (batch, dim, height, width).
            class_tokens: how many class, distillation and register tokens stand first.
            pooled: (batch, dim), or None if the encoder has none.

        Returns:
            Features (batch, length, dim).

        Raises:
            UsageError: the pooled vector was asked for, and there is none of the features' dimension.
        """
        features = as_sequence(features)
        if self.class_tokens == "drop":
            features = features[:, class_tokens:]
        if self.pooled == "append":
            require(
                pooled is not None and pooled.ndim == 2 and pooled.shape[1] == features.shape[2],
                f"This encoder has no pooled vector of its features' dimension, {features.shape[2]} (it has "
                f"{'none' if pooled is None else f'one of shape {tuple(pooled.shape)}'}); leave out pooled=append.",
            )
            assert pooled is not None
            features = torch.cat([features, pooled[:, None]], dim=1)
        return features


def as_sequence(features: Tensor) -> Tensor:
    """Flatten a feature map (batch, dim, height, width) to a sequence (batch, height * width, dim), row by row.

    What has three dimensions is returned unchanged.
    """
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
