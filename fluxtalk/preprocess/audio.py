"""Sound: decode, mix to one channel, resample to the encoder's rate, cut."""

from __future__ import annotations

import importlib
import io
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import BackendError, InputError, UsageError, reason
from fluxtalk.preprocess.base import pad_and_mask, require_keys

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
"""Suffixes by which files are found in folders and tables; others that soundfile reads can be named."""
_MAX_RATE = 1_000_000
_MARGIN_SECONDS = 0.1
"""Sound read beyond the cut, because resampling the last samples needs what follows them."""


@dataclass(frozen=True)
class AudioPreprocessor:
    """Sound (a path, bytes, or an array and its rate) to float32 samples (length,), in -1..1 for integer files.

    Files are read by `soundfile` (WAV, FLAC, Ogg and more), channels are averaged, and other rates resampled by `soxr`
    in its high quality. Both come with ``fluxtalk[audio]``; an array at the encoder's rate needs neither.
    """

    sample_rate: int
    """Samples per second that the encoder takes."""
    max_length: int
    """Samples kept, from the beginning."""

    kind = "audio"
    input_names = ("samples", "mask")

    def __post_init__(self) -> None:
        for name, largest in (("sample_rate", _MAX_RATE), ("max_length", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (largest and value > largest):
                limit = f"from 1 to {largest}" if largest else "of at least 1"
                raise UsageError(f"Audio preprocessing needs a {name} {limit}; got {value!r}.")

    def prepare(self, item: Any) -> Array:
        """Decode one sound to float32 (length,), at most `max_length` long.

        Args:
            item: a path; the bytes of a file; or ``(array, rate)``, with int16, int32 or floating samples (length,) or
                (length, channels), of which integers are divided by their largest magnitude.

        Raises:
            InputError: it is missing, cannot be decoded, is empty, or holds NaN or infinity.
            BackendError: a library that it needs is missing.
        """
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
        return mono

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad to ``samples`` float32 (batch, length) and ``mask`` bool (batch, length)."""
        samples, mask = pad_and_mask(prepared, np.float32)
        return {"samples": samples, "mask": mask}

    def length(self, prepared: Array) -> int:
        """Number of samples."""
        return int(prepared.shape[0])

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings, and no files."""
        return {"kind": self.kind, **asdict(self)}, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> AudioPreprocessor:
        """Read back what `to_parts` gave."""
        require_keys(config, {"sample_rate", "max_length"}, "audio")
        return cls(config["sample_rate"], config["max_length"])

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
