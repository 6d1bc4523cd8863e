"""Whisper, AST and CLAP: the library's features of its own extractor's spectrogram, and ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fluxtalk.arrays import Array
from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.spectrogram_models import spectrogram_encoder
from fluxtalk.preprocess import AudioPreprocessor
from fluxtalk.train.stage1.preprocessing.hf_audio import audio_preprocessor_of
from tests.model.encoders.models import require_parity, rows, transformers

TOLERANCE = 1e-5
KINDS = ("whisper", "ast", "clap", "clap-fused")
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # the library's own, AST


def made(kind: str) -> tuple[Any, Any]:
    """A small random model and its feature extractor."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    if kind == "whisper":
        config = transformers.WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=1,
            decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, max_source_positions=100,
        )  # fmt: skip
        return transformers.WhisperModel(config).eval(), transformers.WhisperFeatureExtractor(chunk_length=2)
    if kind == "ast":
        model = transformers.ASTModel(transformers.ASTConfig(max_length=96, **small)).eval()
        return model, transformers.ASTFeatureExtractor(max_length=96)
    fused = kind == "clap-fused"
    config = transformers.ClapAudioConfig(
        patch_embeds_hidden_size=16, depths=[1, 1, 1, 1], num_attention_heads=[2, 2, 4, 4], enable_fusion=fused
    )
    truncation = "fusion" if fused else "rand_trunc"
    return transformers.ClapAudioModel(config).eval(), transformers.ClapFeatureExtractor(truncation=truncation)


def library_features(kind: str, model: Any, extractor: Any, samples: Array) -> Tensor:
    given: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
    if kind.startswith("clap"):
        given.update(truncation=extractor.truncation, padding=extractor.padding)
    values = extractor(samples, **given)
    if kind == "whisper":
        found: Tensor = model.encoder(**values).last_hidden_state
    elif kind == "ast":
        found = model(**values).last_hidden_state
    else:
        longer = torch.zeros_like(values["is_longer"])
        found = model(values["input_features"].float(), is_longer=longer).last_hidden_state.flatten(2).transpose(1, 2)
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_librarys_alone_and_beside_longer_sounds(kind: str) -> None:
    model, extractor = made(kind)
    preprocess = audio_preprocessor_of(extractor.to_dict())
    rate, random = preprocess.sample_rate, np.random.default_rng(0)
    counts = (int(0.3 * rate), int(0.8 * rate), preprocess.max_length)
    sounds = [(0.1 * random.standard_normal(count)).astype(np.float32) for count in counts]
    # Before the encoder is made, which changes a model that fuses.
    with torch.inference_mode():
        expected = [library_features(kind, model, extractor, samples) for samples in sounds]
        encoder = spectrogram_encoder(model, preprocess)
        prepared = [preprocess.prepare((samples, rate)) for samples in sounds]
        for chosen in ([0], [1], [2], [0, 1, 2]):
            batch = preprocess.collate([prepared[index] for index in chosen])
            features, mask = encoder(*(torch.from_numpy(array) for array in batch.values()))
            assert mask.shape == features.shape[:2]
            assert features.shape[2] == encoder.dim
            for row, index in enumerate(chosen):
                difference = (features[row] - expected[index]).abs().max()
                assert difference <= TOLERANCE * expected[index].abs().max().clamp(min=1)


def test_masks_name_the_features_at_the_time_of_the_sound() -> None:
    model, extractor = made("whisper")
    encoder = spectrogram_encoder(model, audio_preprocessor_of(extractor.to_dict()))
    _, mask = encoder(*rows([31, 200], 200, 80))
    assert mask.sum(dim=1).tolist() == [16, 100]  # a feature reads two frames
    model, extractor = made("ast")
    encoder = spectrogram_encoder(model, audio_preprocessor_of(extractor.to_dict()))
    _, mask = encoder(*rows([31, 96], 96, 128))
    # Two summary tokens, and 12 rows of 9 patches, of which 4 begin before frame 31.
    assert mask.sum(dim=1).tolist() == [2 + 12 * 4, 2 + 12 * 9]


# A real encoder's graph is in test_speech.py, and every family's result in bench/results/encoders.json.
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_agrees_with_eager(kind: str) -> None:
    model, extractor = made(kind)
    preprocess = audio_preprocessor_of(extractor.to_dict())
    assert preprocess.features is not None
    longest, bins = preprocess.longest, preprocess.features.mel_bins
    batches = [rows([longest], longest, bins), rows([70, 1, 0], 70, bins), rows([5], 5, bins)]
    require_parity(spectrogram_encoder(model, preprocess).eval(), rows([40, 9], 40, bins), batches)


def test_a_model_and_a_spectrogram_that_do_not_fit_are_refused() -> None:
    model, extractor = made("whisper")
    with pytest.raises(UsageError, match="reads 80 mel bins; its preprocessing gives samples"):
        spectrogram_encoder(model, AudioPreprocessor(16_000, 16_000))
    other = transformers.WhisperFeatureExtractor(chunk_length=30)
    with pytest.raises(UsageError, match=r"reads 200 frames; its preprocessing gives up to 3000\. Use the model"):
        spectrogram_encoder(model, audio_preprocessor_of(other.to_dict()))
    with pytest.raises(UsageError, match="reads 128 mel bins; its preprocessing gives 80 mel bins"):
        spectrogram_encoder(made("ast")[0], audio_preprocessor_of(extractor.to_dict()))
