"""The speaker encoder gives the mel power and the hidden states of Resemblyzer, whatever follows a sound."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from bench.encoders.items import sound
from bench.encoders.real_sources import package_folder, real_specification
from bench.encoders.speaker import SpeakerEncoder, speaker_preprocessing
from fluxtalk.arrays import Array, Floats
from fluxtalk.preprocess import AudioPreprocessor
from fluxtalk.train.stage1.sources.weights import fit_weights, read_weights

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("resemblyzer") is None, reason="Resemblyzer, which carries the weights, is not installed"
)


def library_mel(samples: Floats) -> Array:
    """The power that librosa's `melspectrogram` gives with Resemblyzer's settings, by transformers' own code for it."""
    filters = mel_filter_bank(201, 40, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    found: Array = spectrogram(
        samples.astype(np.float64), window, 400, 160, power=2.0, pad_mode="constant", mel_filters=filters, mel_floor=0.0
    )
    return found.T


@pytest.mark.parametrize("count", [1, 399, 16_000, 25_446])
def test_mel_power_is_that_of_librosa(count: int) -> None:
    preprocess = speaker_preprocessing()
    samples = np.resize(sound(3), count)
    found = preprocess.prepare((samples, 16_000))
    np.testing.assert_allclose(found, library_mel(samples), rtol=1e-5, atol=1e-6)
    if importlib.util.find_spec("librosa") is not None:
        librosa = importlib.import_module("librosa")
        expected = librosa.feature.melspectrogram(y=samples, sr=16_000, n_fft=400, hop_length=160, n_mels=40).T
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_settings_come_back_from_a_checkpoint() -> None:
    config, files = speaker_preprocessing().to_parts()
    assert config["features"]["edges"] == "zeros"
    assert AudioPreprocessor.from_parts({key: value for key, value in config.items() if key != "kind"}, files) == (
        speaker_preprocessing()
    )


@needs_weights
def test_features_are_the_hidden_states_of_resemblyzer(tmp_path: Path) -> None:
    specification = real_specification("resemblyzer", tmp_path)
    encoder = SpeakerEncoder()
    fit_weights(encoder, read_weights(Path(specification["weights"])), "The weights do not fit")
    # The network as the package declares it, with the file as it lies there.
    library = nn.LSTM(40, 256, 3, batch_first=True)
    given = torch.load(package_folder("resemblyzer") / "pretrained.pt", map_location="cpu", weights_only=True)[
        "model_state"
    ]
    library.load_state_dict({k.removeprefix("lstm."): v for k, v in given.items() if k.startswith("lstm.")})
    preprocess = speaker_preprocessing()
    prepared = [preprocess.prepare((sound(index), 16_000)) for index in (0, 4)]
    batch = preprocess.collate(prepared)
    with torch.no_grad():
        together = encoder(torch.from_numpy(batch["spectrogram"]), torch.from_numpy(batch["mask"]))
        for row, frames in enumerate(prepared):
            expected, _ = library(torch.from_numpy(frames)[None])
            np.testing.assert_allclose(together[row, : len(frames)], expected[0], rtol=0, atol=1e-5)
