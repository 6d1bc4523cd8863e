"""Encoders over spectrograms (Whisper, AST, CLAP of transformers): frames and their mask in, features and theirs out.

Preprocessing gives the frames that hear the sound. These models read a fixed number of frames, so that the silence
after the sound is written inside the graph; what a client sends and a cache keeps is as short as the sound.

Shapes: B sounds, T frames given, N frames that a model reads, W frames after CLAP's stretching, M mel bins, L features,
D dimension.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import AudioPreprocessor, Spectrogram

SPECTROGRAM_MODELS = ("whisper", "audio-spectrogram-transformer", "clap_audio_model")
"""Values of ``model_type`` in the configurations of the models that `spectrogram_encoder` takes."""


def spectrogram_encoder(model: nn.Module, preprocess: AudioPreprocessor) -> nn.Module:
    """Wrap a model of transformers over the spectrogram that its feature extractor computes.

    Args:
        model: a `WhisperEncoder` or `WhisperModel`, an `ASTModel`, or a `ClapAudioModel` (with its projection or not).
        preprocess: its preprocessing, which knows how the sound goes on: in silence.

    Returns:
        a module from frames (B, T, M) and mask bool (B, T) to features (B, L, D) and mask bool (B, L).

    Raises:
        UsageError: the model is another one, or reads another spectrogram.
    """
    config: Any = model.config
    kind = config.model_type
    if kind not in SPECTROGRAM_MODELS:
        raise UsageError(f"A spectrogram encoder is one of {', '.join(SPECTROGRAM_MODELS)}; got {kind!r}.")
    features = preprocess.features
    if features is None or features.mel_bins != config.num_mel_bins:
        given = "samples" if features is None else f"{features.mel_bins} mel bins"
        raise UsageError(f"This {kind} model reads {config.num_mel_bins} mel bins; its preprocessing gives {given}.")
    wrapped: WhisperFeatures | ASTFeatures | ClapFeatures
    if kind == "whisper":
        wrapped = WhisperFeatures(model, features)
    elif kind == "clap_audio_model":
        return ClapFeatures(model, features, preprocess.longest)
    else:
        wrapped = ASTFeatures(model, features)
    if preprocess.longest != wrapped.frames:
        raise UsageError(
            f"This {kind} model reads {wrapped.frames} frames; its preprocessing gives up to {preprocess.longest}. "
            "Use the model's own feature extractor."
        )
    return wrapped


class WhisperFeatures(nn.Module):
    """Whisper's encoder: a feature for every two frames.

    The model reads all of its 30 seconds whatever the sound's length, and its features know of the silence; the mask
    names those at the time of the sound.
    """

    def __init__(self, model: nn.Module, features: Spectrogram) -> None:
        super().__init__()
        config: Any = model.config
        encoder = cast(Any, getattr(model, "encoder", model))
        self.model: Any = encoder
        self.dim = int(config.d_model)
        self._stride: int = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        self.frames = int(config.max_source_positions) * self._stride
        """N."""
        self._silence = features.silence
        self._range = None if features.dynamic_range is None else features.dynamic_range / features.std

    def forward(self, spectrogram: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, T, M), T at most N, to (B, N / 2, D)."""
        silence: Tensor | float = self._silence
        if self._range is not None:
            # Silence is raised, as everything is that is further below the loudest value.
            loudest = spectrogram.masked_fill(~mask[..., None], self._silence).amax(dim=(1, 2), keepdim=True)
            silence = (loudest - self._range).clamp(min=self._silence)
        frames, mask = _extended(spectrogram, mask, self.frames, silence)
        features: Tensor = self.model(frames.transpose(1, 2)).last_hidden_state
        return features, mask[:, :: self._stride]


class ASTFeatures(nn.Module):
    """Audio spectrogram transformer: two summary tokens, and a feature for each patch of mel bins and frames.

    The mask names the summary tokens, and the patches that hold a frame of the sound.
    """

    def __init__(self, model: nn.Module, features: Spectrogram) -> None:
        super().__init__()
        config: Any = model.config
        self.model: Any = model
        self.dim = int(config.hidden_size)
        self.frames = int(config.max_length)
        """N."""
        self._stride: int = config.time_stride
        self._rows, self._columns = cast(Any, model).embeddings.get_shape(config)
        # The extractor appends zeros to the logarithms, before it normalizes them.
        self._padding = -features.mean / features.std

    def forward(self, spectrogram: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, T, M), T at most N, to (B, 2 + rows x columns, D)."""
        frames, mask = _extended(spectrogram, mask, self.frames, self._padding)
        features: Tensor = self.model(frames).last_hidden_state
        # Frames of the sound come first, so that a patch holds one if its first frame is one.
        heard = mask[:, : self._columns * self._stride : self._stride].repeat(1, self._rows)
        return features, torch.cat([torch.ones_like(mask[:, :2]), heard], dim=1)


class ClapFeatures(nn.Module):
    """CLAP's audio tower (a Swin transformer): its last feature map as a sequence, by frequency and then time.

    The mask names all features: their windows mix times that are far apart, and the sound is usually repeated to the
    model's length. A model with ``enable_fusion`` reads every sound as one that is not longer than that.
    """

    def __init__(self, model: nn.Module, features: Spectrogram, frames: int) -> None:
        super().__init__()
        tower = cast(Any, getattr(model, "audio_model", model))
        self.model: Any = tower.audio_encoder
        self.dim = int(self.model.num_features)
        self.frames = frames
        """N."""
        self._silence = features.silence
        most = self.model.spec_size * self.model.freq_ratio
        if frames > most:
            raise UsageError(f"This CLAP model reads at most {most} frames; its preprocessing gives up to {frames}.")
        # The library stretches the frames by bicubic interpolation, whose coordinates other libraries round otherwise:
        # values of -100 dB are then 1e-4 apart. As a product with its own weights, it is the same everywhere.
        stretch = F.interpolate(torch.eye(frames)[None, None], (most, frames), mode="bicubic", align_corners=True)
        self.register_buffer("_stretch_WN", stretch[0, 0], persistent=False)
        # What fuses crops of longer sounds is not run.
        self.model.enable_fusion = self.model.patch_embed.enable_fusion = False

    def forward(self, spectrogram: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, T, M), T at most N, to (B, L, D)."""
        frames, _ = _extended(spectrogram, mask, self.frames, self._silence)
        stretched = torch.matmul(cast(Tensor, self._stretch_WN), frames)
        map_BDHW: Tensor = self.model(stretched[:, None]).last_hidden_state
        features = map_BDHW.flatten(2).transpose(1, 2)
        return features, torch.ones_like(features[..., 0], dtype=torch.bool)


def _extended(spectrogram: Tensor, mask: Tensor, frames: int, silence: Tensor | float) -> tuple[Tensor, Tensor]:
    """Bring (B, T, M) and (B, T) to N frames, silent where the mask is false."""
    spectrogram = F.pad(spectrogram, (0, 0, 0, frames))[:, :frames]
    mask = torch.cat([mask, torch.zeros_like(mask[:, :1]).expand(-1, frames)], dim=1)[:, :frames]
    filling = torch.as_tensor(silence, dtype=spectrogram.dtype, device=spectrogram.device)
    return torch.where(mask[..., None], spectrogram, filling), mask
