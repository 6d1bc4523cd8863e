"""Spectrograms: equal to those of transformers' feature extractors, settings that are refused, batches and masks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess import Array, AudioPreprocessor, Spectrogram, from_parts
from fluxtalk.train.stage1.preprocessing.hf_audio import audio_preprocessor_of

TOLERANCE = 1e-4

Made = tuple[Any, Callable[[Any, Array], Array]]
"""An extractor, and the function that gives its spectrogram of samples."""

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # the library's own, AST


@pytest.fixture(autouse=True)
def _quiet_library() -> None:
    transformers.logging.set_verbosity_error()


def sounds(rate: int, seconds: tuple[float, ...]) -> dict[str, Array]:
    """Sounds of each duration: a sweep, noise, noise near silence with an offset, and silence."""
    random = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for duration in seconds:
        count = round(duration * rate)
        time = np.arange(count) / rate
        phase = 2 * np.pi * (50 * time + (rate / 2 - 100) / (2 * max(duration, 1)) * time**2)
        made[f"sweep of {duration} s"] = 0.7 * np.sin(phase)
        made[f"noise of {duration} s"] = 0.1 * random.standard_normal(count)
        made[f"quiet noise of {duration} s"] = 1e-4 * random.standard_normal(count) + 0.01
        made[f"silence of {duration} s"] = np.zeros(count)
    return {name: samples.astype(np.float32) for name, samples in made.items()}


def whole(preprocess: AudioPreprocessor, prepared: Array) -> Array:
    """Append the silence that encoders write inside the graph."""
    settings = preprocess.features
    assert settings is not None
    silence = settings.silence
    if settings.dynamic_range is not None:
        silence = max(silence, float(prepared.max()) - settings.dynamic_range / settings.std)
    if settings.fill == "none":
        silence = -settings.mean / settings.std  # AST pads the logarithms with 0
    padded = np.full((preprocess.longest, prepared.shape[1]), silence, dtype=np.float32)
    padded[: len(prepared)] = prepared
    return padded


def whisper(bins: int, numpy_code: bool) -> Made:
    def torch_features(extractor: Any, samples: Array) -> Array:
        return np.asarray(extractor(samples, sampling_rate=16_000, return_tensors="np")["input_features"][0]).T

    def numpy_features(extractor: Any, samples: Array) -> Array:
        filled = np.zeros(extractor.n_samples, dtype=np.float32)
        filled[: len(samples)] = samples[: len(filled)]
        return np.asarray(extractor._np_extract_fbank_features([filled], "cpu")[0]).T

    return WhisperFeatureExtractor(feature_size=bins, chunk_length=4), numpy_features if numpy_code else torch_features


def ast() -> Made:
    return ASTFeatureExtractor(max_length=400), lambda extractor, samples: np.asarray(
        extractor(samples, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    )


def clap(truncation: str, padding: str) -> Made:
    def features(extractor: Any, samples: Array) -> Array:
        found = extractor(samples, truncation=truncation, padding=padding, sampling_rate=48_000, return_tensors="np")[
            "input_features"
        ][0]
        assert all((channel == found[0]).all() for channel in found), "crops of a sound that is not longer are equal"
        return np.asarray(found[0])

    return ClapFeatureExtractor(truncation=truncation, padding=padding, max_length_s=4), features


SHORT, LONG = (0.03, 0.7, 1.9995, 3.99, 4.0), (4.005, 5.0)


@pytest.mark.parametrize(
    ("made", "seconds"),
    [
        pytest.param(partial(whisper, 80, False), (*SHORT, *LONG), id="whisper-torch"),
        pytest.param(partial(whisper, 80, True), (*SHORT, *LONG), id="whisper-numpy"),
        pytest.param(partial(whisper, 128, True), (*SHORT, *LONG), id="whisper-128"),
        pytest.param(ast, (*SHORT, *LONG), id="ast"),
        pytest.param(partial(clap, "rand_trunc", "repeatpad"), SHORT, id="clap"),
        pytest.param(partial(clap, "rand_trunc", "repeat"), SHORT, id="clap-repeat"),
        pytest.param(partial(clap, "rand_trunc", "pad"), SHORT, id="clap-pad"),
        pytest.param(partial(clap, "fusion", "repeatpad"), SHORT, id="clap-fused"),
    ],
)
def test_spectrograms_equal_the_feature_extractors(made: Callable[[], Made], seconds: tuple[float, ...]) -> None:
    extractor, library = made()
    preprocess = audio_preprocessor_of(extractor.to_dict())
    rate = preprocess.sample_rate
    for name, samples in sounds(rate, seconds).items():
        prepared = preprocess.prepare((samples, rate))
        assert prepared.dtype == np.float32
        assert 1 <= preprocess.length(prepared) <= preprocess.longest
        expected = library(extractor, samples)
        found = whole(preprocess, prepared)
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() <= TOLERANCE, name


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng, which speaks the sentence, is not installed")
def test_spoken_words_equal_the_feature_extractors(tmp_path: Path) -> None:
    path = tmp_path / "words.wav"
    subprocess.run(["espeak-ng", "-w", path, "a red bus stops at the corner"], check=True)
    for extractor, library in (whisper(80, False), ast()):
        preprocess = audio_preprocessor_of(extractor.to_dict())
        heard = AudioPreprocessor(preprocess.sample_rate, preprocess.max_length).prepare(path)
        found = whole(preprocess, preprocess.prepare(path))
        assert np.abs(found - library(extractor, heard)).max() <= TOLERANCE


def test_integers_and_floats_give_one_spectrogram() -> None:
    preprocess = audio_preprocessor_of(whisper(80, False)[0].to_dict())
    integers = (3000 * np.random.default_rng(0).standard_normal(16_000)).astype(np.int16)
    floats = (integers / 32768).astype(np.float32)
    found = preprocess.prepare((integers, 16_000))
    assert np.array_equal(found, preprocess.prepare((floats, 16_000)))
    assert np.array_equal(found, preprocess.prepare((np.stack([floats, floats], axis=1), 16_000)))


@pytest.mark.parametrize("padded", [False, True])
def test_normalized_samples_equal_the_extractor_of_wav2vec2(padded: bool) -> None:
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    preprocess = audio_preprocessor_of(extractor.to_dict(), max_length=5 * 16_000)
    clips = [samples for name, samples in sounds(16_000, (0.03, 0.7)).items()]
    prepared = [preprocess.prepare((samples, 16_000)) for samples in clips]
    if not padded:
        for samples, found in zip(clips, prepared, strict=True):
            expected = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_values"][0]
            assert np.abs(found - expected).max() <= TOLERANCE
        return
    batch = preprocess.collate(prepared)
    expected = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="np")
    assert np.abs(batch["samples"] - expected["input_values"]).max() <= TOLERANCE
    assert np.array_equal(batch["mask"], expected["attention_mask"].astype(bool))


def test_a_frame_hears_what_lies_under_its_window_by_a_sum_of_cosines() -> None:
    settings = Spectrogram(4, 16, 8, 32, 0.0, 4000.0, "htk", "ln", centered=False)
    samples = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    found = settings.compute(samples, 8000, 64)
    assert found.shape == (settings.frames(64), 4) == (7, 4)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / 16) for i in range(16)]
    mel = np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 6)
    points = [700 * (10 ** (value / 2595) - 1) for value in mel]
    for frame in range(7):
        power = []
        for bin_ in range(17):
            angles = [2 * math.pi * bin_ * i / 32 for i in range(16)]
            values = [float(samples[8 * frame + i]) * window[i] for i in range(16)]
            real = sum(value * math.cos(angle) for value, angle in zip(values, angles, strict=True))
            imaginary = sum(value * math.sin(angle) for value, angle in zip(values, angles, strict=True))
            power.append(real**2 + imaginary**2)
        for index in range(4):
            low, top, high = points[index : index + 3]
            weights = [max(0.0, min((250 * b - low) / (top - low), (high - 250 * b) / (high - top))) for b in range(17)]
            expected = math.log(max(1e-10, sum(w * p for w, p in zip(weights, power, strict=True))))
            assert found[frame, index] == pytest.approx(expected, abs=1e-4)


def test_a_batch_is_padded_and_its_mask_names_the_frames_that_hear_the_sound() -> None:
    preprocess = audio_preprocessor_of(whisper(80, False)[0].to_dict())
    rows = [preprocess.prepare((np.ones(count, dtype=np.float32), 16_000)) for count in (1600, 8000)]
    # Frames are centered at every 160 samples and reach 200 to either side.
    assert [preprocess.length(row) for row in rows] == [(1600 + 199) // 160 + 1, (8000 + 199) // 160 + 1]
    batch = preprocess.collate(rows)
    assert tuple(batch) == preprocess.input_names == ("spectrogram", "mask")
    assert batch["spectrogram"].shape == (2, 52, 80)
    assert batch["mask"].sum(axis=1).tolist() == [12, 52]
    assert preprocess.longest == 400


def test_settings_survive_their_parts_and_plain_samples_have_the_parts_they_had() -> None:
    assert AudioPreprocessor(8000, 4000).to_parts()[0] == {"kind": "audio", "sample_rate": 8000, "max_length": 4000}
    for preprocess in (
        AudioPreprocessor(16_000, 16_000, normalize=True),
        audio_preprocessor_of(whisper(80, False)[0].to_dict()),
        audio_preprocessor_of(ast()[0].to_dict()),
    ):
        config, files = preprocess.to_parts()
        assert from_parts(json.loads(json.dumps(config)), files) == preprocess
        # Content hashes of older checkpoints have no word for what was mirrored always.
        assert "edges" not in config.get("features", {})


def test_zeros_beyond_the_ends_are_what_a_sound_between_silences_hears() -> None:
    settings = Spectrogram(4, 16, 8, 32, 0.0, 4000.0, "htk", "none", edges="zeros", fill="zeros")
    samples = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    inside = Spectrogram(4, 16, 8, 32, 0.0, 4000.0, "htk", "none", centered=False)
    expected = inside.compute(np.pad(samples, 8), 8000, 56)
    assert np.allclose(settings.compute(samples, 8000, 40), expected, rtol=1e-6, atol=0)
    # Frames that hear nothing are left out, and are all silence.
    filled = settings.compute(samples, 8000, 80)
    assert len(filled) == 6 < settings.frames(80)
    assert np.allclose(filled, expected, rtol=1e-6, atol=0)
    assert settings.silence == settings.floor
    assert settings.shortest == 1


def test_a_spectrogram_that_was_prepared_is_taken_as_it_is_and_checked() -> None:
    preprocess = audio_preprocessor_of(whisper(80, False)[0].to_dict())
    prepared = preprocess.prepare((np.ones(1600, dtype=np.float32), 16_000))
    assert np.array_equal(preprocess.prepare(prepared), prepared)
    for wrong, sentence in (
        (prepared[:, :40], r"shape \(frames, 80\) with 1 to 400 frames"),
        (np.zeros((401, 80), dtype=np.float32), "with 1 to 400 frames"),
        (prepared.astype(np.int64), "must hold floating numbers"),
        (prepared + np.nan, "holds NaN or infinity"),
    ):
        with pytest.raises(InputError, match=sentence):
            preprocess.prepare(wrong)


def test_a_sound_shorter_than_a_window_that_is_not_filled_is_refused(tmp_path: Path) -> None:
    preprocess = audio_preprocessor_of(ast()[0].to_dict())
    path = tmp_path / "click.wav"
    soundfile.write(path, np.zeros(399), 16_000)
    with pytest.raises(InputError, match="has 399 samples at 16000 Hz, and its spectrogram needs 400"):
        preprocess.prepare(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mel_scale": "bark"}, "mel_scale is one of slaney, htk, kaldi; got 'bark'"),
        ({"mel_bins": 0}, "mel_bins is an integer from 1 to 65536; got 0"),
        ({"fft_length": 1 << 40}, "fft_length is an integer from 1 to 65536"),
        ({"fft_length": 200}, "fft_length is at least its window_length of 400; got 200"),
        ({"logarithm": "log2"}, "logarithm is one of ln, log10, db, none; got 'log2'"),
        ({"edges": "repeat"}, "edges is one of mirror, zeros; got 'repeat'"),
        ({"edges": "zeros", "centered": False}, "reach beyond its ends only if they are centered; got edges 'zeros'"),
        ({"centered": 1}, "centered is true or false; got 1"),
        ({"mean": "4"}, "mean is a finite number; got '4'"),
        ({"std": 0}, "std is above 0; got 0"),
        ({"floor": 0.0}, "floor is above 0"),
        ({"dynamic_range": -8}, "dynamic_range is above 0 or null"),
        ({"min_frequency": 9000.0}, "frequencies rise from 0 or more"),
        ({"max_frequency": 9000.0}, "at 16000 Hz has a max_frequency of at most half of it"),
        ({"power": 2}, "unknown power"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], sentence: str) -> None:
    config, _ = audio_preprocessor_of(whisper(80, False)[0].to_dict()).to_parts()
    config["features"] = {**config["features"], **change}
    with pytest.raises(UsageError, match=sentence):
        from_parts(config, {})


def test_a_preprocessor_either_normalizes_or_makes_a_spectrogram_of_at_least_a_frame() -> None:
    settings = Spectrogram(4, 16, 8, 32, 0.0, 4000.0, "htk", "ln", centered=False)
    with pytest.raises(UsageError, match="give normalize or features"):
        AudioPreprocessor(8000, 4000, normalize=True, features=settings)
    with pytest.raises(UsageError, match="needs a max_length that holds a frame; got 15"):
        AudioPreprocessor(8000, 15, features=settings)
    with pytest.raises(UsageError, match="normalize to be true or false; got 1"):
        from_parts({"kind": "audio", "sample_rate": 8000, "max_length": 10, "normalize": 1}, {})
    with pytest.raises(UsageError, match="Spectrogram is an object; got 3"):
        from_parts({"kind": "audio", "sample_rate": 8000, "max_length": 10, "features": 3}, {})
