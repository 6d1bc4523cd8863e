"""Flags of queries that found what they asked for, small enough to keep for every run."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def packed(flags: NDArray[np.bool_]) -> str:
    """Write flags as base64 of their bits, eight to a byte."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """Read the first ``count`` flags of `packed`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count).astype(bool)
