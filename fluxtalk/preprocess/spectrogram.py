"""Mel spectrograms, in numpy: frames, window, Fourier transform, mel filters, logarithm, normalization.

Sources: Davis and Mermelstein (1980) for mel filters; the mel scales of HTK, Slaney's Auditory Toolbox and Kaldi.
Shapes: T frames, W samples of a window, F frequencies, M mel bins.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fluxtalk.arrays import Floats
from fluxtalk.config import StrictConfig, require
from fluxtalk.field_types import fits, shown

MelScale = Literal["slaney", "htk", "kaldi"]
Logarithm = Literal["ln", "log10", "db", "none"]
Edges = Literal["mirror", "zeros"]
Fill = Literal["none", "zeros", "repeat", "repeat-whole"]

_Doubles = NDArray[np.float64]
_MOST_SAMPLES = 1 << 16
"""Largest window and transform, so that a file from a stranger cannot ask for any amount of memory."""
_LARGEST = 1e12
"""Largest number of a setting, far within float32."""
_FRAMES_AT_A_TIME = 256
"""Frames that are transformed together, few enough to stay in a core's cache."""
_BASES: dict[str, tuple[float, float]] = {"ln": (1.0, 1.0), "log10": (1.0, math.log(10)), "db": (10.0, math.log(10))}
"""Logarithm to (factor, divisor) of the natural logarithm; there is none of the power itself."""


@dataclass(frozen=True)
class Spectrogram(StrictConfig):
    """Settings of a mel spectrogram, each under the name of its operation, in the order in which they apply."""

    mel_bins: int
    """M."""
    window_length: int
    """W, samples of one frame."""
    hop_length: int
    """Samples from one frame to the next."""
    fft_length: int
    """Samples of the Fourier transform; a shorter window is padded with zeros at its end."""
    min_frequency: float
    max_frequency: float
    """Hz, the ends of the lowest and the highest mel filter."""
    mel_scale: MelScale
    """``slaney`` and ``htk`` filters are triangles over Hz, ``kaldi`` ones triangles over mel."""
    logarithm: Logarithm
    """``ln``, ``log10`` or ``db`` (ten times log10), of the power; ``none`` is the power itself."""
    floor: float = 1e-10
    """Smallest mel power, whose logarithm is silence."""
    area_norm: bool = False
    """Divide each filter by half its width in Hz, so that all have the same area."""
    symmetric_window: bool = False
    """Hann window that is symmetric, and not one period."""
    centered: bool = True
    """Center frame t at sample ``t * hop_length``, the sound extended at both ends; else frames lie inside it."""
    edges: Edges = "mirror"
    """Sound beyond the ends of centered frames: its mirror image, or ``zeros``."""
    remove_offset: bool = False
    """Subtract each frame's mean."""
    preemphasis: float = 0.0
    """p in ``x[i] - p * x[i - 1]`` inside each frame, of which the first sample is its own predecessor."""
    fill: Fill = "none"
    """Way in which a sound shorter than the encoder's length is brought to it: not at all, by ``zeros``, by ``repeat``
    (the last time cut), or by ``repeat-whole`` (as often as it fits, then zeros)."""
    drop_last_frame: bool = False
    dynamic_range: float | None = None
    """Raise what is further than this below the largest value, in units of the logarithm."""
    mean: float = 0.0
    std: float = 1.0
    """Subtracted from the logarithm, and what the difference is divided by."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("mel_scale", MelScale),
            ("logarithm", Logarithm),
            ("edges", Edges),
            ("fill", Fill),
        ):
            value = getattr(self, name)
            require(
                isinstance(value, str) and value in get_args(choices),
                f"A spectrogram's {name} is one of {', '.join(get_args(choices))}; got {value!r}.",
            )
        for field in dataclasses.fields(self):
            self._require_type(field.name, str(field.type))
        require(
            self.window_length <= self.fft_length,
            f"A spectrogram's fft_length is at least its window_length of {self.window_length}; got {self.fft_length}.",
        )
        require(
            0 <= self.min_frequency < self.max_frequency,
            f"A spectrogram's frequencies rise from 0 or more; got {self.min_frequency} to {self.max_frequency}.",
        )
        require(self.floor > 0, f"A spectrogram's floor is above 0; got {self.floor}.")
        require(self.std > 0, f"A spectrogram's std is above 0; got {self.std}.")
        require(
            self.dynamic_range is None or self.dynamic_range > 0,
            f"A spectrogram's dynamic_range is above 0 or null; got {self.dynamic_range}.",
        )
        require(
            self.centered or self.edges == "mirror",
            f"A spectrogram's frames reach beyond its ends only if they are centered; got edges {self.edges!r}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types; mirrored edges are left out, as artifacts had it before there were others."""
        values = super().to_dict()
        if self.edges == "mirror":
            del values["edges"]
        return values

    @property
    def shortest(self) -> int:
        """Samples that a sound must have at least."""
        if self.fill != "none":
            return 1
        return self._reach + 1 if self.centered else self.window_length

    @property
    def silence(self) -> float:
        """Value of every bin of a frame that hears nothing, if ``dynamic_range`` does not raise it."""
        if self.logarithm == "none":
            return (self.floor - self.mean) / self.std
        factor, divisor = _BASES[self.logarithm]
        return (math.log(self.floor) * factor / divisor - self.mean) / self.std

    def frames(self, samples: int) -> int:
        """Count the frames of a sound of so many samples, all of them real."""
        return (samples + 2 * self._half - self.window_length) // self.hop_length + 1 - self.drop_last_frame

    def compute(self, samples: Floats, sample_rate: int, length: int) -> NDArray[np.float32]:
        """Give the frames of a sound, except those that hear nothing but the silence it was filled with.

        Args:
            samples: (n,), finite, with `shortest` <= n <= length.
            sample_rate: samples per second.
            length: samples to which shorter sounds are filled; not read if ``fill`` is ``none``.

        Returns:
            float32 (T, M). What follows up to ``frames(length)`` is silence, the same for every bin.
        """
        sound = self._filled(np.asarray(samples, dtype=np.float64), length)
        total = len(sound) if self.fill == "none" else length
        count = self._heard(len(sound), total)
        padded = self._padded(sound, total, count)
        window, filters = _window(self.window_length, self.symmetric_window), _filters(self, sample_rate)
        framed = sliding_window_view(padded, self.window_length)[:: self.hop_length][:count]
        mel = np.empty((count, self.mel_bins))
        for start in range(0, count, _FRAMES_AT_A_TIME):
            frames = self._emphasized(framed[start : start + _FRAMES_AT_A_TIME])
            spectrum = np.fft.rfft(frames * window, self.fft_length)
            np.matmul(spectrum.real**2 + spectrum.imag**2, filters, out=mel[start : start + _FRAMES_AT_A_TIME])
        values = self._logarithm(np.maximum(mel, self.floor))
        if self.dynamic_range is not None:
            values = np.maximum(values, values.max() - self.dynamic_range)
        return ((values - self.mean) / self.std).astype(np.float32)

    def require_rate(self, sample_rate: int) -> None:
        """Refuse filters above half the sample rate, where there is nothing to hear.

        Raises:
            UsageError: the highest frequency is above it.
        """
        require(
            self.max_frequency <= sample_rate / 2,
            f"A spectrogram at {sample_rate} Hz has a max_frequency of at most half of it; got {self.max_frequency}.",
        )

    @property
    def _half(self) -> int:
        """Samples by which a sound is extended at each end."""
        return self.window_length // 2 if self.centered else 0

    @property
    def _reach(self) -> int:
        """Samples that the extension reads beside the first and the last one."""
        return self._half if self.edges == "mirror" else 0

    def _logarithm(self, power: _Doubles) -> _Doubles:
        """Take the logarithm of a power, of any shape."""
        if self.logarithm == "none":
            return power
        factor, divisor = _BASES[self.logarithm]
        return np.log(power) * (factor / divisor)

    def _require_type(self, name: str, annotation: str) -> None:
        value = getattr(self, name)
        if annotation == "int":
            require(
                type(value) is int and 1 <= value <= _MOST_SAMPLES,
                f"A spectrogram's {name} is an integer from 1 to {_MOST_SAMPLES}; got {value!r}.",
            )
        elif annotation == "bool":
            require(isinstance(value, bool), f"A spectrogram's {name} is true or false; got {value!r}.")
        elif annotation.startswith("float") and (value is not None or "None" not in annotation):
            require(
                fits(value, float) and abs(value) <= _LARGEST,
                f"A spectrogram's {name} is a number of at most {_LARGEST:g}; got {shown(value)}.",
            )

    def _filled(self, samples: _Doubles, length: int) -> _Doubles:
        """Repeat a sound; the zeros after it are left to `_padded`."""
        if self.fill == "repeat":
            return np.resize(samples, length)
        if self.fill == "repeat-whole":
            return np.tile(samples, max(1, length // len(samples)))
        return samples

    def _heard(self, sound: int, total: int) -> int:
        """Count the frames from the first that hold a sample of the sound, with its mirror image at the end."""
        every = self.frames(total)
        if total - sound <= self._reach:
            return every
        return min(every, (sound - 1 + self._half) // self.hop_length + 1)

    def _padded(self, sound: _Doubles, total: int, count: int) -> _Doubles:
        """Extend a sound by as many zeros as its frames need, and beyond the ends that they reach."""
        needed = (count - 1) * self.hop_length + self.window_length - self._half
        end = min(total, max(needed, len(sound), self._reach + 1))
        extended = np.zeros(end)
        extended[: len(sound)] = sound
        return np.pad(
            extended, (self._half, self._half if end == total else 0), "reflect" if self._reach else "constant"
        )

    def _emphasized(self, frames: _Doubles) -> _Doubles:
        """Remove the offset of frames (T, W), and raise their high frequencies."""
        if self.remove_offset:
            frames = frames - frames.mean(axis=1, keepdims=True)
        if not self.preemphasis:
            return frames
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        return frames - self.preemphasis * before


@lru_cache(maxsize=8)
def _window(length: int, symmetric: bool) -> _Doubles:
    """Hann window (W,), ``0.5 - 0.5 cos(2 pi i / period)``."""
    period = max(1, length - 1) if symmetric else length
    return _frozen(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / period))


@lru_cache(maxsize=8)
def _filters(settings: Spectrogram, sample_rate: int) -> _Doubles:
    """Mel filters (F, M): triangle m rises from point m to 1 at point m + 1, and falls to 0 at point m + 2.

    The M + 2 points are evenly spaced in mel.
    """
    lowest, highest = _to_mel(np.array([settings.min_frequency, settings.max_frequency]), settings.mel_scale)
    points: _Doubles = np.linspace(lowest, highest, settings.mel_bins + 2, dtype=np.float64)
    hertz = _to_hertz(points, settings.mel_scale)
    bins: _Doubles = np.arange(settings.fft_length // 2 + 1, dtype=np.float64)
    frequencies = bins * (sample_rate / settings.fft_length)
    if settings.mel_scale == "kaldi":
        frequencies = _to_mel(frequencies, settings.mel_scale)
    else:
        points = hertz
    steps = np.diff(points)
    rising = (frequencies[:, None] - points[:-2]) / steps[:-1]
    falling = (points[2:] - frequencies[:, None]) / steps[1:]
    filters = np.maximum(0, np.minimum(rising, falling))
    if settings.area_norm:
        filters *= 2 / (hertz[2:] - hertz[:-2])
    return _frozen(filters)


_SLANEY_LINEAR = 200 / 3
"""Hz for each mel below 1 kHz, where Slaney's scale is linear."""
_SLANEY_BREAK = 1000.0
_SLANEY_STEP = math.log(6.4) / 27
"""Growth of the logarithm of the frequency for each mel above it."""


def _to_mel(hertz: _Doubles, scale: MelScale) -> _Doubles:
    """Convert Hz to mel."""
    if scale == "slaney":
        above = np.log(np.maximum(hertz, _SLANEY_BREAK) / _SLANEY_BREAK) / _SLANEY_STEP
        return np.minimum(hertz, _SLANEY_BREAK) / _SLANEY_LINEAR + above
    factor = 2595 / math.log(10) if scale == "htk" else 1127
    return factor * np.log(1 + hertz / 700)


def _to_hertz(mel: _Doubles, scale: MelScale) -> _Doubles:
    """Convert mel to Hz."""
    if scale == "slaney":
        at_break = _SLANEY_BREAK / _SLANEY_LINEAR
        return np.minimum(mel, at_break) * _SLANEY_LINEAR * np.exp(_SLANEY_STEP * np.maximum(0, mel - at_break))
    factor = 2595 / math.log(10) if scale == "htk" else 1127
    return 700 * (np.exp(mel / factor) - 1)


def _frozen(array: _Doubles) -> _Doubles:
    """Make an array read-only, because it is shared by every call."""
    array.flags.writeable = False
    return array
