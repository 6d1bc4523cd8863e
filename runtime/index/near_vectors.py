"""`usearch`, met in one place: vectors on disk, memory-mapped, and the nearest of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import BackendError
from fluxtalk.runtime.vectors import quantize

EXACT_UP_TO = 20_000
"""Vectors up to which a search looks at all of them; above, the graph of near neighbors may miss some."""
_KINDS = {"float32": ("cos", "f32"), "float16": ("cos", "f16"), "int8": ("cos", "i8"), "binary": ("hamming", "b1")}

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class NearVectors:
    """Vectors, numbered from 0, and the nearest of them by cosine. Thread-safe for search.

    Args:
        index: of usearch.
        dtype: one of `fluxtalk.runtime.vectors.DTYPES`, in which the vectors are kept and compared.
    """

    def __init__(self, index: Any, dtype: str) -> None:
        self._index = index
        self._dtype = dtype

    @classmethod
    def empty(cls, dim: int, dtype: str) -> NearVectors:
        """None yet.

        Raises:
            BackendError: usearch is not installed.
        """
        metric, scalar = _KINDS[dtype]
        return cls(_usearch().Index(ndim=_padded(dim, dtype), metric=metric, dtype=scalar), dtype)

    @classmethod
    def view(cls, path: Path, dtype: str) -> NearVectors:
        """Those of a file, which stays on disk.

        Raises:
            BackendError: usearch is not installed.
        """
        return cls(_usearch().Index.restore(str(path), view=True), dtype)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, vectors: Floats) -> None:
        """Add vectors (count, dim), which take the next numbers."""
        start = len(self._index)
        self._index.add(np.arange(start, start + len(vectors)), quantize(vectors, self._dtype))

    def save(self, path: Path) -> None:
        """Write them to a file."""
        self._index.save(str(path))

    def search(self, query: Floats, count: int, exact: bool | None = None) -> tuple[Numbers, Floats]:
        """The nearest to one vector (dim,).

        Args:
            count: at most so many.
            exact: look at all vectors, or follow the graph; None decides by `EXACT_UP_TO`.

        Returns:
            their numbers and similarities as of `fluxtalk.runtime.vectors.similarity`, best first.
        """
        exact = len(self) <= EXACT_UP_TO if exact is None else exact
        matches = self._index.search(quantize(query, self._dtype), count, exact=exact)
        distances = np.asarray(matches.distances, dtype=np.float32)
        if self._dtype == "binary":
            distances = distances * np.float32(2 / _padded(len(query), self._dtype))
        return np.asarray(matches.keys).astype(np.int64), 1 - distances


def _padded(dim: int, dtype: str) -> int:
    """Bits come in whole bytes."""
    return -(-dim // 8) * 8 if dtype == "binary" else dim


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise BackendError("Searching needs usearch: pip install 'fluxtalk[search]'.") from None
    return usearch.index
