"""`TensorSpec`: an input of a graph, as a bundle's manifest describes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluxtalk.config import StrictConfig, require
from fluxtalk.errors import UsageError

AXES = ("batch", "length", "k")
"""Axes of a graph's inputs whose size may vary."""


@dataclass(frozen=True)
class TensorSpec(StrictConfig):
    """One input of a graph."""

    name: str
    dtype: str
    """Type by numpy's name, such as ``uint8``."""
    shape: list[str | int]
    """Sizes by dimension; the axis (``batch``, ``length`` or ``k``) for one that may vary."""

    def __post_init__(self) -> None:
        try:
            np.dtype(self.dtype)
        except TypeError:
            raise UsageError(f"dtype is a type of numpy's; got {self.dtype!r}") from None
        require(
            all(size in AXES or type(size) is int for size in self.shape),
            f"shape holds {', '.join(AXES)} and integers; got {self.shape!r}",
        )

    @property
    def datatype(self) -> str:
        """The type as KServe and Triton name it, such as ``FP32``."""
        return self.dtype.upper().replace("FLOAT", "FP")
