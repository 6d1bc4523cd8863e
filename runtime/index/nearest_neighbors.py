"""Nearest neighbors by `usearch`, which nothing else imports: vectors on disk, memory-mapped."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Floats, Integers
from fluxtalk.artifacts.usearch_file import validate_usearch_file
from fluxtalk.errors import BackendError, IndexFileError, UsageError, reason
from fluxtalk.runtime.vectors import quantize

EXACT_UP_TO = 20_000
"""Number of vectors up to which a search compares with all; above, the graph of near neighbors may miss some."""
EF_SEARCH = (64, 128, 256, 512, 1024, 2048)
"""Candidates that a search of the graph may hold (`ef_search` of HNSW); the first is usearch's own number."""
WANTED_SHARE = 0.95
"""Share of the nearest ten that a search of the graph is to find."""
_NEAREST = 10
NOT_FINITE = "The index holds vectors whose numbers are not finite; build it again."
_KINDS = {"float32": ("cos", "f32"), "float16": ("cos", "f16"), "int8": ("cos", "i8"), "binary": ("hamming", "b1")}


class NearestNeighbors:
    """Vectors, numbered from 0, of which a search finds the nearest by cosine. Thread-safe for search.

    Args:
        index: a `usearch.index.Index`.
        dtype: number format in which vectors are stored and compared, one of `fluxtalk.runtime.vectors.DTYPES`.
    """

    def __init__(self, index: Any, dtype: str) -> None:
        self._index = index
        self._dtype = dtype

    @classmethod
    def empty(cls, dim: int, dtype: str) -> NearestNeighbors:
        """Start without a vector.

        Raises:
            BackendError: usearch is not installed.
        """
        metric, scalar = _KINDS[dtype]
        return cls(_usearch().Index(ndim=_padded(dim, dtype), metric=metric, dtype=scalar), dtype)

    @classmethod
    def view(cls, path: Path, dim: int, dtype: str, items: int, ef_search: int = 0) -> NearestNeighbors:
        """Open a file, which stays on disk.

        Args:
            ef_search: what `choose_ef_search` chose when it was built; 0 is usearch's own.

        Raises:
            BackendError: usearch is not installed.
            IndexFileError: the file is not one of so many such vectors.
        """
        validate_usearch_file(path, dim, dtype, items)
        index = _usearch().Index.restore(str(path), view=True)
        if ef_search:
            index.expansion_search = ef_search
        return cls(index, dtype)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ef_search(self) -> int:
        """Candidates that a search of the graph holds."""
        return int(self._index.expansion_search)

    def add(self, vectors: Floats) -> None:
        """Add vectors (count, dim), which take the next numbers."""
        start = len(self._index)
        self._index.add(np.arange(start, start + len(vectors)), quantize(vectors, self._dtype))

    def choose_ef_search(self, queries: Floats) -> tuple[int, float]:
        """Search the graph as widely as queries need that are like those to come, and no wider.

        Queries of another modality may lie far from every item: among many that are much alike, usearch's own number
        lost a third of their nearest, where it found all neighbors of an item itself (docs/LOG.md).

        Args:
            queries: (count, dim).

        Returns:
            The smallest of `EF_SEARCH` with which the graph finds `WANTED_SHARE` of the nearest ten that comparing with
            all vectors finds, or the largest; and the share that it finds. (0, 1.0) if there is no query, or if a
            search compares with all vectors anyway.
        """
        if not len(queries) or len(self) <= EXACT_UP_TO:
            return 0, 1.0
        asked = quantize(queries, self._dtype)
        wanted = self._index.search(asked, _NEAREST, exact=True).keys
        ef_search, share = 0, 0.0
        for ef_search in EF_SEARCH:
            self._index.expansion_search = ef_search
            found = self._index.search(asked, _NEAREST).keys
            share = float(np.mean([np.isin(right, near).mean() for right, near in zip(wanted, found, strict=True)]))
            if share >= WANTED_SHARE:
                break
        return ef_search, share

    def vectors(self, rows: range) -> Floats:
        """Read vectors by their numbers, (count, dim), as they are stored; in float32 or float16 only.

        Raises:
            IndexFileError: a number has no vector.
        """
        found = self._index.get(np.arange(rows.start, rows.stop))
        if any(vector is None for vector in found):
            raise IndexFileError("The index does not number its vectors from 0; build it again.")
        return np.stack(found).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write all vectors, and the graph of near neighbors, to a file.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        try:
            self._index.save(str(path))
        except RuntimeError as error:  # the library does not tell the system's reason
            raise OSError(errno.EIO, f"It could not be written whole ({reason(error)})") from error

    def search(self, query: Floats, count: int, exact: bool | None = None) -> tuple[Integers, Floats]:
        """Find the vectors nearest to a query.

        Args:
            query: (dim,).
            count: largest number of answers.
            exact: compare with all vectors, or follow the graph; None decides by `EXACT_UP_TO`.

        Returns:
            Numbers and similarities (see `fluxtalk.runtime.vectors.similarity`), best first.

        Raises:
            UsageError: the query is not finite.
            IndexFileError: a vector that was found is not.
        """
        exact = len(self) <= EXACT_UP_TO if exact is None else exact
        if not np.isfinite(query).all():
            raise UsageError("A query is a vector of finite numbers; this one has others.")
        matches = self._index.search(quantize(query, self._dtype), count, exact=exact)
        distances = np.asarray(matches.distances, dtype=np.float32)
        if self._dtype == "binary":
            distances = distances * np.float32(2 / _padded(len(query), self._dtype))
        if not np.isfinite(distances).all():
            raise IndexFileError(NOT_FINITE)
        return np.asarray(matches.keys).astype(np.int64), 1 - distances


def _padded(dim: int, dtype: str) -> int:
    """``dim``, rounded up to whole bytes of bits."""
    return -(-dim // 8) * 8 if dtype == "binary" else dim


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise BackendError("Searching needs usearch: pip install 'fluxtalk[search]'.") from None
    return usearch.index
