"""Images: decode, resize, keep as uint8. Normalization is inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess.base import require_keys
from fluxtalk.preprocess.image_files import eight_bits, read_image

_MODES = {1: "L", 3: "RGB"}
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


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
            item: as for `read_image`, or a uint8 array (height, width[, channels]).

        Raises:
            InputError: as for `read_image`; or the array is malformed, or has 32 bits per channel.
        """
        image = _from_array(item) if isinstance(item, np.ndarray) else read_image(item)
        wanted = (self.height, self.width)
        if image.mode != _MODES[self.channels]:
            image = _convertible(image).convert(_MODES[self.channels])
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
        """Settings, and no files."""
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


def _convertible(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow converts without clipping or guessing.

    Raises:
        InputError: it has 32 bits per channel, and nothing tells which value is white.
    """
    image = eight_bits(image)
    if image.mode in ("I", "F"):
        raise InputError(
            f"An image has 8 or 16 bits per channel; this one has mode {image.mode!r}: scale it to 8 bits."
        )
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
