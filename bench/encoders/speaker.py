"""A speaker encoder with real weights: Resemblyzer's recurrent network over mel frames, and its preprocessing.

Source: Wan, Wang, Papir and Moreno (2018), "Generalized end-to-end loss for speaker verification". It was trained to
tell speakers apart, so what it knows of words is by-catch. Resemblyzer keeps one vector of an utterance; here every
frame's hidden state is a feature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxtalk.preprocess import AudioPreprocessor, Spectrogram

MEL_BINS, WIDTH, LAYERS = 40, 256, 3
RATE = 16_000
SECONDS = 4
"""Duration that is kept of a sound."""
FACTORY = "module:bench.encoders.speaker:speaker_encoder"


class SpeakerEncoder(nn.Module):
    """Recurrent network, whose hidden states are the features.

    It reads from the beginning to the end, so padding behind a sound changes nothing of the sound's features.

    Args:
        layers: layers whose hidden states are joined, counted from 1; None is the last one.
    """

    def __init__(self, layers: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.layers = layers or (LAYERS,)
        self.dim = WIDTH * len(self.layers)
        self.lstm = nn.ModuleList(
            nn.LSTM(MEL_BINS if layer == 0 else WIDTH, WIDTH, batch_first=True) for layer in range(max(self.layers))
        )

    def forward(self, spectrogram: Tensor, mask: Tensor) -> Tensor:
        """Encode mel power (B, T, M) to hidden states (B, T, D)."""
        hidden, states = spectrogram, []
        for lstm in self.lstm:
            hidden, _ = lstm(hidden)
            states.append(hidden)
        return torch.cat([states[layer - 1] for layer in self.layers], dim=2)


def speaker_encoder(layers: list[int] | None = None) -> nn.Module:
    """Build the network without its weights, as a checkpoint names it."""
    return SpeakerEncoder(None if layers is None else tuple(layers))


def speaker_preprocessing() -> AudioPreprocessor:
    """Describe the mel power that Resemblyzer computes (`wav_to_mel_spectrogram`), without a logarithm.

    Its `preprocess_wav` also raises quiet sounds to -30 dBFS and cuts out pauses; neither is done here.
    """
    features = Spectrogram(
        mel_bins=MEL_BINS,
        window_length=400,
        hop_length=160,
        fft_length=400,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        mel_scale="slaney",
        logarithm="none",
        area_norm=True,
        edges="zeros",
    )
    return AudioPreprocessor(sample_rate=RATE, max_length=SECONDS * RATE, features=features)


def speaker_weights(file: Path, layers: int = LAYERS) -> dict[str, Tensor]:
    """Read the weights of the first layers from the file that Resemblyzer carries, under the names they have here."""
    given: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    named: dict[str, Tensor] = {}
    for layer in range(layers):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            named[f"lstm.{layer}.{part}_l0"] = given[f"lstm.{part}_l{layer}"].contiguous()
    return named


def speaker_specification(weights: Path, layers: list[int] | None = None) -> dict[str, Any]:
    """Describe the encoder as encoders.json takes it, its weights in a file."""
    return {
        "encoder": FACTORY,
        "options": {} if layers is None else {"layers": layers},
        "weights": str(weights),
        "preprocess": speaker_preprocessing().to_parts()[0],
    }
