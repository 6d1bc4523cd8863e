"""Types of numpy arrays as signatures name them, and number formats of stored vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any type and shape."""
Arrays = Mapping[str, Array]
"""Arrays by name: the inputs or the outputs of a graph."""
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

BITS_PER_NUMBER = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
"""Number formats in which vectors are stored (see `fluxtalk.runtime.vectors`), to the bits of one number."""


def vector_bytes(dim: int, dtype: str) -> int:
    """Bytes of a stored vector of ``dim`` numbers; of binary, whole ones."""
    return -(-dim * BITS_PER_NUMBER[dtype] // 8)
