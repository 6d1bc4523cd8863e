"""Precomputed features: arrays or `.npy` files, passed through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.errors import InputError
from fluxtalk.preprocess.base import Array, pad_and_mask, require_keys


@dataclass(frozen=True)
class FeaturesPreprocessor:
    """Feature sequences (array or path of a `.npy` file) to float32 (length, dim)."""

    dim: int

    kind = "features"
    input_names = ("features", "mask")

    def prepare(self, item: Any) -> Array:
        """Read one feature sequence; a single vector (dim,) counts as a sequence of one.

        A float32 array that was given is not copied.

        Raises:
            InputError: it is missing, no array of floats, of another dimension, empty, or not finite.
        """
        array, name = read_array(item)
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != self.dim or not array.shape[0]:
            raise InputError(f"{name} must have shape (length, {self.dim}) with length at least 1; got {array.shape}.")
        # bfloat16, as safetensors reads it, is a type of ml_dtypes that numpy takes for raw bytes.
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise InputError(f"{name} must hold numbers; got {array.dtype}.")
        # Read-only memory is copied: PyTorch takes none.
        array = array.astype(np.float32, copy=not array.flags.writeable)
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; compute it again.")
        return array

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad to ``features`` float32 (batch, length, dim) and ``mask`` bool (batch, length)."""
        features, mask = pad_and_mask(prepared, np.float32)
        return {"features": features, "mask": mask}

    def length(self, prepared: Array) -> int:
        """The number of feature vectors."""
        return int(prepared.shape[0])

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The settings; there are no files."""
        return {"kind": self.kind, **asdict(self)}, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> FeaturesPreprocessor:
        """Read back what `to_parts` gave."""
        require_keys(config, {"dim"}, "features")
        return cls(config["dim"])


def read_array(item: Any) -> tuple[Array, str]:
    """The array of a feature item, of whatever shape and type it is, and what to call it in a sentence.

    Args:
        item: an array, or the path of a `.npy` file.

    Raises:
        InputError: it is neither, or cannot be read.
    """
    if isinstance(item, np.ndarray):
        return item, "A feature array"
    if not isinstance(item, str | Path):
        raise InputError(f"Features are an array or the path of a .npy file; got {type(item).__name__}.")
    name = f"The features {item}"
    try:
        return np.load(item, allow_pickle=False), name
    except FileNotFoundError:
        raise InputError(f"{name} do not exist; check the path.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{name} cannot be read ({error}); save them with numpy.save.") from None
