"""A frozen encoder: input arrays in, features and their mask out, gradients never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fluxtalk.config import StrictConfig
from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.output_choice import as_sequence
from fluxtalk.preprocess import ImagePreprocessor, Preprocessor

HALF = (torch.float16, torch.bfloat16)


class Features(NamedTuple):
    """One modality's frozen features."""

    features_BLD: Tensor
    mask_BL: Tensor
    """bool, True where there is a feature."""


@dataclass(frozen=True)
class EncoderSpec(StrictConfig):
    """Specification of an encoder: with its weights, enough to build it again."""

    source: str
    """As `fluxtalk.model.encoders.build_encoder` takes it."""
    options: dict[str, Any]
    """Keyword arguments of the encoder's class or factory; plain types only."""
    dim: int
    """Feature dimension."""
    folder: str | None = None
    """Folder of the factory's module, if it is not installed."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, without a folder that is None: checkpoints from before it have no such key."""
        return {key: value for key, value in super().to_dict().items() if key != "folder" or value is not None}


class FrozenEncoder(nn.Module):
    """An encoder with its input normalization, without gradients and always in evaluation mode.

    Args:
        encoder: image: takes normalized floats (B, channels, height, width); text: ``(input_ids, mask)``;
            features: ``(features, mask)``; audio: ``(samples, mask)``. Returns features (B, L, D), or those and a bool
            mask (B, L). Features in half precision become float32.
        preprocess: its preprocessing, which names the inputs.
        dim: D.
    """

    def __init__(self, encoder: nn.Module, preprocess: Preprocessor, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = dim
        self.input_names = preprocess.input_names
        self.pixel_scale: Tensor | None
        self.pixel_shift: Tensor | None
        shift = scale = None
        if isinstance(preprocess, ImagePreprocessor):
            # (pixel / 255 - mean) / std as one multiplication and one addition.
            std = torch.tensor(preprocess.std).view(1, -1, 1, 1)
            scale = 1 / (255 * std)
            shift = -torch.tensor(preprocess.mean).view(1, -1, 1, 1) / std
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout and batch statistics of a frozen encoder never change."""
        return super().train(False)

    def forward(self, *inputs: Tensor) -> Features:
        """Encode a batch, its arrays in the order of the preprocessing's `input_names`.

        Raises:
            UsageError: the encoder returned something other than features.
        """
        features, mask = features_and_mask(self.run(*inputs))
        if mask is None and len(inputs) > 1:
            mask = inputs[1]
        if features.ndim != 3 or features.shape[2] != self.dim:
            raise UsageError(
                f"An encoder returns features of shape (batch, length, {self.dim}); "
                f"this one gave {tuple(features.shape)}."
            )
        if features.dtype in HALF:
            # Whoever computes in half precision inside still gives float32: the head and the cache take no other.
            features = features.float()
        if mask is None:
            return Features(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
        # Attention gives padding no weight, but 0 * NaN is NaN: some encoders return it if a whole row is padding.
        return Features(features.masked_fill(~mask[..., None], 0.0), mask)

    def run(self, *inputs: Tensor) -> Any:
        """Run the encoder on a batch, normalized as in `forward`; its result is not checked."""
        if self.pixel_scale is None or self.pixel_shift is None:
            return self.encoder(*inputs)
        # Converted first: TensorRT cannot do anything else with uint8.
        pixels = inputs[0].to(self.pixel_scale.dtype).permute(0, 3, 1, 2)
        return self.encoder(pixels * self.pixel_scale + self.pixel_shift)


def features_and_mask(result: Any) -> tuple[Tensor, Tensor | None]:
    """Split an encoder's result into features and, if it returned one, their mask.

    Takes what libraries return, too: the ``last_hidden_state`` of a transformers output, and maps of features
    (batch, dim, height, width), which become sequences.

    Raises:
        UsageError: it returned something else.
    """
    result = getattr(result, "last_hidden_state", result)
    if isinstance(result, Tensor):
        return as_sequence(result), None
    parts = result if isinstance(result, tuple) else (result,)
    if (isinstance(result, tuple) and len(parts) != 2) or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise UsageError(
            "An encoder returns a tensor of features, or a tuple of two: features and their mask; "
            f"this one gave {f'a tuple of {len(parts)} ({kinds})' if isinstance(result, tuple) else kinds}."
        )
    return as_sequence(parts[0]), parts[1] if len(parts) == 2 else None


class GivenFeatures(nn.Module):
    """`features:DIM`: precomputed features, unchanged."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, length, dim) unchanged."""
        return features


def to_tensors(batch: Mapping[str, Any], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Convert a preprocessed batch to tensors on a device, in its order."""
    return tuple(torch.from_numpy(array).to(device) for array in batch.values())
