"""Feature extractors of transformers as our audio preprocessing: what their files say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ClapFeatureExtractor, WhisperFeatureExtractor

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import AudioPreprocessor
from fluxtalk.train.stage1.preprocessing.hf_audio import audio_preprocessor_of


def test_a_saved_extractor_is_read_from_its_file_or_its_processors(tmp_path: Path) -> None:
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    found = audio_preprocessor_of(config)
    assert (found.sample_rate, found.max_length, found.longest) == (16_000, 480_000, 3000)
    assert found.features is not None
    assert found.features.mel_bins == 128
    assert audio_preprocessor_of({"processor_class": "WhisperProcessor", "feature_extractor": config}) == found


def test_missing_keys_mean_the_defaults_of_the_extractor() -> None:
    for extractor in (WhisperFeatureExtractor(), ClapFeatureExtractor()):
        bare = {"feature_extractor_type": type(extractor).__name__}
        assert audio_preprocessor_of(bare) == audio_preprocessor_of(extractor.to_dict())


def test_the_extractor_of_wav2vec2_says_whether_samples_are_normalized_and_not_how_many_are_kept() -> None:
    config = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False}
    assert audio_preprocessor_of(config, max_length=800) == AudioPreprocessor(16_000, 800)
    assert audio_preprocessor_of({**config, "do_normalize": True}, 800) == AudioPreprocessor(16_000, 800, True)
    with pytest.raises(UsageError, match="give a max_length in samples at 16000 Hz, such as 160000 for 10 seconds"):
        audio_preprocessor_of(config)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "The feature extractor is one of WhisperFeatureExtractor, .*; got None"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "got 'SeamlessM4TFeatureExtractor'"),
        ({"dither": 1e-4}, "WhisperFeatureExtractor with dither 0.0001 has no equal here"),
        ({"padding_value": 1.0}, "WhisperFeatureExtractor with padding_value 1.0"),
        ({"padding_side": "left"}, "WhisperFeatureExtractor with padding_side 'left'"),
        ({"chunk_length": 0.5}, "whole number of at least 1 as its chunk_length; got 0.5"),
        ({"hop_length": None}, "a number as its hop_length; got None"),
        ({"feature_extractor_type": "ClapFeatureExtractor", "top_db": 80}, "ClapFeatureExtractor with top_db 80"),
        ({"feature_extractor_type": "ClapFeatureExtractor", "truncation": "end"}, "truncation 'end' has no equal here"),
        ({"feature_extractor_type": "ClapFeatureExtractor", "padding": True}, "with padding True has no equal here"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 2}, "with feature_size 2"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(config: dict[str, Any], sentence: str) -> None:
    whisper = {"feature_extractor_type": "WhisperFeatureExtractor"}
    with pytest.raises(UsageError, match=sentence):
        audio_preprocessor_of({**whisper, **config} if config else config)


def test_a_length_beside_the_only_one_of_an_extractor_is_refused() -> None:
    config = {"feature_extractor_type": "WhisperFeatureExtractor"}
    assert audio_preprocessor_of(config, max_length=480_000) == audio_preprocessor_of(config)
    with pytest.raises(UsageError, match="brings every sound to 480000 samples; got a max_length of 160000"):
        audio_preprocessor_of(config, max_length=160_000)
