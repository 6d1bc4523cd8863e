"""`timm:`: image encoders of the timm library, built from their name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat, nn

from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.model.encoders.output_choice import OutputChoice


class TimmEncoder(nn.Module):
    """An image model of timm without its classifier: pixels (B, C, H, W) to features (B, L, D)."""

    def __init__(self, model: Any, choice: OutputChoice) -> None:
        super().__init__()
        self.model = model
        self.choice = choice
        self.class_tokens = int(getattr(model, "num_prefix_tokens", 0))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels."""
        model = self.model
        if self.choice.layer is None:
            features = model.forward_features(pixels)
        else:
            features = self._layer(pixels, self.choice.layer)
        pooled = model.forward_head(features, pre_logits=True) if self.choice.pooled == "append" else None
        return self.choice.apply(_channels_second(features, model), self.class_tokens, pooled)

    def _layer(self, pixels: Tensor, layer: int) -> Tensor:
        blocks = len(self.model.blocks) if hasattr(self.model, "blocks") else len(self.model.feature_info)
        # timm counts the outputs of blocks; layer 0 is the first block's input here, as in transformers.
        index = layer + blocks if layer < 0 else layer - 1
        if not 0 <= index < blocks:
            raise UsageError(f"This encoder has layers 1 to {blocks} (or -1 to -{blocks}); got layer={layer}.")
        output = self.model.forward_intermediates(
            pixels,
            indices=[index],
            intermediates_only=True,
            output_fmt="NCHW",
            **({"return_prefix_tokens": True} if self.class_tokens else {}),
        )[0]
        if not self.class_tokens:
            features: Tensor = output
            return features
        patches, prefix = output
        return cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)


def build_timm(source: str, options: Mapping[str, Any]) -> TimmEncoder:
    """Build an encoder of timm, with weights as its constructor leaves them.

    Args:
        source: the encoder's source, for errors.
        options: ``model`` (a name that timm knows), ``model_args``, and the fields of `OutputChoice`.

    Raises:
        UsageError: timm is missing.
        CheckpointError: it does not know the model, or does not take its arguments.
    """
    timm = import_library("timm", source)
    try:
        model = timm.create_model(options["model"], pretrained=False, num_classes=0, **options.get("model_args", {}))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"The installed timm {timm.__version__} cannot build {source} ({error}); check the name, or install the "
            "version that packed it."
        ) from error
    return wrap_timm(model, options)


def wrap_timm(model: Any, options: Mapping[str, Any]) -> TimmEncoder:
    """Wrap a model of timm as an encoder; see `build_timm` for the options."""
    choice = {name: options[name] for name in ("layer", "class_tokens", "pooled") if name in options}
    return TimmEncoder(model, OutputChoice(**choice))


def _channels_second(features: Tensor, model: Any) -> Tensor:
    """Return a map as (batch, dim, height, width): Swin's and some others' have their channels last."""
    if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features
