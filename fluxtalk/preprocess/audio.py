"""Sound: decode, mix to one channel, resample to the encoder's rate, cut, and normalize or make a spectrogram."""

from __future__ import annotations

import importlib
import io
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import BackendError, InputError, UsageError, reason
from fluxtalk.preprocess.base import pad_and_mask, require_keys
from fluxtalk.preprocess.spectrogram import Spectrogram

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
"""Suffixes by which files are found in folders and tables; others that soundfile reads can be named."""
_MAX_RATE = 1_000_000
_MARGIN_SECONDS = 0.1
"""Sound read beyond the cut, because resampling the last samples needs what follows them."""
_VARIANCE_FLOOR = 1e-7
"""Added to the variance of a sound before it is divided by its root, so that silence stays finite."""


@dataclass(frozen=True)
class AudioPreprocessor:
    """Sound (a path, bytes, or an array and its rate) to float32 samples (length,), in -1..1 for integer files.

    With ``features`` it becomes a log-mel spectrogram (frames, mel bins) instead.

    Files are read by `soundfile` (WAV, FLAC, Ogg and more), channels are averaged, and other rates resampled by `soxr`
    in its high quality. Both come with ``fluxtalk[audio]``; an array at the encoder's rate needs neither.
    """

    sample_rate: int
    """Samples per second that the encoder takes."""
    max_length: int
    """Samples kept, from the beginning."""
    normalize: bool = False
    """Bring the samples that are kept to mean 0 and variance 1, as wav2vec 2.0, HuBERT and WavLM expect them."""
    features: Spectrogram | None = None
    """Spectrogram that the encoder takes; None if it takes samples."""

    kind = "audio"
    fixed_length = False

    def __post_init__(self) -> None:
        for name, largest in (("sample_rate", _MAX_RATE), ("max_length", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (largest and value > largest):
                limit = f"from 1 to {largest}" if largest else "of at least 1"
                raise UsageError(f"Audio preprocessing needs a {name} {limit}; got {value!r}.")
        if not isinstance(self.normalize, bool):
            raise UsageError(f"Audio preprocessing needs normalize to be true or false; got {self.normalize!r}.")
        if self.features is None:
            return
        if self.normalize:
            raise UsageError(
                "Audio preprocessing normalizes samples or makes a spectrogram; give normalize or features."
            )
        self.features.require_rate(self.sample_rate)
        if self.max_length < self.features.shortest or self.features.frames(self.max_length) < 1:
            raise UsageError(
                f"A spectrogram with windows of {self.features.window_length} samples needs a max_length that holds a "
                f"frame; got {self.max_length}."
            )

    @property
    def input_names(self) -> tuple[str, str]:
        """``samples`` or ``spectrogram``, and ``mask``."""
        return ("samples" if self.features is None else "spectrogram", "mask")

    @property
    def longest(self) -> int:
        """Length of the longest prepared item: samples, or frames of a spectrogram."""
        return self.max_length if self.features is None else self.features.frames(self.max_length)

    @property
    def hop_length(self) -> int:
        """Samples for each position of a prepared item."""
        return 1 if self.features is None else self.features.hop_length

    def prepare(self, item: Any) -> Array:
        """Decode one sound to float32 (length,), or with ``features`` to (frames, mel bins), at most `longest` long.

        Args:
            item: a path; the bytes of a file; or ``(array, rate)``, with int16, int32 or floating samples (length,) or
                (length, channels), of which integers are divided by their largest magnitude. With ``features`` also a
                spectrogram that was prepared already: an array (frames, mel bins) without a rate.

        Raises:
            InputError: it is missing, cannot be decoded, is empty or shorter than a frame, or holds NaN or infinity.
            BackendError: a library that it needs is missing.
        """
        if self.features is not None and isinstance(item, np.ndarray):
            return self._prepared(item, self.features)
        samples, rate, name = self._from_array(item) if isinstance(item, tuple | list) else self._read(item)
        if not len(samples):
            raise InputError(f"{name} has no samples; leave the item out.")
        mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
        if rate != self.sample_rate:
            mono = _import("soxr").resample(mono, rate, self.sample_rate, quality="HQ")
        mono = np.ascontiguousarray(mono[: self.max_length], dtype=np.float32)
        if not len(mono):
            raise InputError(f"{name} is shorter than one sample at {self.sample_rate} Hz; leave the item out.")
        if not np.isfinite(mono).all():
            raise InputError(f"{name} holds NaN or infinity; record or decode it again.")
        if self.features is None:
            return _normalized(mono) if self.normalize else mono
        if len(mono) < self.features.shortest:
            raise InputError(
                f"{name} has {len(mono)} samples at {self.sample_rate} Hz, and its spectrogram needs "
                f"{self.features.shortest}; leave the item out."
            )
        return self.features.compute(mono, self.sample_rate, self.max_length)

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad to float32 ``samples`` (batch, length) or ``spectrogram`` (batch, length, mel bins), and ``mask``.

        The mask is bool (batch, length), True for samples of a sound and for frames that hear it.
        """
        values, mask = pad_and_mask(prepared, np.float32)
        return dict(zip(self.input_names, (values, mask), strict=True))

    def length(self, prepared: Array) -> int:
        """Number of samples or frames."""
        return int(prepared.shape[0])

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings, and no files; what is not used is left out, as artifacts had it before it existed."""
        settings: dict[str, Any] = {
            "kind": self.kind,
            "sample_rate": self.sample_rate,
            "max_length": self.max_length,
        }
        if self.normalize:
            settings["normalize"] = True
        if self.features is not None:
            settings["features"] = self.features.to_dict()
        return settings, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> AudioPreprocessor:
        """Read back what `to_parts` gave."""
        require_keys(config, {"sample_rate", "max_length", "normalize", "features"}, "audio")
        features = config.get("features")
        return cls(
            config["sample_rate"],
            config["max_length"],
            config.get("normalize", False),
            None if features is None else Spectrogram.from_dict(features),
        )

    def _prepared(self, array: Array, features: Spectrogram) -> Array:
        """Check a spectrogram that was prepared by someone else."""
        if array.ndim != 2 or array.shape[1] != features.mel_bins or not 1 <= len(array) <= self.longest:
            raise InputError(
                f"A spectrogram must have shape (frames, {features.mel_bins}) with 1 to {self.longest} frames; got "
                f"{array.shape}. A sound array comes with its rate: (array, rate)."
            )
        if array.dtype.kind != "f":
            raise InputError(f"A spectrogram must hold floating numbers; got {array.dtype}.")
        with np.errstate(over="ignore"):  # infinity is refused in a sentence
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError("A spectrogram holds NaN or infinity; compute it again.")
        return array

    def _frames(self, rate: int) -> int:
        """Largest number of samples at ``rate`` that the cut needs."""
        return math.ceil(self.max_length * rate / self.sample_rate) + math.ceil(_MARGIN_SECONDS * rate)

    def _from_array(self, item: Sequence[Any]) -> tuple[Array, int, str]:
        name = "A sound array"
        if len(item) != 2 or not isinstance(item[0], np.ndarray):
            raise InputError("A sound is a path, bytes, or an array and its rate: (array, rate).")
        array, rate = item
        if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 1 <= rate <= _MAX_RATE:
            raise InputError(f"{name} comes with its rate in samples per second, 1 to {_MAX_RATE}; got {rate!r}.")
        if array.ndim not in (1, 2) or array.dtype.kind not in "fi" or (array.dtype.kind == "i" and array.itemsize < 2):
            raise InputError(
                f"{name} holds int16, int32 or floating samples (length,) or (length, channels); "
                f"got {array.dtype} {array.shape}."
            )
        if array.ndim == 2 and not 1 <= array.shape[1] <= array.shape[0]:
            raise InputError(f"{name} is (length, channels), longer than it has channels; got {array.shape}.")
        cut = array[: self._frames(int(rate))]
        if array.dtype.kind == "i":
            cut = cut / -float(np.iinfo(array.dtype).min)
        return cut.astype(np.float32).reshape(len(cut), -1) if len(cut) else np.empty((0, 1)), int(rate), name

    def _read(self, item: Any) -> tuple[Array, int, str]:
        if isinstance(item, bytes | bytearray | memoryview):
            name = f"The sound in these {len(item)} bytes"
        elif isinstance(item, str | Path):
            name = f"The sound {item}"
        else:
            raise InputError(f"A sound is a path, bytes, or an array and its rate; got {type(item).__name__}.")
        soundfile = _import("soundfile")
        try:
            with ExitStack() as opened:
                source = opened.enter_context(open(item, "rb")) if isinstance(item, str | Path) else io.BytesIO(item)
                if _is_cut_off(source):
                    raise InputError(f"{name} is cut off: it is shorter than its header says; copy it again.")
                file = opened.enter_context(soundfile.SoundFile(source))
                rate = int(file.samplerate)
                if not 1 <= rate <= _MAX_RATE:
                    raise InputError(f"{name} has {rate} samples per second; at most {_MAX_RATE} are taken.")
                return file.read(self._frames(rate), dtype="float32", always_2d=True), rate, name
        except FileNotFoundError:
            raise InputError(f"{name} does not exist; check the path.") from None
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # soundfile's own is a RuntimeError
            why = str(getattr(error, "error_string", "")).rstrip(".") or reason(error)
            raise InputError(f"{name} cannot be read ({why}); give a complete WAV, FLAC or Ogg file.") from None


def _normalized(samples: Array) -> Array:
    """Bring samples (length,) to mean 0 and variance 1, of a sound alone: padding never takes part."""
    wide = samples.astype(np.float64)
    normalized: Array = (wide - wide.mean()) / np.sqrt(wide.var() + _VARIANCE_FLOOR)
    return normalized.astype(np.float32)


def _is_cut_off(file: BinaryIO) -> bool:
    """True for a WAV file that is shorter than its header says, of which soundfile would read the beginning."""
    head = file.read(8)
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    size = int.from_bytes(head[4:], "little")
    # 0 and the largest number mean that it was written to a pipe, before its size was known.
    return head[:4] == b"RIFF" and size not in (0, 0xFFFFFFFF) and size + 8 > end


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile lacks its C library
        raise BackendError(
            f"Sound needs {module}, which cannot be imported ({reason(error)}): pip install 'fluxtalk[audio]'."
        ) from None
