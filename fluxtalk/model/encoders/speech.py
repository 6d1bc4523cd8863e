"""Speech encoders over samples (wav2vec 2.0, HuBERT, WavLM of transformers), so that padding changes nothing.

The library's own forward masks features by an assignment through boolean indices: NonZero and ScatterND in a graph,
whose sizes depend on values, which TensorRT refuses. And models with ``feat_extract_norm`` ``group`` normalize over
time with the padding in it: a second of silence behind a sound changes its features as much as another sound would.
Here the same modules run with a mask in every place that mixes moments; a sound alone gives the library's features,
and padding leaves them as they are.

Shapes: B sounds, S samples, C channels, T frames of a convolution, L features, D dimension.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxtalk.errors import UsageError
from fluxtalk.model.head.attention import additive_mask

SPEECH_MODELS = ("wav2vec2", "hubert", "wavlm")
"""Values of ``model_type`` in the configurations of the models that `SpeechEncoder` takes."""


class SpeechEncoder(nn.Module):
    """Samples and their mask to features and theirs, with a model of transformers.

    A sound shorter than the model's receptive field (400 samples in published models) is extended by silence to it.

    Args:
        model: a `Wav2Vec2Model`, `HubertModel` or `WavLMModel`; its samples are normalized by preprocessing.
        hidden_layer: features after so many transformer layers, as the library's ``hidden_states`` count them, 0 for
            what the first one reads; None for its ``last_hidden_state``.

    Raises:
        UsageError: the model is another one, has an adapter behind its encoder, or fewer layers.
    """

    def __init__(self, model: nn.Module, hidden_layer: int | None = None) -> None:
        super().__init__()
        config: Any = model.config
        if config.model_type not in SPEECH_MODELS:
            raise UsageError(f"A speech encoder is one of {', '.join(SPEECH_MODELS)}; got {config.model_type!r}.")
        if getattr(config, "add_adapter", False):
            raise UsageError(
                f"This {config.model_type} model has an adapter (add_adapter), which cannot be masked; "
                "give the model without it."
            )
        layers = len(cast(Any, model).encoder.layers)
        if hidden_layer is not None and not 0 <= hidden_layer <= layers:
            raise UsageError(f"This {config.model_type} model has hidden layers 0 to {layers}; got {hidden_layer}.")
        self.model = model
        self.dim = int(config.hidden_size)
        self.hidden_layer = hidden_layer
        self._stable: bool = config.do_stable_layer_norm
        self._biased: bool = config.model_type == "wavlm"
        self._windows: list[tuple[int, int]] = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        for place, (kernel, _) in enumerate(self._windows):
            last = torch.zeros(1, 1, kernel)
            last[..., -1] = 1
            self.register_buffer(f"_last_{place}", last, persistent=False)
        self._receptive_field = 1
        for kernel, stride in reversed(self._windows):
            self._receptive_field = (self._receptive_field - 1) * stride + kernel

    def forward(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode samples (B, S) with mask bool (B, S), each row's real samples first.

        Returns:
            features (B, L, D), and bool (B, L), True for features of real samples alone.
        """
        samples, mask = self._extended(samples, mask)
        frames, mask = self._convolved(samples, mask)
        projected = cast(Any, self.model).feature_projection(frames.transpose(1, 2))
        # wav2vec 2.0 and WavLM give what they projected beside it.
        features = projected[0] if isinstance(projected, tuple) else projected
        return self._transformed(features.masked_fill(~mask[..., None], 0.0), mask), mask

    def _extended(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Add room for one feature, and silence to every sound that is shorter."""
        room = self._receptive_field - 1
        samples = F.pad(samples.masked_fill(~mask, 0.0), (0, room))
        mask = torch.cat([mask, torch.zeros_like(mask[:, :1]).expand(-1, room)], dim=1)
        started = mask[:, :1]
        return samples, torch.cat([mask[:, : self._receptive_field] | started, mask[:, self._receptive_field :]], dim=1)

    def _convolved(self, samples: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions: (B, S) to (B, C, T), and a mask (B, T) of frames that read real samples alone."""
        frames = samples[:, None]
        layers = cast(Any, self.model).feature_extractor.conv_layers
        for place, (layer, (_, stride)) in enumerate(zip(layers, self._windows, strict=True)):
            # Real samples come first, so that a frame is real if the last thing it reads is. As a convolution, so that
            # an exporter sees by its form that the mask is as long as the frames.
            last = cast(Tensor, getattr(self, f"_last_{place}"))
            mask = F.conv1d(mask[:, None].to(frames.dtype), last.to(frames.dtype), stride=stride)[:, 0] > 0.5
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                frames = layer.activation(_masked_group_norm(layer.conv(frames), mask, norm))
            else:
                frames = layer(frames)
        return frames, mask

    def _transformed(self, features: Tensor, mask: Tensor) -> Tensor:
        """Run the transformer on features (B, L, D), which are 0 where the mask is false."""
        encoder = cast(Any, self.model).encoder
        features = features + self._positions(encoder.pos_conv_embed, features, mask)
        if not self._stable:
            features = encoder.layer_norm(features)
        layers = encoder.layers if self.hidden_layer is None else encoder.layers[: self.hidden_layer]
        if self._biased:
            features = _run_biased(layers, features, mask)
        else:
            bias = additive_mask(mask, features.dtype)
            for layer in layers:
                features = layer(features, attention_mask=bias)
        if self._stable and self.hidden_layer is None:
            features = encoder.layer_norm(features)
        return features

    def _positions(self, positional: Any, features: Tensor, mask: Tensor) -> Tensor:
        """Run the positional convolution (B, L, D), whose own padding at the ends is 0."""
        norm = getattr(positional, "batch_norm", None)
        if norm is None:
            return cast(Tensor, positional(features))
        # Padding is no longer 0 after HuBERT's optional batch norm, and what is behind the end of a sound alone is.
        normalized = norm(features.transpose(1, 2)).masked_fill(~mask[:, None], 0.0)
        convolved: Tensor = positional.activation(positional.padding(positional.conv(normalized)))
        return convolved.transpose(1, 2)


def _masked_group_norm(frames: Tensor, mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalize each channel of (B, C, T) over the frames that the mask (B, T) names; its groups have one channel."""
    weight = mask[:, None].to(frames.dtype)
    count = weight.sum(dim=2, keepdim=True).clamp(min=1)
    centered = frames - (frames * weight).sum(dim=2, keepdim=True) / count
    variance = (centered.square() * weight).sum(dim=2, keepdim=True) / count
    return centered * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def _run_biased(layers: Any, features: Tensor, mask: Tensor) -> Tensor:
    """Run WavLM's layers, which share a relative position bias and take a mask (B, L) of keys."""
    # A row of padding alone reads its first key, because attention to nothing is NaN.
    keys = torch.cat([mask[:, :1] | ~mask.any(dim=1, keepdim=True), mask[:, 1:]], dim=1)
    bias: Tensor | None = None
    for index, layer in enumerate(layers):
        features, bias = layer(features, attention_mask=keys, position_bias=bias, index=index)
    return features
