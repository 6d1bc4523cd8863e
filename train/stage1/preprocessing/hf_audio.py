"""Feature extractors of transformers, read from their `preprocessor_config.json` into our audio preprocessing.

Read from the files, without transformers: what its extractor computes is in `fluxtalk.preprocess`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.preprocess import AudioPreprocessor, Spectrogram

_AST_WINDOW, _AST_HOP, _AST_FFT = 400, 160, 512
"""Samples, which the extractor of AST fixes whatever the sample rate is."""
_FLOAT32_EPSILON = 1.1920928955078125e-07


def audio_preprocessor_of(config: Mapping[str, Any], max_length: int | None = None) -> AudioPreprocessor:
    """Give the audio preprocessing that equals a feature extractor of transformers, within 1e-4.

    CLAP cuts a random part out of longer sounds, and its fused models add three; here the beginning is kept. Sounds of
    at most its length are what the extractor gives.

    Args:
        config: content of `preprocessor_config.json`, or of a `processor_config.json` that holds it.
        max_length: samples kept, which the extractors of wav2vec 2.0 do not say; for the others it is what they say.

    Raises:
        UsageError: the extractor is unknown, or a setting has no equal here; the sentence names both.
    """
    nested = config.get("feature_extractor")
    if isinstance(nested, Mapping):
        config = nested
    name = config.get("feature_extractor_type")
    if not isinstance(name, str) or name not in _READERS:
        raise UsageError(
            f"The feature extractor is one of {', '.join(_READERS)}; got {name!r}. "
            "Give the audio preprocessing by hand."
        )
    settings = _Settings(name, config)
    settings.refuse_unless("padding_value", 0, 0.0)
    settings.refuse_unless("padding_side", "right")
    settings.refuse_unless("dither", 0, 0.0)
    return _READERS[name](settings, max_length)


class _Settings:
    """An extractor's configuration with its defaults: missing keys mean what its constructor means."""

    def __init__(self, extractor: str, config: Mapping[str, Any]) -> None:
        self.extractor = extractor
        self.config = config

    def refuse_unless(self, key: str, *known: Any) -> Any:
        """Give a setting that has to be one of those known here, of which the first is the default."""
        value = self.config.get(key, known[0])
        if isinstance(value, bool) != isinstance(known[0], bool) or value not in known:
            raise UsageError(
                f"{self.extractor} with {key} {value!r} has no equal here; known are "
                f"{', '.join(repr(choice) for choice in known)}. Give the audio preprocessing by hand."
            )
        return value

    def number(self, key: str, default: float) -> float:
        """Give a number."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{self.extractor} has a number as its {key}; got {value!r}.")
        return value

    def count(self, key: str, default: int) -> int:
        """Give a whole number of at least 1."""
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise UsageError(f"{self.extractor} has a whole number of at least 1 as its {key}; got {value!r}.")
        return int(value)

    def fixed_length(self, samples: int, given: int | None) -> int:
        """Give the only length that the extractor has."""
        if given not in (None, samples):
            raise UsageError(f"{self.extractor} brings every sound to {samples} samples; got a max_length of {given}.")
        return samples


def _whisper(settings: _Settings, max_length: int | None) -> AudioPreprocessor:
    rate, hop = settings.count("sampling_rate", 16_000), settings.count("hop_length", 160)
    window = settings.count("n_fft", 400)
    return AudioPreprocessor(
        rate,
        settings.fixed_length(settings.count("chunk_length", 30) * rate, max_length),
        features=Spectrogram(
            mel_bins=settings.count("feature_size", 80),
            window_length=window,
            hop_length=hop,
            fft_length=window,
            min_frequency=0.0,
            max_frequency=8000.0,
            mel_scale="slaney",
            logarithm="log10",
            area_norm=True,
            fill="zeros",
            drop_last_frame=True,
            dynamic_range=8.0,
            mean=-4.0,
            std=4.0,
        ),
    )


def _ast(settings: _Settings, max_length: int | None) -> AudioPreprocessor:
    rate, frames = settings.count("sampling_rate", 16_000), settings.count("max_length", 1024)
    normalized = settings.refuse_unless("do_normalize", True, False)
    settings.refuse_unless("feature_size", 1)
    # The extractor divides by twice the standard deviation.
    mean, std = (settings.number("mean", -4.2677393), 2 * settings.number("std", 4.5689974)) if normalized else (0, 1)
    return AudioPreprocessor(
        rate,
        settings.fixed_length(_AST_WINDOW + (frames - 1) * _AST_HOP, max_length),
        features=Spectrogram(
            mel_bins=settings.count("num_mel_bins", 128),
            window_length=_AST_WINDOW,
            hop_length=_AST_HOP,
            fft_length=_AST_FFT,
            min_frequency=20.0,
            max_frequency=float(rate // 2),
            mel_scale="kaldi",
            logarithm="ln",
            floor=_FLOAT32_EPSILON,
            symmetric_window=True,
            centered=False,
            remove_offset=True,
            preemphasis=0.97,
            mean=mean,
            std=std,
        ),
    )


def _clap(settings: _Settings, max_length: int | None) -> AudioPreprocessor:
    rate, window = settings.count("sampling_rate", 48_000), settings.count("fft_window_size", 1024)
    fused = settings.refuse_unless("truncation", "fusion", "rand_trunc") == "fusion"
    fills = {"repeatpad": "repeat-whole", "repeat": "repeat", "pad": "zeros"}
    settings.refuse_unless("top_db", None)
    return AudioPreprocessor(
        rate,
        settings.fixed_length(settings.count("max_length_s", 10) * rate, max_length),
        features=Spectrogram(
            mel_bins=settings.count("feature_size", 64),
            window_length=window,
            hop_length=settings.count("hop_length", 480),
            fft_length=window,
            min_frequency=float(settings.number("frequency_min", 0)),
            max_frequency=float(settings.number("frequency_max", 14_000)),
            mel_scale="htk" if fused else "slaney",
            logarithm="db",
            area_norm=not fused,
            fill=fills[settings.refuse_unless("padding", *fills)],  # type: ignore[arg-type]
        ),
    )


def _wav2vec2(settings: _Settings, max_length: int | None) -> AudioPreprocessor:
    settings.refuse_unless("feature_size", 1)
    rate = settings.count("sampling_rate", 16_000)
    if max_length is None:
        raise UsageError(
            f"{settings.extractor} does not say how much of a sound is kept, and its model takes any length; give a "
            f"max_length in samples at {rate} Hz, such as {10 * rate} for 10 seconds."
        )
    # With a mask or without, a sound alone is normalized over all its samples; its `return_attention_mask` says only
    # whether the model sees a mask.
    return AudioPreprocessor(rate, max_length, normalize=settings.refuse_unless("do_normalize", True, False))


_READERS: dict[str, Callable[[_Settings, int | None], AudioPreprocessor]] = {
    "WhisperFeatureExtractor": _whisper,
    "ASTFeatureExtractor": _ast,
    "ClapFeatureExtractor": _clap,
    "Wav2Vec2FeatureExtractor": _wav2vec2,
}
