"""Coarse to fine with nested tokens: the first token finds candidates, MaxSim over all of them puts these in order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluxtalk.errors import IndexFileError, reason
from fluxtalk.runtime.near_vectors import NearVectors
from fluxtalk.runtime.vectors import Vectors, directions, maxsim, quantise

CANDIDATES = 10
"""So many candidates for each answer, and..."""
MIN_CANDIDATES = 100
"""...never fewer than these: re-ranking a hundred items costs less than finding them."""


class MultiVectors:
    """The overlapping tokens of every item, memory-mapped, behind an index of their k=1 pooled embeddings.

    Args:
        coarse: of the first token of each item, which is what the pooled embedding at k=1 points at.
        tokens: (items, tokens, dim); (items, tokens, bytes) in binary.
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
        self, query: NDArray[np.float32], count: int, candidates: int | None = None, coarse_dtype: str = "float32"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The items whose tokens fit a query's best.

        Args:
            query: the overlapping tokens of one item, (tokens, dim), as many as there are or fewer.
            count: at most so many.
            candidates: how many are re-ranked; None takes `CANDIDATES` times ``count``, and at least `MIN_CANDIDATES`.
            coarse_dtype: of the coarse index.

        Returns:
            their numbers and MaxSim scores, best first.
        """
        wanted = max(count, candidates or max(MIN_CANDIDATES, CANDIDATES * count))
        found, _ = self._coarse.search(quantise(directions(query[0]), coarse_dtype), wanted)
        # In the order of the file.
        found = np.sort(found)
        scores = maxsim(query, self._tokens[found])[0]
        order = np.argsort(-scores, kind="stable")[:count]
        return found[order], scores[order]


def write_tokens(path: Path, items: int, chunks: Iterable[Vectors]) -> None:
    """Write tokens (items, tokens, dim) chunk by chunk."""
