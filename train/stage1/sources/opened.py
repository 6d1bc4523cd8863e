"""An encoder that was read from another library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fluxtalk.preprocess import Preprocessor


@dataclass(frozen=True)
class OpenedEncoder:
    """A pretrained encoder, and all that builds it again without the place it came from."""

    source: str
    """Source of its specification, such as ``timm:vit_small_patch14_dinov2.lvd142m``."""
    options: Mapping[str, Any]
    """Options of its specification, from which `fluxtalk.model.encoders.build_encoder` builds it."""
    encoder: nn.Module
    """The encoder in float32, with its weights."""
    weights: Mapping[str, Tensor]
    """Weights in the precision in which they were kept."""
    preprocess: Preprocessor
    about: Mapping[str, Any] = field(default_factory=dict)
    """Record for people: library, version, license as the model's own files say it."""


def take_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Copy an encoder's weights in their own precision, then turn the encoder itself into float32."""
    weights = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    encoder.float().eval()
    return weights
