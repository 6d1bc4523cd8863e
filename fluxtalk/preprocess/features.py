"""Precomputed features: arrays or `.npy` files, passed through."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError, UsageError, reason
from fluxtalk.field_types import shown
from fluxtalk.preprocess.base import pad_and_mask, require_keys


@dataclass(frozen=True)
class FeaturesPreprocessor:
    """Feature sequences (array or path of a `.npy` file) to float32 (length, dim)."""

    dim: int

    kind = "features"
    fixed_length = False
    input_names = ("features", "mask")

    def __post_init__(self) -> None:
        if type(self.dim) is not int or not 1 <= self.dim < 1 << 31:
            raise UsageError(f"The dim of features is a positive integer of at most 31 bits; got {shown(self.dim)}.")

    def prepare(self, item: Any) -> Array:
        """Read one feature sequence; a single vector (dim,) counts as a sequence of one.

        A float32 array that was given is not copied.

        Raises:
            InputError: it is missing, not an array of numbers, of another dimension, empty, or not finite.
        """
        array, name = read_array(item)
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != self.dim or not array.shape[0]:
            raise InputError(f"{name} must have shape (length, {self.dim}) with length at least 1; got {array.shape}.")
        # safetensors gives bfloat16 as a type of ml_dtypes, whose kind numpy reports as raw bytes.
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise InputError(f"{name} must hold numbers; got {array.dtype}.")
        # Read-only memory is copied, because PyTorch refuses it.
        with np.errstate(over="ignore"):  # infinity is refused in a sentence
            array = array.astype(np.float32, copy=not array.flags.writeable)
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; compute it again.")
        return array

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad to ``features`` float32 (batch, length, dim) and ``mask`` bool (batch, length)."""
        features, mask = pad_and_mask(prepared, np.float32)
        return {"features": features, "mask": mask}

    def length(self, prepared: Array) -> int:
        """Number of feature vectors."""
        return int(prepared.shape[0])

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings, and no files."""
        return {"kind": self.kind, **asdict(self)}, {}

    @classmethod
    def from_parts(cls, config: dict[str, Any], files: dict[str, str]) -> FeaturesPreprocessor:
        """Read back what `to_parts` gave."""
        require_keys(config, {"dim"}, "features")
        return cls(config["dim"])


def read_array(item: Any) -> tuple[Array, str]:
    """Read the array of a feature item, of any shape and type, and its name in sentences.

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
        with open(item, "rb") as file:
            return read_npy(file, os.fstat(file.fileno()).st_size), name
    except FileNotFoundError:
        raise InputError(f"{name} do not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({reason(error)}); save them with numpy.save.") from None


def read_npy(file: io.BufferedIOBase, size: int) -> Array:
    """Read a `.npy` file from a stranger: memory is allocated only after its size was compared with the header's.

    Args:
        file: open, at its beginning.
        size: bytes of the file.

    Raises:
        ValueError: it is not a `.npy` file, holds objects, or has another size than its header says.
        OSError: it cannot be read.
    """
    shape, fortran, dtype = _npy_header(file)
    count = math.prod(shape)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"it holds {str(dtype)[:40]}, and not numbers")
    if min(shape, default=0) < 0 or count * dtype.itemsize != size - file.tell():
        raise ValueError("its data are more or fewer bytes than its header says")
    values = np.empty(count, dtype)
    if file.readinto(values.view(np.uint8).data) != values.nbytes:
        raise ValueError("it was cut off while it was read")
    try:
        return values.reshape(shape, order="F" if fortran else "C")
    except OverflowError:  # a shape with a 0 has no data, however large its other numbers
        raise ValueError("its shape is larger than any array's") from None


def _npy_header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, Fortran order and type from the header.

    Raises:
        ValueError: there is no header of a version for arrays of numbers.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except OSError:
        raise
    except Exception:  # the header is written in Python, and what parses it raises almost anything
        raise ValueError("it has no header of a .npy file of numbers") from None
