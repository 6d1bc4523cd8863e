"""Coarse to fine with nested tokens: the first token finds candidates, MaxSim over all of them puts these in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fluxtalk.errors import IndexFileError, reason
from fluxtalk.runtime.index.near_vectors import Floats, NearVectors, Numbers
from fluxtalk.runtime.vectors import Vectors, directions, maxsim, quantize

MIN_CANDIDATES = 100
"""To put a hundred items in order takes a fraction of a millisecond."""
_PER_ANSWER = 10


class MultiVectors:
    """The overlapping tokens of every item, memory-mapped, behind their k=1 pooled embeddings.

    Args:
        coarse: the first token of each item: what its pooled embedding at k=1 points at.
        tokens: (items, tokens, dim) of any type of `fluxtalk.runtime.vectors`.
    """

    def __init__(self, coarse: NearVectors, tokens: Vectors) -> None:
        self._coarse = coarse
        self._tokens = tokens

    @classmethod
    def view(cls, coarse: NearVectors, path: Path) -> MultiVectors:
        """Those of a file, which stays on disk.

        Raises:
            IndexFileError: the file cannot be read.
        """
        try:
            return cls(coarse, np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise IndexFileError(f"{path} cannot be read ({reason(error)}); build the index again.") from None

    def search(
        self, query: Floats, count: int, exact: bool | None = None, candidates: int | None = None
    ) -> tuple[Numbers, Floats]:
        """The items whose tokens are most similar to a query's by MaxSim.

        Args:
            query: the overlapping tokens of one item, or the first few of them, (tokens, dim).
            count: at most so many.
            exact: as for `NearVectors.search`, of the candidates.
            candidates: how many are put in order; None takes ten for each answer, and at least `MIN_CANDIDATES`.

        Returns:
            their numbers and scores, best first.
        """
        wanted = max(count, candidates or max(MIN_CANDIDATES, _PER_ANSWER * count))
        # Sorted, because that is how they lie on disk.
        found = np.sort(self._coarse.search(directions(query[0]), wanted, exact)[0])
        scores = maxsim(query, self._tokens[found])[0]
        order = np.argsort(-scores, kind="stable")[:count]
        return found[order], scores[order]


class TokensFile:
    """Tokens on their way to disk.

    Args:
        path: the ``.npy`` to write.
        items: how many there will be.
        dtype: one of `fluxtalk.runtime.vectors.DTYPES`.
    """

    def __init__(self, path: Path, items: int, dtype: str) -> None:
        self._path = path
        self._items = items
        self._dtype = dtype
        self._file: Vectors | None = None
        self._written = 0

    def add(self, tokens: Floats) -> None:
        """Append tokens (count, tokens, dim)."""
        stored = quantize(tokens, self._dtype)
        if self._file is None:
            self._file = np.lib.format.open_memmap(
                self._path, mode="w+", dtype=stored.dtype, shape=(self._items, *stored.shape[1:])
            )
        self._file[self._written : self._written + len(stored)] = stored
        self._written += len(stored)

    def close(self) -> None:
        """Write what is still in memory."""
        if isinstance(self._file, np.memmap):
            self._file.flush()
        self._file = None
