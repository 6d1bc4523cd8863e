"""`usearch`, met in one place: vectors on disk, memory-mapped, and the nearest of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import BackendError
from fluxtalk.runtime.vectors import Vectors

EXACT_UP_TO = 20_000
"""Vectors up to which a search looks at all of them; above, the graph of near neighbours may miss some."""
_KINDS = {"float32": ("cos", "f32"), "float16": ("cos", "f16"), "int8": ("cos", "i8"), "binary": ("hamming", "b1")}


class NearVectors:
    """Vectors of one of `fluxtalk.runtime.vectors.DTYPES`, numbered from 0, and the nearest of them by cosine.

    Raises:
        BackendError: usearch is not installed.
    """

    def __init__(self, index: Any, dtype: str) -> None:
        self._index = index
        self._dtype = dtype

    @classmethod
    def empty(cls, width: int, dtype: str) -> NearVectors:
        """None yet, each to have ``width`` numbers, or bytes in binary."""
        metric, scalar = _KINDS[dtype]
        # Cosines of integers need no normalisation, and usearch does none of its own here.
        return cls(_usearch().Index(ndim=_dims(width, dtype), metric=metric, dtype=scalar), dtype)

    @classmethod
    def view(cls, path: Path, dtype: str) -> NearVectors:
        """Those of a file, which stays on disk."""
        return cls(_usearch().Index.restore(str(path), view=True), dtype)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, vectors: Vectors) -> None:
        """Add vectors (count, width) of the index's own type; they take the next numbers."""
        start = len(self._index)
        self._index.add(np.arange(start, start + len(vectors)), vectors)

    def save(self, path: Path) -> None:
        """Write them to a file."""
        self._index.save(str(path))

    def search(
        self, query: Vectors, count: int, exact: bool | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest to one vector (width,) of the index's own type.

        Args:
            count: at most so many.
            exact: look at all vectors, or follow the graph; None decides by `EXACT_UP_TO`.

        Returns:
            their numbers and cosines, best first.
        """
        exact = len(self) <= EXACT_UP_TO if exact is None else exact
        matches = self._index.search(query, count, exact=exact)
        distances = np.asarray(matches.distances, dtype=np.float32)
        if self._dtype == "binary":
            distances = distances * (2 / _dims(len(query), self._dtype))
        return np.asarray(matches.keys, dtype=np.int64), 1 - distances


def _dims(width: int, dtype: str) -> int:
    return 8 * width if dtype == "binary" else width


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise BackendError("Searching needs usearch: pip install 'fluxtalk[search]'.") from None
    return usearch.index
