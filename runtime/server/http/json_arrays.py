"""Lists of JSON to arrays: count, depth and type are checked before numpy sees them.

numpy takes anything: of strings, it makes an array as wide as the longest of them, which turns a small body into
gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""Kind of a numpy type to the Python types that JSON may hold for it: an integer is a float, too."""
_CHUNK_ELEMENTS = 1 << 14
"""Numbers converted in one call, during which no other thread runs."""


def flattened(raw: Any, shape: Sequence[int]) -> list[Any] | None:
    """Flatten lists that are nested in a shape, or take one flat list of as many; None if it is neither.

    The caller checks the elements: in a flat list, some may be lists.
    """
    if isinstance(raw, list) and len(raw) == math.prod(shape) and not (raw and isinstance(raw[0], list)):
        return raw
    found = [raw]
    for size in shape:
        if not all(isinstance(row, list) and len(row) == size for row in found):
            return None
        found = [element for row in found for element in row]
    return found


def array_of_lists(raw: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert lists to an array of a shape and type.

    Args:
        raw: lists nested in the shape, or one flat list of as many numbers.

    Raises:
        ValueError: it has another shape, or holds something other than numbers of that type. A float too large becomes
            infinity.
    """
    elements = flattened(raw, shape)
    if elements is None:
        raise ValueError("another shape")
    array = np.empty(len(elements), dtype)
    for begin in range(0, len(elements), _CHUNK_ELEMENTS):
        part = elements[begin : begin + _CHUNK_ELEMENTS]
        if not _TYPES[dtype.kind].issuperset(map(type, part)):
            raise ValueError("another type")
        array[begin : begin + _CHUNK_ELEMENTS] = _converted(part, dtype)
    return array.reshape(shape)


def _converted(numbers: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        with np.errstate(over="ignore"):
            if dtype.kind not in "iu":
                return np.array(numbers, dtype=dtype)
        limits = np.iinfo(dtype)
        # Before numpy 2, an integer that does not fit was wrapped around.
        if not limits.min <= min(numbers) <= max(numbers) <= limits.max:
            raise ValueError("out of range")
        return np.array(numbers, dtype=dtype)
    except OverflowError:  # an integer beyond every float
        raise ValueError("out of range") from None
