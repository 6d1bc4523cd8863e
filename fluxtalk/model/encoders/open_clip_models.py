"""`open_clip:`: towers of the open_clip library, built from their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat, nn

from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.model.encoders.output_choice import OutputChoice
from fluxtalk.model.encoders.timm_models import TimmEncoder


class OpenClipImageEncoder(nn.Module):
    """A vision tower of open_clip without its projection: pixels (B, C, H, W) to features (B, L, D)."""

    def __init__(self, visual: Any, choice: OutputChoice) -> None:
        super().__init__()
        self.visual = visual
        self.choice = choice

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels."""
        layer = self.choice.layer
        output = self.visual.forward_intermediates(
            pixels,
            indices=[_index(layer, len(self.visual.transformer.resblocks))],
            normalize_intermediates=layer is None,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        prefix = output["image_intermediates_prefix"][0]
        features = cat([prefix, output["image_intermediates"][0]], dim=1)
        return self.choice.apply(features, prefix.shape[1], None)


class OpenClipTextEncoder(nn.Module):
    """A text tower of open_clip without its projection: token ids and mask (B, L) to features (B, L, D).

    Args:
        text: the tower, or a model that holds its parts.
    """

    def __init__(self, text: Any, choice: OutputChoice) -> None:
        super().__init__()
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.causal_mask: Tensor | None
        self.register_buffer("causal_mask", text.attn_mask, persistent=False)
        self.choice = choice

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encode token ids; the tower is causal, or reads its padding, so it takes no mask."""
        length = input_ids.shape[1]
        features = self.token_embedding(input_ids) + self.positional_embedding[:length]
        causal = None if self.causal_mask is None else self.causal_mask[:length, :length]
        if self.choice.layer is None:
            return self.choice.apply(self.ln_final(self.transformer(features, attn_mask=causal)), 0, None)
        index = _index(self.choice.layer, len(self.transformer.resblocks))
        _, outputs = self.transformer.forward_intermediates(features, attn_mask=causal, indices=[index])
        return self.choice.apply(outputs[0], 0, None)


def build_open_clip(source: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a tower of open_clip, with weights as its constructor leaves them.

    Args:
        source: the encoder's source, for errors.
        options: ``kind`` (image or text), ``config`` (open_clip's model configuration), and the fields of
            `OutputChoice`.

    Raises:
        UsageError: open_clip is missing, or the tower cannot be used.
        CheckpointError: it does not take the configuration.
    """
    open_clip = import_library("open_clip", source)
    config = dict(options["config"])
    custom = config.pop("custom_text", False) or "multimodal_cfg" in config
    try:
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise CheckpointError(
            f"The installed open_clip {open_clip.__version__} cannot build {source} ({error}); "
            "install the version that packed it."
        ) from error
    return wrap_open_clip(source, model, options)


def wrap_open_clip(source: str, model: Any, options: Mapping[str, Any]) -> nn.Module:
    """Take one tower of a model of open_clip as an encoder; see `build_open_clip` for the options.

    Raises:
        UsageError: the tower is of a kind that has no token features of its own here.
    """
    choice = OutputChoice(**{name: options[name] for name in ("layer", "class_tokens", "pooled") if name in options})
    if options["kind"] == "image":
        trunk = getattr(model.visual, "trunk", None)
        if trunk is not None:
            return TimmEncoder(trunk, choice)
        if not hasattr(model.visual, "transformer"):
            raise UsageError(f"The vision tower of {source} is not a vision transformer; use a timm: model instead.")
        return OpenClipImageEncoder(model.visual, choice)
    text = getattr(model, "text", model)
    if not hasattr(text, "token_embedding"):
        raise UsageError(f"The text tower of {source} is a model of transformers; name it with hf: instead.")
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        raise UsageError(
            f"The text tower of {source} appends a class token or masks its padding, as CoCa does, which FluxTalk "
            "cannot take; name another model."
        )
    return OpenClipTextEncoder(text, choice)


def _index(layer: int | None, blocks: int) -> int:
    """Index among the outputs of blocks, of a layer that counts from the first block's input."""
    index = blocks - 1 if layer is None else layer + blocks if layer < 0 else layer - 1
    if not 0 <= index < blocks:
        raise UsageError(f"This encoder has layers 1 to {blocks} (or -1 to -{blocks}); got layer={layer}.")
    return index
