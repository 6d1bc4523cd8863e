"""Images: decode, resize, leave as uint8. Normalization happens inside the graph."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess.base import Array, require_keys

_MODES = {1: "L", 3: "RGB"}
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_PIXELS = 100_000_000
MAX_SIDE = 50_000


@dataclass(frozen=True)
class ImagePreprocessor:
    """Raw images (path, bytes, PIL image or array) to uint8 (height, width, channels).

    The shorter side is resized to fit and the center cropped (``resize="crop"``), or both sides are
    stretched (``resize="squash"``).
    """

    height: int
    width: int
    channels: int = 3
    resize: str = "crop"
    filter: str = "bicubic"
    mean: tuple[float, ...] = (0.5,)
    """Per channel, or one for all; subtracted from pixels scaled to 0..1 inside the graph."""
    std: tuple[float, ...] = (0.5,)
    """Per channel, or one for all; divides inside the graph."""

    kind = "image"
    input_names = ("pixels",)

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise UsageError(f"Image preprocessing takes 1 or 3 channels; got {self.channels}.")
        if self.resize not in ("crop", "squash"):
            raise UsageError(f"Image preprocessing resizes by crop or squash; got {self.resize!r}.")
        if self.filter not in _FILTERS:
            raise UsageError(f"Image preprocessing filters by {', '.join(_FILTERS)}; got {self.filter!r}.")
        if self.height < 1 or self.width < 1:
            raise UsageError(f"Image preprocessing needs a positive size; got {self.height} x {self.width}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise UsageError(
                    f"Image preprocessing needs 1 or {self.channels} values of {name}; got {len(getattr(self, name))}."
                )

    def prepare(self, item: Any) -> Array:
        """Decode one image to uint8 (height, width, channels).

        Args:
            item: a path, encoded bytes, a PIL image, or a uint8 array (height, width[, channels]).

        Raises:
            InputError: it is missing, is no image, has 32 bits per channel, is larger than 100 megapixels, or
                longer than 50,000 pixels on a side.
        """
        image = _from_array(item) if isinstance(item, np.ndarray) else _open(item)
        wanted = (self.height, self.width)
        if image.mode != _MODES[self.channels]:
            image = _eight_bit(image).convert(_MODES[self.channels])
        if (image.height, image.width) != wanted:
            image = self._resized(image)
        return np.asarray(image).reshape(self.height, self.width, self.channels)

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Stack to ``pixels`` uint8 (batch, height, width, channels)."""
        return {"pixels": np.stack(prepared)}

    def length(self, prepared: Array) -> int:
        """1: every prepared image costs the same."""
        return 1

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The settings; there are no files."""
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> ImagePreprocessor:
        """Read back what `to_parts` gave."""
        require_keys(config, set(cls.__dataclass_fields__), "image")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != "kind"}
        return cls(**values)

    def _resized(self, image: Image.Image) -> Image.Image:
        filter_ = _FILTERS[self.filter]
        if self.resize == "squash":
            return image.resize((self.width, self.height), filter_)
        return ImageOps.fit(image, (self.width, self.height), filter_)


def _from_array(array: Array) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            "An image array must be uint8 (height, width) or (height, width, channels); "
            f"got {array.dtype} {array.shape}."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise InputError(f"An image array has 1, 3 or 4 channels in its last dimension; got shape {array.shape}.")
    return Image.fromarray(array)


def _open(item: Any) -> Image.Image:
    name = _name(item)
    try:
        with contextlib.ExitStack() as opened:
            if isinstance(item, Image.Image):
                # It may not be decoded yet, nor turned as its camera says: the same picture as its file gives.
                image = item
            elif isinstance(item, str | Path):
                image = Image.open(opened.enter_context(open(item, "rb")))
            else:
                image = Image.open(io.BytesIO(item))
            # The header alone tells the size: a decompression bomb is refused before it is decoded.
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise InputError(
                    f"The image {name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken, "
                    f"and {MAX_SIDE:,} on a side: scale it down."
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"The image {name} does not exist; check the path.") from None
    except InputError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise InputError(
            f"The image {name} cannot be read ({_reason(error)}); give a complete file in a format that Pillow reads."
        ) from None


def _name(item: Any) -> str:
    """What to call an image in a sentence."""
    if isinstance(item, bytes | bytearray | memoryview):
        return f"these {len(item)} bytes"
    if isinstance(item, str | Path):
        return str(item)
    if isinstance(item, Image.Image):
        return str(getattr(item, "filename", "")) or "given"
    raise InputError(f"An image is a path, bytes, a PIL image or a uint8 array; got {type(item).__name__}.")


def _eight_bit(image: Image.Image) -> Image.Image:
    """An image whose mode Pillow converts as people mean it.

    Raises:
        InputError: it has 32 bits per channel, of which nothing says what is white.
    """
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255, which makes nearly every picture white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"An image has 8 or 16 bits per channel; this one has mode {image.mode!r}: scale it to 8 bits."
        )
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format"
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__
